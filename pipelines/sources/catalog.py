"""The known datasets: where their files are, which reader reads them, and how training stages see them.

A dataset is what one preparation writes as one folder of shards; a view is how a stage looks at it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.sources.entry import Entry, View, spellings, split_glob
from pipelines.sources.readers import READERS
from pipelines.tables.formats import holds_media

CATALOG = Path(__file__).with_name("catalog.yaml")
# The name in a catalog file that is no dataset's.
SCORERS = "scorers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All datasets by name, and all views by name with the dataset each belongs to.

    `scorers` are what files say of scorers, with the folder of each; `pipelines.curate.own_scorers` reads them.
    """

    datasets: Mapping[str, Entry]
    views: Mapping[str, tuple[str, View]]
    scorers: Sequence[tuple[Path, Mapping[str, Any]]] = ()

    def find(self, root: Path) -> dict[str, Path]:
        """The file or folder of each dataset found below the data folder; the first candidate wins."""
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

    An entry in a later file replaces an earlier one of the same name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is not valid; every mistake in it is listed, in one line.
    """
    datasets: dict[str, Entry] = {}
    scorers: list[tuple[Path, Mapping[str, Any]]] = []
    for file in (path or CATALOG, *extra):
        mistakes: list[str] = []
        rows = _read(file)
        own = rows.pop(SCORERS, {})
        if not isinstance(own, dict):
            mistakes.append(f"{SCORERS}: must map names of scorers to functions or classes")
        else:
            scorers += [(file.parent, own)] if own else []
        for name, row in rows.items():
            try:
                datasets[str(name)] = _entry(str(name), row)
            except ValueError as error:
                mistakes += [f"{name}: {line}" for line in _lines(error)]
        mistakes += _clashes(datasets)
        if mistakes:
            raise ValueError(f"{file}: {'; '.join(mistakes)}")
    views = {view: (name, entry.views[view]) for name, entry in datasets.items() for view in entry.views}
    return Catalog(datasets=datasets, views=views, scorers=scorers)


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
        raise ValueError("a dataset's name may hold a-z, 0-9, _ and - only: its folder has the same name")
    if not isinstance(row, dict):
        raise ValueError("must be a mapping of reader, paths, media, views, ...")
    reader = row.get("reader")
    if isinstance(reader, str) and reader not in READERS:
        raise ValueError(f"unknown reader {reader!r}; it is one of {', '.join(READERS)}")
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
    """Names must be unique: no view may have the name of another view or of another dataset."""
    owners: dict[str, str] = {}
    for name, entry in datasets.items():
        for view in entry.views:
            other = owners.setdefault(view, view if view in datasets else name)
            if other != name:
                yield f"{name}: the view {view} has the name of a view or dataset of {other}"


def _first(root: Path, candidates: Iterable[str], find: Callable[[Path, str], Path | None]) -> Path | None:
    found = (find(root, spelling) for candidate in candidates for spelling in spellings(candidate))
    return next(filter(None, found), None)


def _source(root: Path, candidate: str) -> Path | None:
    """The file or folder that a candidate names, or the folder of its files, if it exists."""
    parts, pattern = split_glob(candidate)
    path = root.joinpath(*parts)
    there = next(iter(path.glob(pattern)), None) is not None if pattern else path.exists()
    return path if there else None


def _folder(root: Path, candidate: str) -> Path | None:
    path = root / candidate
    return path if path.is_dir() else None


def _hint(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
