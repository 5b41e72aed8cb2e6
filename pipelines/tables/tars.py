"""Rows of tars as img2dataset and video2dataset write them, and of any WebDataset of caption pairs.

`00000.tar` holds `000000012.jpg`, `.txt` and `.json`; downloads that failed stand in `00000.parquet` alone.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sample import Modality
from pipelines.storage.files import read_at
from pipelines.tables.archives import Member, beside, is_packed, natural_order, open_tar, stem, tar_members
from pipelines.tables.containers import leaves_root
from pipelines.tables.keys import make_key
from pipelines.tables.media_formats import HEAD_BYTES, SUFFIXES, modalities_of, sniff, suffix_of
from pipelines.tables.raw import Raw
from pipelines.tables.tables import parquet_rows
from pipelines.tables.text_rows import parse_json

MAX_TEXT_BYTES = 1024 * 1024
# The field of a row that says which members it was made of.
MEMBERS = "__members__"
_SPOOLED_BYTES = 16 * 1024 * 1024
_MACOS_FOLDER = "__MACOSX"
_TEXTS = ("txt", "json")


def tar_rows(path: Path, name: str) -> Iterator[Raw]:
    """A row for each sample, the members of one name: the fields of its JSON, its text as `caption`, `image_name` ...

    Members may stand in any order: of several media of a modality, or several texts, the row has the list, in the order
    of their names. Hidden files and what macOS adds are left out. `__members__` are the names of the row's members.
    What the Parquet file beside the tar lists and the tar does not hold is a row that cannot be read.
    """
    seen: set[str] = set()
    if path.is_file():
        with closing(open_tar(path)) as tar, SpooledTemporaryFile(_SPOOLED_BYTES) as spool:
            texts = cast(BinaryIO, spool) if is_packed(path) else tar
            samples, damage = _samples(tar, texts)
            for count, ((base, number), members) in enumerate(samples.items()):
                seen.add(base.rpartition("/")[2])
                yield _row(texts, base, number, members, f"{name}#{count}", name)
            if damage:
                yield Raw(source=f"{name}#{len(samples)}", key="", error=damage)
    yield from _failed(path, name, seen)


def count_rows(path: Path, name: str) -> int:
    """How many rows `tar_rows` gives."""
    seen, count = set[str](), 0
    if path.is_file():
        with closing(open_tar(path)) as tar:
            samples, damage = _samples(tar, tar)
            seen = {base.rpartition("/")[2] for base, _ in samples}
            count = len(samples) + bool(damage)
    return count + sum(1 for _ in _failed(path, name, seen))


def is_download_list(path: Path) -> bool:
    """Whether a Parquet file lists the downloads of a tar, done and failed."""
    try:
        with path.open("rb") as file:
            return {"key", "status"} <= set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return False


def lacking(reason: str, row: Mapping[str, Any]) -> str:
    """A reader's reason with the members that the row's sample has, where it was made of a tar's and lacks one."""
    kind, _, what = reason.partition(": ")
    held = ", ".join(map(str, row.get(MEMBERS, ())))[:200]
    if not held or kind not in ("missing field", "missing medium"):
        return reason
    if kind == "missing medium":
        return f"{reason} (the sample has {held})"
    modality = what.removesuffix("_name")
    if modality in SUFFIXES:
        usual = ", .".join(SUFFIXES[Modality(modality)][:6])
        return f"missing member: no {modality} (.{usual}, ...); the sample has {held}"
    wanted = "no caption (.txt, or a .json with one)" if what == "caption" else f"no .json with {what}"
    return f"missing member: {wanted}; the sample has {held}"


def _failed(path: Path, name: str, seen: set[str]) -> Iterator[Raw]:
    listed = beside(path, ".parquet")
    if not listed.is_file() or not is_download_list(listed):
        return
    listed_name = f"{stem(name)}.parquet"
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
    folder, slash, name = member.rpartition("/")
    rest = name.lstrip(".")
    stem = name[: len(name) - len(rest)] + rest.partition(".")[0]
    return folder + slash + stem if rest else member


