"""Rows of any format: a table or tar by its suffix, a text by its content, a folder by what lies in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from re import fullmatch
from typing import Any

from pipelines.storage.files import read_json
from pipelines.tables import archives
from pipelines.tables.decompression import COMPRESSED_SUFFIXES, plain_suffix
from pipelines.tables.raw import START, Cut, Parser, Place, Raw, Section, one_line
from pipelines.tables.tables import arrow_places, arrow_rows, embeds_media, parquet_places, parquet_rows
from pipelines.tables.tars import count_rows, is_download_list, tar_rows
from pipelines.tables.text_rows import text_places, text_rows

PARSERS: Mapping[str, Callable[..., Iterator[Raw]]] = {
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}
_PLACES: Mapping[str, Callable[[Path], tuple[list[Place], int] | None]] = {
    ".parquet": parquet_places,
    ".arrow": arrow_places,
}
_CUT_BYTES = 1 << 25
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


def whole(path: Path, patterns: Sequence[str]) -> Section:
    """All rows of a file, or of the files of a folder in order: those that match a pattern, or all of its layout.

    Raises:
        ValueError: the folder holds no rows.
    """
    files = source_files(path, patterns) if path.is_dir() else [path]
    return Section(path=path, cuts=tuple(Cut(file=file, name=_below(file, path) or path.name) for file in files))


def read(section: Section, parsers: Mapping[str, Parser]) -> Iterator[Raw]:
    """The rows of a section of a source, in order.

    `parsers` are used beside those of this module, by suffix, and read a file as a whole; any other file is a text, and
    its content says of which kind. In a folder a file that cannot be read at all is one row with an error.

    Raises:
        ValueError: the file is not of its format.
    """
    for cut in section.cuts:
        if cut.file == section.path:
            yield from _rows(cut, parsers)
            continue
        try:
            yield from _rows(cut, parsers)
        except (ValueError, OSError) as error:
            reason = one_line(error).removeprefix(f"{cut.file}: ")
            yield Raw(source=cut.name, key="", error=f"unreadable: {reason}")


def survey(file: Path, name: str, *, is_counted: bool = True) -> tuple[list[Place], int]:
    """Places where a file can be read from, none of one that is read as a whole, and how many rows it has.

    Both are what the file's frame says: where it is damaged or has a parser of its own, reading gives other rows.
    What has no places may take as long to count as to parse; without `is_counted` its rows are 0.
    """
    try:
        if archives.is_tar(file):
            return [], count_rows(file, name) if is_counted else 0
        places: Callable[[Path], tuple[list[Place], int] | None] = _PLACES.get(plain_suffix(file), text_places)
        if found := places(file):
            return found
        return [], sum(1 for _ in _rows(Cut(file=file, name=name), {})) if is_counted else 0
    except (ValueError, OSError):
        return [], 1


def cuts(file: Path, name: str, places: Sequence[Place], per_cut: int) -> Iterator[Cut]:
    """A file, cut at some of its places: at least `per_cut` rows each, or in a text 32 MiB, but the last.

    The last is read to the end, whatever is there.
    """
    is_text = plain_suffix(file) not in PARSERS
    last = START
    for place in places:
        if place.row - last.row >= per_cut or (is_text and place.at - last.at >= _CUT_BYTES):
            yield Cut(file=file, name=name, place=last, rows=place.row - last.row)
            last = place
    yield Cut(file=file, name=name, place=last)


def _rows(cut: Cut, parsers: Mapping[str, Parser]) -> Iterator[Raw]:
    suffix = plain_suffix(cut.file)
    if archives.is_tar(cut.file):
        rows = tar_rows(cut.file, cut.name)
    elif suffix in parsers:
        rows = iter(()) if cut.place.row else parsers[suffix](cut.file, cut.name)
    else:
        parser: Callable[..., Iterator[Raw]] = PARSERS.get(suffix, text_rows)
        rows = islice(parser(cut.file, cut.name, cut.place), cut.rows)
    if cut.file.stem == "metadata" and "/" in cut.name:
        return (_moved(raw, str(PurePosixPath(cut.name).parent)) for raw in rows)
    return rows


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
