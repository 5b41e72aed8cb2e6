"""The datasets this project knows: where a user's files lie, who reads them, and how training stages see them.

A dataset is what one preparation writes as one folder of shards; a view is how a stage looks at it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipelines.readers import READERS
from pipelines.readers.formats import holds_media
from pipelines.sample import Modality
from pipelines.views import Kind

CATALOG = Path(__file__).with_name("catalog.yaml")
_WILDCARD = re.compile(r"[*?[]")
_COLUMN = re.compile(r"\{(\w+)\}")


def _below_root(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value!r} must be a path below the data folder")
    return value


RelativePath = Annotated[str, AfterValidator(_below_root)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]


def _template(value: str) -> str:
    if not _COLUMN.search(value) or set("{}") & set(_COLUMN.sub("", value)):
        raise ValueError(f"{value!r} must be a file name with columns of the row in it, such as '{{id}}.mp4'")
    return value


class View(BaseModel):
    """How one training stage sees a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[1, 2, 3]
    kind: Kind


class Entry(BaseModel):
    """A dataset: `paths` are candidates for its source and `media` for the folder of its media, below the data folder.

    A source is a file, a folder, or with `*` the files of a folder. `modality` says what a caption pair holds; other
    readers find it in their rows. `fields` maps what a reader looks for to the columns of the source, the first that
    is there; `media_name` is the name of a pair's medium where no column has it (`{page_dir}/{videoid}.mp4`). With
    `missing_media: caption` a user's medium that is missing is replaced by its caption, and the sample says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reader: str
    paths: Annotated[list[RelativePath], Field(min_length=1)]
    media: Annotated[list[RelativePath], BeforeValidator(_as_list)] = []
    modality: Modality | None = None
    fields: dict[str, Names] = {}
    media_name: Annotated[str, AfterValidator(_template)] | None = None
    missing_media: Literal["reject", "caption"] = "reject"
    views: dict[str, View] = {}
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _fits(self) -> "Entry":
        if self.reader not in READERS:
            raise ValueError(f"unknown reader {self.reader!r}; it is one of {', '.join(READERS)}")
        pairs = self.reader == "pairs"
        if pairs != (self.modality is not None):
            raise ValueError("a modality is needed for the reader 'pairs', and for no other")
        if self.media_name and not pairs:
            raise ValueError("media_name is for the reader 'pairs'; rows of others name their media")
        wrong = [name for name, view in self.views.items() if view.kind != "dialogue" and not pairs]
        if wrong:
            raise ValueError(f"views of kind caption or generate need the reader 'pairs': {', '.join(wrong)}")
        return self

    def patterns(self, folder: Path) -> list[str]:
        """Which files of a folder are meant, by the candidates with `*` that lead there; empty for all of them."""
        globs = (_glob(spelling) for candidate in self.paths for spelling in _spellings(candidate))
        return [pattern for parts, pattern in globs if pattern and (not parts or folder.parts[-len(parts) :] == parts)]

    def named(self, row: Mapping[str, Any]) -> str:
        """The name that `media_name` gives the medium of a row.

        Raises:
            ValueError: `missing field: ...`.
        """

        def value(match: re.Match[str]) -> str:
            if row.get(match[1]) is None:
                raise ValueError(f"missing field: {match[1]}")
            return str(row[match[1]])

        return _COLUMN.sub(value, self.media_name or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All datasets by name, and all views by name with the dataset each belongs to."""

    datasets: Mapping[str, Entry]
    views: Mapping[str, tuple[str, View]]

    def find(self, root: Path) -> dict[str, Path]:
        """The file or folder of each dataset that is present below the data folder; its first candidate wins."""
        found = {name: _first(root, entry.paths, _source) for name, entry in self.datasets.items()}
        return {name: path for name, path in found.items() if path is not None}

    def media_folder(self, entry: Entry, root: Path, path: Path | None = None) -> Path | None:
        """The folder that names of media start from, of a dataset whose source is `path`.

        A source that holds its media itself (tars, embedded bytes) is its own; otherwise it is the entry's `media`,
        and where there is none, the source's folder. Without `path`: the entry's `media` or None.
        """
        own = path and (path if path.is_dir() else path.parent)
        if path and holds_media(path, entry.patterns(path)):
            return own
        return _first(root, entry.media, _folder) or own

    def select(self, names: Iterable[str]) -> list[Entry]:
        """The datasets of these dataset or view names, each once, in the order named.

        Raises:
            ValueError: names that are neither, all of them in one line, with what was probably meant.
        """
        names = list(names)
        known = sorted({*self.datasets, *self.views})
        unknown = [name for name in dict.fromkeys(names) if name not in known]
        if unknown:
            hints = "; ".join(name + _hint(name, known) for name in unknown)
            raise ValueError(f"not in the catalog: {hints}. Known: {', '.join(known)}")
        owners = [name if name in self.datasets else self.views[name][0] for name in names]
        return [self.datasets[name] for name in dict.fromkeys(owners)]


