"""Rows of tars as img2dataset and video2dataset write them, and of any WebDataset of caption pairs.

`00000.tar` holds `000000012.jpg`, `.txt` and `.json`; downloads that failed stand in `00000.parquet` alone.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.tables.containers import is_plain, leaves_root, tar_members
from pipelines.tables.keys import make_key
from pipelines.tables.media_formats import HEAD_BYTES, modalities_of, sniff, suffix_of
from pipelines.tables.raw import Raw
from pipelines.tables.tables import parquet_rows
from pipelines.tables.text_rows import parse_json

MAX_TEXT_BYTES = 1024 * 1024


def tar_rows(path: Path, name: str) -> Iterator[Raw]:
    """A row for each run of members of one name: the fields of its JSON, its text as `caption`, and `image_name` ...

    What the Parquet file beside it lists and the tar does not hold is a row that cannot be read.
    """
    seen: set[str] = set()
    count = 0
    if path.is_file():
        with path.open("rb") as handle:
            file = cast(BinaryIO, handle)
            try:
                for base, members in groupby(tar_members(file), lambda member: _base(member.name)):
                    seen.add(PurePosixPath(base).name)
                    yield _row(file, base, list(members), f"{name}#{count}", name)
                    count += 1
            except ValueError as error:
                yield Raw(source=f"{name}#{count}", key="", error=str(error))
    yield from _failed(path, name, seen)


def is_download_list(path: Path) -> bool:
    """Whether a Parquet file lists the downloads of a tar, done and failed."""
    try:
        with path.open("rb") as file:
            return {"key", "status"} <= set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return False


def _failed(path: Path, name: str, seen: set[str]) -> Iterator[Raw]:
    listed = path.with_suffix(".parquet")
    if not listed.is_file() or not is_download_list(listed):
        return
    listed_name = str(PurePosixPath(name).with_suffix(".parquet"))
    for raw in parquet_rows(listed, listed_name):
        if raw.error:
            yield raw
            continue
        key = str(raw.value["key"])
        if key not in seen:
            yield Raw(source=raw.source, key=make_key(key), error=_reason(raw.value, path.name))


def _reason(row: dict[str, Any], tar: str) -> str:
    status = str(row["status"])
    if status == "success":
        return f"missing file: {tar} holds no {row['key']}"
    what = f"{status.removeprefix('failed_to_')} failed" if status.startswith("failed_to_") else status
    detail = " ".join(str(row.get("error_message") or "").split())[:200]
    return f"missing file: {what}" + (f" ({detail})" if detail else "")


def _base(member: str) -> str:
    """What members of one row share: the name up to its first dot, but for dots in front."""
    path = PurePosixPath(member)
    dots = len(path.name) - len(path.name.lstrip("."))
    stem = path.name[:dots] + path.name[dots:].partition(".")[0]
    return str(path.with_name(stem)) if stem.strip(".") else member


def _row(file: BinaryIO, base: str, members: list[TarInfo], source: str, name: str) -> Raw:
    try:
        row: dict[str, Any] = {}
        for member in sorted(members, key=lambda member: not member.name.lower().endswith(".json")):
            row |= _fields(file, member, name)  # What the other members are says more than what the JSON names.
    except ValueError as error:
        return Raw(source=source, key=make_key(PurePosixPath(base).name), error=str(error))
    return Raw(source=source, value=row | {"__key__": base})


def _fields(file: BinaryIO, member: TarInfo, name: str) -> dict[str, Any]:
    """What one member adds to the row.

    Raises:
        ValueError: it leaves the tar, is no regular file, or cannot be read.
    """
    where = f"{name}/{member.name}"
    if leaves_root(member.name):
        raise ValueError(f"path outside the root: {where}")
    if not is_plain(member):
        raise ValueError(f"unreadable: {where} is a link or no regular file")
    suffix = suffix_of(member.name)
    if suffix == "txt":
        return {"caption": _data(file, member, where).decode("utf-8-sig", errors="replace")}
    if suffix == "json":
        value = parse_json(_data(file, member, where))
        if not isinstance(value, dict):
            raise ValueError(f"bad row: {where} holds no object")
        return value
    modalities = modalities_of(member.name) or modalities_of(_format(file, member))
    return {f"{modalities[0]}_name": f"{name}/{PurePosixPath(member.name)}"} if modalities else {}


def _format(file: BinaryIO, member: TarInfo) -> str:
    """What a member holds whose name does not say so."""
    file.seek(member.offset_data)
    return sniff(file.read(min(HEAD_BYTES, member.size)))


def _data(file: BinaryIO, member: TarInfo, where: str) -> bytes:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"too long caption: {where} has {member.size} bytes, the limit is {MAX_TEXT_BYTES}")
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise ValueError(f"unreadable: {where} breaks off")
    return data
