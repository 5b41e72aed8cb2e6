"""Scorers of a user's own: a function or class named in a catalog, in a module beside it.

```yaml
scorers:
  brightness: my_scorers.brightness
  aesthetics: {call: my_scorers.Aesthetics, settings: {weights: some/name}, on_devices: true}
```

A function takes a `Content` and returns a value, or None where it does not apply; a class is made once in each actor
with its settings, and called in the same way. The type of the column is what the function says it returns; several
columns are a mapping, whose names and types `columns` lists.
"""

import hashlib
import inspect
import json
import math
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.curate.scorers import EachSample, Scorer, Value, Values

VERSION = "1"
_TYPES: dict[Any, str] = {float: "float", int: "int", str: "str", bool: "bool"}
_ColumnType = Literal["float", "int", "str", "bool"]
_NAME = r"[a-z][a-z0-9_]*"


class ScorerEntry(BaseModel):
    """A scorer in a catalog: `call` is `module.name` of a function or class, in a folder or file beside the catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    call: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    columns: dict[Annotated[str, Field(pattern=f"^{_NAME}$")], _ColumnType] = {}
    settings: dict[str, Any] = {}
    on_devices: bool = False


def own_scorers(rows: Mapping[str, Any], folder: Path, taken: Mapping[str, str]) -> list[Scorer]:
    """The scorers of a catalog in this folder; `taken` maps columns to the scorers that fill them already.

    Raises:
        ValueError: every mistake, in one line.
    """
    found, mistakes = list[Scorer](), list[str]()
    owners = dict(taken)
    for name, row in rows.items():
        try:
            if name in owners.values():
                raise ValueError("is the name of a scorer of this project; choose another")
            scorer = _scorer(str(name), row, folder)
            for column in scorer.columns:
                if owners.setdefault(column, str(name)) != str(name):
                    raise ValueError(f"the column {column} is of {owners[column]}; choose another name")
            found.append(scorer)
        except (ValueError, OSError) as error:
            mistakes += [f"scorers: {name}: {line}" for line in _lines(error)]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return found


def _lines(error: Exception) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield " ".join(str(error).split())
        return
    for detail in error.errors():
        yield f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


def _scorer(name: str, row: Any, folder: Path) -> Scorer:
    entry = ScorerEntry.model_validate({"call": row} if isinstance(row, str) else row)
    if not name.replace("_", "").isalnum() or name != name.lower() or not name[:1].isalpha():
        raise ValueError("a scorer's name may hold a-z, 0-9 and _ only, and begins with a letter: it names its column")
    module, _, attribute = entry.call.rpartition(".")
    path = _file(folder, module)
    source = path.read_text(encoding="utf-8")
    settings = json.dumps(entry.settings, sort_keys=True)
    call = _attribute(_module(module, source, str(path)), attribute, path)
    columns: dict[str, str] = {**entry.columns} or {name: _column_type(call)}
    make = OwnScorer(
        module=module,
        source=source,
        path=str(path),
        attribute=attribute,
        settings=settings,
        columns=tuple(columns.items()),
        is_single=not entry.columns,
    )
    facts = [VERSION, source, entry.call, settings]
    version = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Scorer(name=name, columns=columns, version=version, make=make, on_devices=entry.on_devices)


def _file(folder: Path, module: str) -> Path:
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: leads out of the catalog's folder")
    return path


def _module(name: str, source: str, path: str) -> ModuleType:
    """The module of a source, which workers need not have as a file; made once a process."""
    known = f"{__name__}.{hashlib.sha256(source.encode()).hexdigest()[:16]}.{name}"
    if known not in sys.modules:
        module = ModuleType(known)
        module.__file__ = path
        sys.modules[known] = module
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        except BaseException as error:
            del sys.modules[known]
            if not isinstance(error, Exception):
                raise
            raise ValueError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[known]


def _attribute(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{path}: has no function or class {name}")
    return found


def _column_type(call: Callable[..., Any]) -> str:
    """The type that a function, or the calling of a class's instance, says it returns; a float where it says none."""
    function: Any = call.__call__ if inspect.isclass(call) else call
    told = get_type_hints(function).get("return", float)
    kinds = [kind for kind in get_args(told) or (told,) if kind is not NoneType]
    if len(kinds) != 1 or kinds[0] not in _TYPES:
        raise ValueError(f"returns {told}; annotate float, int, str or bool, or list its columns with their types")
    return _TYPES[kinds[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScorer:
    """Makes a user's scorer in a worker, from the source that the driver read."""

    module: str
    source: str
    path: str
    attribute: str
    settings: str
    columns: tuple[tuple[str, str], ...]
    is_single: bool

    def __call__(self) -> EachSample:
        """The scorer."""
        found = _attribute(_module(self.module, self.source, self.path), self.attribute, Path(self.path))
        call: Any = found(**json.loads(self.settings)) if inspect.isclass(found) else found
        return EachSample(lambda content: self._checked(call(content)))

    def _checked(self, told: Any) -> Values:
        columns = dict(self.columns)
        values = {next(iter(columns)): told} if self.is_single else dict(told or {})
        if unknown := sorted(set(values) - set(columns)):
            raise ValueError(f"gave {', '.join(map(str, unknown))}, which its columns do not list")
        return {name: _fitting(name, value, columns[name]) for name, value in values.items()}


def _fitting(name: str, value: Any, kind: str) -> Value:
    """A value as its column's type; a ValueError where it is of another."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if value is None:
        return None
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if kind == "float" and isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(f"gave {str(value)[:40]!r} for {name}, which is no {'finite ' * (kind == 'float')}{kind}")