def _samples(tar: BinaryIO, texts: BinaryIO) -> tuple[dict[tuple[str, int], list[Member]], str]:
    """The members of each sample, in the order in which samples begin, and how the tar is damaged, empty where not.

    A member whose name stands in the tar already belongs to another sample, of the next number. Texts are copied to
    `texts` where that is another file. What breaks off in the midst of a sample is left out: it is part of the damage.
    """
    samples: dict[tuple[str, int], list[Member]] = {}
    times, last = Counter[str](), ("", 0)
    try:
        for member in tar_members(tar):
            if _is_hidden(member.name):
                continue
            last = _base(member.name), times[member.name]
            times[member.name] += 1
            samples.setdefault(last, []).append(_told(member, tar) if texts is tar else _copied(member, tar, texts))
    except ValueError as error:
        samples.pop(last, None)
        return samples, str(error)
    return samples, ""


def _is_hidden(name: str) -> bool:
    if not (name.startswith(".") or "/." in name or _MACOS_FOLDER in name):
        return False  # As most are, at a tenth of the time.
    parts = PurePosixPath(name).parts
    return not leaves_root(name) and any(part.startswith(".") or part == _MACOS_FOLDER for part in parts)


def _copied(member: Member, tar: BinaryIO, texts: BinaryIO) -> Member:
    """A text in another file, where it can be read in any order; other members stay where they are."""
    if suffix_of(member.name) not in _TEXTS or not member.is_plain or member.size > MAX_TEXT_BYTES:
        return _told(member, tar)
    place = texts.seek(0, io.SEEK_END)
    texts.write(read_at(tar, member.offset, member.size))
    return member._replace(offset=place)


def _told(member: Member, tar: BinaryIO) -> Member:
    """A member with the format that its content tells, where its name tells none."""
    if not member.is_plain or suffix_of(member.name) in _TEXTS or modalities_of(member.name):
        return member
    return member._replace(format=sniff(read_at(tar, member.offset, min(HEAD_BYTES, member.size))))


def _row(texts: BinaryIO, base: str, number: int, members: list[Member], source: str, name: str) -> Raw:
    members = sorted(members, key=lambda member: natural_order(member.name))
    try:
        if number:
            raise ValueError(f"duplicate member: {name}/{members[0].name} stands in the tar before, and that is taken")
        row = _fields(texts, members, name)
    except ValueError as error:
        return Raw(source=source, key=make_key(PurePosixPath(base).name), error=str(error))
    names = [member.name.rpartition("/")[2] for member in members]
    return Raw(source=source, value=row | {"__key__": base, MEMBERS: names})


def _fields(texts: BinaryIO, members: list[Member], name: str) -> dict[str, Any]:
    """The row that members make; what the others are says more than what the JSON names.

    Raises:
        ValueError: one leaves the tar, is no regular file, or cannot be read; or it is not told which text is whose.
    """
    row: dict[str, Any] = {}
    lists: dict[str, list[str]] = {}
    for member in members:
        where = f"{name}/{member.name}"
        if leaves_root(member.name):
            raise ValueError(f"path outside the root: {where}")
        if not member.is_plain:
            raise ValueError(f"unreadable: {where} is a link or no regular file")
        suffix = suffix_of(member.name)
        if suffix == "json":
            row |= _object(_data(texts, member, where), where)
        elif suffix == "txt":
            text = _data(texts, member, where).decode("utf-8-sig", errors="replace")
            lists.setdefault("caption", []).append(text)
        elif modalities := modalities_of(member.name) or modalities_of(member.format):
            lists.setdefault(f"{modalities[0]}_name", []).append(where)
    several = [field for field, values in lists.items() if len(values) > 1]
    if "caption" in several and len(several) > 1:
        raise ValueError(f"bad row: {name}/{_base(members[0].name)} has several texts and several media of one kind")
    return row | {field: values if field in several else values[0] for field, values in lists.items()}


def _object(data: bytes, where: str) -> dict[str, Any]:
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"bad row: {where} holds no object")
    return value


def _data(texts: BinaryIO, member: Member, where: str) -> bytes:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"too long caption: {where} has {member.size} bytes, the limit is {MAX_TEXT_BYTES}")
    data = read_at(texts, member.offset, member.size)
    if len(data) < member.size:
        raise ValueError(f"unreadable: {where} breaks off")
    return data
