"""Expressions on columns as a tree: what each part is, which columns it looks at, and the same to Arrow."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Protocol

import pyarrow.compute as pc

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    **{"=": eq, "==": eq, "!=": ne, "<>": ne},
    **{"<": lt, "<=": le, ">": gt, ">=": ge},
}
_EQUALITIES = ("=", "==", "!=", "<>")

# What can be compared with what.
NUMBER, TEXT, FLAG = "a number", "a text", "true or false"
Kinds = Mapping[str, str]  # of columns, by name


class Expression(Protocol):
    """A part of a condition."""

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        ...

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        ...

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        ...


@dataclass(frozen=True, slots=True)
class Named:
    """A column."""

    name: str

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        yield self.name

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        return kinds[self.name]

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return pc.field(self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, a text, or true or false."""

    value: float | int | str | bool

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        yield from ()

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        if isinstance(self.value, bool):
            return FLAG
        return TEXT if isinstance(self.value, str) else NUMBER

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return pc.scalar(self.value)

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Comparing:
    """Two operands and the sign between them."""

    sign: str
    left: Expression
    right: Expression

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        yield from (*self.left.names(), *self.right.names())

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        left, right = self.left.kind(kinds), self.right.kind(kinds)
        if left != right:
            raise ValueError(f"{self.left} is {left}, {self.right} is {right}")
        if left == FLAG and self.sign not in _EQUALITIES:
            raise ValueError(f"{self.left} is {FLAG}, which is compared by = and != alone")
        return FLAG

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return COMPARISONS[self.sign](self.left.arrow(), self.right.arrow())


@dataclass(frozen=True, slots=True)
class NullTest:
    """Whether a column is null."""

    column: Expression

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        yield from self.column.names()

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        if isinstance(self.column, Constant):
            raise ValueError(f"{self.column} is no column, so it is never null")
        return FLAG

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return self.column.arrow().is_null()


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts joined by `and_` or `or_`, by Kleene's logic of three values."""

    join: Callable[[Any, Any], Any]
    parts: tuple[Expression, ...]

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        for part in self.parts:
            yield from part.names()

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        for part in self.parts:
            check_condition(part, kinds)
        return FLAG

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return reduce(self.join, (part.arrow() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Negated:
    """What holds where its part does not."""

    part: Expression

    def names(self) -> Iterator[str]:
        """The columns that it looks at."""
        yield from self.part.names()

    def kind(self, kinds: Kinds) -> str:
        """What it is; ValueError where what it holds does not fit together."""
        check_condition(self.part, kinds)
        return FLAG

    def arrow(self) -> Any:
        """The same as Arrow's expression."""
        return ~self.part.arrow()


def check_condition(part: Expression, kinds: Kinds) -> None:
    """Checks that a part holds or does not; ValueError where it is a number or a text."""
    if (kind := part.kind(kinds)) != FLAG:
        raise ValueError(f"{part} is {kind}, and no condition; compare it with something")


def thresholds(node: Expression) -> Iterator[tuple[str, float]]:
    """The numbers that columns are compared with, by the name of the column."""
    match node:
        case Comparing(left=Named(name=name), right=Constant(value=int() | float() as value)) if not isinstance(
            value, bool
        ):
            yield name, float(value)
        case Comparing(left=Constant(value=int() | float() as value), right=Named(name=name)) if not isinstance(
            value, bool
        ):
            yield name, float(value)
        case Joined(parts=parts):
            for part in parts:
                yield from thresholds(part)
        case Negated(part=part):
            yield from thresholds(part)