def load_catalog(path: Path | None = None, extra: Iterable[Path] = ()) -> Catalog:
    """Reads and checks a catalog file, by default the project's own, and `extra` ones over it.

    An entry of a later file takes the place of an earlier one of its name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is not valid; every mistake in it is listed, in one line.
    """
    datasets: dict[str, Entry] = {}
    for file in (path or CATALOG, *extra):
        mistakes: list[str] = []
        for name, row in _read(file).items():
            try:
                datasets[str(name)] = _entry(str(name), row)
            except ValueError as error:
                mistakes += [f"{name}: {line}" for line in _lines(error)]
        mistakes += _clashes(datasets)
        if mistakes:
            raise ValueError(f"{file}: {'; '.join(mistakes)}")
    views = {view: (name, entry.views[view]) for name, entry in datasets.items() for view in entry.views}
    return Catalog(datasets=datasets, views=views)


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such catalog file")
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: must map dataset names to their entries")
    return rows


def _entry(name: str, row: Any) -> Entry:
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise ValueError("a dataset's name may hold a-z, 0-9, _ and - only: its folder bears it")
    if not isinstance(row, dict):
        raise ValueError("must be a mapping of reader, paths, media, views, ...")
    return Entry.model_validate({**row, "name": name})


def _lines(error: ValueError) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        yield f"{place}: {message}" if place else message


def _clashes(datasets: Mapping[str, Entry]) -> Iterator[str]:
    """A name must lead to one dataset: no view may be called like another view or another dataset."""
    owners: dict[str, str] = {}
    for name, entry in datasets.items():
        for view in entry.views:
            other = owners.setdefault(view, view if view in datasets else name)
            if other != name:
                yield f"{name}: the view {view} has the name of a view or dataset of {other}"


def _first(root: Path, candidates: Iterable[str], find: Callable[[Path, str], Path | None]) -> Path | None:
    found = (find(root, spelling) for candidate in candidates for spelling in _spellings(candidate))
    return next(filter(None, found), None)


def _source(root: Path, candidate: str) -> Path | None:
    """The file or folder, or the folder of the files, that a candidate names, if it is there."""
    parts, pattern = _glob(candidate)
    path = root.joinpath(*parts)
    there = next(iter(path.glob(pattern)), None) is not None if pattern else path.exists()
    return path if there else None


def _folder(root: Path, candidate: str) -> Path | None:
    path = root / candidate
    return path if path.is_dir() else None


def _glob(candidate: str) -> tuple[tuple[str, ...], str]:
    """The folders of a candidate before its first wildcard, and the pattern from there on, empty without one."""
    parts = PurePosixPath(candidate).parts
    count = next((index for index, part in enumerate(parts) if _WILDCARD.search(part)), len(parts))
    return parts[:count], "/".join(parts[count:])


def _spellings(path: str) -> list[str]:
    """Both generations of the original write the folder of pairs their own way."""
    return list(dict.fromkeys((path, path.replace("T-X_pair_data", "T_X_pair_data"))))


def _hint(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
