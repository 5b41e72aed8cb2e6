"""Rows of any format: a table or tar by its suffix, a text by its content, a folder by what lies in it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from re import fullmatch
from typing import Any

from pipelines.storage.files import read_json
from pipelines.tables import archives
from pipelines.tables.decompression import COMPRESSED_SUFFIXES, plain_suffix
from pipelines.tables.raw import Parser, Raw, one_line
from pipelines.tables.tables import arrow_rows, embeds_media, parquet_rows
from pipelines.tables.tars import is_download_list, tar_rows
from pipelines.tables.text_rows import text_rows

PARSERS: Mapping[str, Parser] = {
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}
_NAME = r"[^/\\\0]*[^/\\\0.][^/\\\0]*"  # Not `..` either.
# What a folder without a word about itself is taken for: the first of these that it holds.
_LAYOUTS = (
    tuple(f"*{suffix}" for suffix in archives.SUFFIXES),
    ("metadata.jsonl", "metadata.csv", "metadata.parquet"),
    ("**/metadata.jsonl", "**/metadata.csv", "**/metadata.parquet"),
    *(
        tuple(f"{folders}*{suffix}{compressed}" for compressed in ("", *COMPRESSED_SUFFIXES))
        for suffix in (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
        for folders in ("", "**/")
    ),
)


def read(path: Path, patterns: Sequence[str], parsers: Mapping[str, Parser]) -> Iterator[Raw]:
    """The rows of a file, or of the files of a folder in order: those that match a pattern, or all of its layout.

    `parsers` are used beside those of this module, by suffix; any other file is a text, and its content says of which
    kind. In a folder a file that cannot be read at all is one row with an error.

    Raises:
        ValueError: the file is not of its format, or the folder holds no rows.
    """
    known = {**PARSERS, **parsers}
    if not path.is_dir():
        yield from _parser(path, known)(path, path.name)
        return
    for file in source_files(path, patterns):
        name = _below(file, path)
        rows = _parser(file, known)(file, name)
        try:
            if file.stem == "metadata" and "/" in name:
                rows = (_moved(raw, str(PurePosixPath(name).parent)) for raw in rows)
            yield from rows
        except (ValueError, OSError) as error:
            yield Raw(source=name, key="", error=f"unreadable: {one_line(error).removeprefix(f'{file}: ')}")


def _parser(file: Path, known: Mapping[str, Parser]) -> Parser:
    return tar_rows if archives.is_tar(file) else known.get(plain_suffix(file), text_rows)


def source_files(folder: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """The files of a folder that hold rows, in order.

    A folder that Hugging Face `datasets` saved says itself what they are; of a dictionary of splits all are taken.

    Raises:
        ValueError: there are none.
    """
    found = _matching(folder, patterns)
    if not found:
        found = _saved(folder) or next(filter(None, (_matching(folder, layout) for layout in _LAYOUTS)), [])
    tars = [file for file in found if archives.is_tar(file)]
    if tars:
        # Someone unpacked it, and left it there.
        packed = {file for file in tars if not file.name.endswith(".tar") and archives.beside(file, ".tar") in tars}
        found = [file for file in found if file not in packed]
        listed = {archives.beside(tar, ".parquet") for tar in tars}
        lists = [file for file in tars[0].parent.glob("*.parquet") if file not in listed]
        alone = (file.with_suffix(".tar") for file in lists if is_download_list(file))
        found = sorted([*(file for file in found if file.suffix != ".parquet"), *alone], key=str)
    if not found:
        raise ValueError(f"{folder}: holds no rows; it needs tars, Parquet, Arrow, metadata.jsonl, JSON, CSV or text")
    return found


def holds_media(path: Path, patterns: Sequence[str] = ()) -> bool:
    """Whether the media of a source lie in its own files: in tars, or embedded in Parquet or Arrow."""
    if path.is_dir():
        try:
            path = source_files(path, patterns)[0]
        except ValueError:
            return False
    return archives.is_tar(path) or (path.suffix in (".parquet", ".arrow") and embeds_media(path))


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {str(file): file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return [found[name] for name in sorted(found) if not _is_hidden(found[name], folder)]


def _saved(folder: Path) -> list[Path]:
    """The data files of a folder that `save_to_disk` wrote, those that are missing too."""
    if (folder / "dataset_dict.json").is_file():
        splits = _names(folder / "dataset_dict.json", "splits", lambda split: split)
        return [file for split in splits for file in _saved(folder / split)]
    if (folder / "state.json").is_file():
        return [folder / name for name in _names(folder / "state.json", "_data_files", lambda file: file["filename"])]
    return []


def _names(path: Path, field: str, to_name: Any) -> list[str]:
    """Names in a JSON file of Hugging Face's.

    Raises:
        ValueError: they are not there, or one leaves the folder.
    """
    try:
        names = [to_name(value) for value in read_json(path)[field]]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: has no list {field} of names; save the dataset again") from None
    if bad := next((name for name in names if not isinstance(name, str) or not fullmatch(_NAME, name)), None):
        raise ValueError(f"{path}: {bad!r} is no name of a file beside it")
    return names


def _moved(raw: Raw, folder: str) -> Raw:
    """A row of a metadata file below the folder: the files it names lie beside it."""
    if not isinstance(raw.value, dict):
        return raw
    names = {
        key: f"{folder}/{value}"
        for key, value in raw.value.items()
        if (key == "file_name" or key.endswith("_file_name")) and isinstance(value, str)
    }
    return Raw(source=raw.source, value=raw.value | names)


def _below(file: Path, folder: Path) -> str:
    return str(file)[len(str(folder)) :].strip("/")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(_below(file, folder)).parts)
