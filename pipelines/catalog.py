"""The datasets this project knows: where a user's files lie, who reads them, and how training stages see them.

A dataset is what one preparation writes as one folder of shards; a view is how a stage looks at it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from re import fullmatch
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.readers import READERS
from pipelines.sample import Modality
from pipelines.views import Kind

CATALOG = Path(__file__).with_name("catalog.yaml")


def _below_root(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value!r} must be a path below the data folder")
    return value


RelativePath = Annotated[str, AfterValidator(_below_root)]


class View(BaseModel):
    """How one training stage sees a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[1, 2, 3]
    kind: Kind


class Entry(BaseModel):
    """A dataset: `paths` are candidates for its file and `media` the folder of its media, both below the data folder.

    `modality` says what a caption pair holds; other readers find it in their rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reader: str
    paths: Annotated[list[RelativePath], Field(min_length=1)]
    media: RelativePath | None = None
    modality: Modality | None = None
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
        wrong = [name for name, view in self.views.items() if view.kind != "dialogue" and not pairs]
        if wrong:
            raise ValueError(f"views of kind caption or generate need the reader 'pairs': {', '.join(wrong)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All datasets by name, and all views by name with the dataset each belongs to."""

    datasets: Mapping[str, Entry]
    views: Mapping[str, tuple[str, View]]

    def find(self, root: Path) -> dict[str, Path]:
        """The file of each dataset that is present below the data folder; the first of its candidates wins."""
        found = {name: _first(root, entry.paths, Path.is_file) for name, entry in self.datasets.items()}
        return {name: path for name, path in found.items() if path is not None}

    def media_folder(self, entry: Entry, root: Path) -> Path | None:
        """The folder of a dataset's media below the data folder; None where it has none or it is absent."""
        return _first(root, [entry.media], Path.is_dir) if entry.media else None

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


def load_catalog(path: Path | None = None) -> Catalog:
    """Reads and checks a catalog file, by default the project's own.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not valid; every mistake is listed, in one line.
    """
    path = path or CATALOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such catalog file")
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: must map dataset names to their entries")
    datasets: dict[str, Entry] = {}
    mistakes: list[str] = []
    for name, row in rows.items():
        try:
            datasets[str(name)] = _entry(str(name), row)
        except ValueError as error:
            mistakes += [f"{name}: {line}" for line in _lines(error)]
    mistakes += _clashes(datasets)
    if mistakes:
        raise ValueError(f"{path}: {'; '.join(mistakes)}")
    views = {view: (name, entry.views[view]) for name, entry in datasets.items() for view in entry.views}
    return Catalog(datasets=datasets, views=views)


def _entry(name: str, row: Any) -> Entry:
    if not fullmatch(r"[a-z0-9_-]+", name):
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


def _first(root: Path, candidates: Iterable[str], exists: Any) -> Path | None:
    paths = (root / spelling for candidate in candidates for spelling in _spellings(candidate))
    return next((path for path in paths if exists(path)), None)


def _spellings(path: str) -> tuple[str, str]:
    """Both generations of the original write the folder of pairs their own way."""
    return path, path.replace("T-X_pair_data", "T_X_pair_data")


def _hint(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
