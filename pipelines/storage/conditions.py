"""Conditions on columns, such as `similarity > 0.22 and duplicate_of is null`: parsed, checked, and given to Arrow.

The language is a small part of SQL's: names, numbers, strings, `true`, `false`, the comparisons, `is null`,
`is not null`, `in [...]`, `between ... and ...`, `and`, `or`, `not` and parentheses. As in SQL, a comparison with null
is neither true nor false, and what is not true does not hold. Nothing is ever evaluated as Python.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_, eq, ge, gt, le, lt, ne, or_
from typing import Any, NamedTuple, Protocol

import pyarrow.compute as pc

MOST_CHARACTERS = 2000
_MOST_DEPTH = 50
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    **{"=": eq, "==": eq, "!=": ne, "<>": ne},
    **{"<": lt, "<=": le, ">": gt, ">=": ge},
}
_EQUALITIES = ("=", "==", "!=", "<>")
_WORDS = ("and", "or", "not", "is", "null", "in", "between", "true", "false")
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\w)
    |(?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<name>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|[<>=()\[\],]))""",
    re.VERBOSE,
)

# What can be compared with what.
NUMBER, TEXT, FLAG = "a number", "a text", "true or false"
Kinds = Mapping[str, str]  # of columns, by name


class _Node(Protocol):
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
class _Column:
    name: str

    def names(self) -> Iterator[str]:
        yield self.name

    def kind(self, kinds: Kinds) -> str:
        return kinds[self.name]

    def arrow(self) -> Any:
        return pc.field(self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class _Constant:
    value: float | int | str | bool

    def names(self) -> Iterator[str]:
        yield from ()

    def kind(self, kinds: Kinds) -> str:
        if isinstance(self.value, bool):
            return FLAG
        return TEXT if isinstance(self.value, str) else NUMBER

    def arrow(self) -> Any:
        return pc.scalar(self.value)

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class _Comparison:
    sign: str
    left: _Node
    right: _Node

    def names(self) -> Iterator[str]:
        yield from (*self.left.names(), *self.right.names())

    def kind(self, kinds: Kinds) -> str:
        left, right = self.left.kind(kinds), self.right.kind(kinds)
        if left != right:
            raise ValueError(f"{self.left} is {left}, {self.right} is {right}")
        if left == FLAG and self.sign not in _EQUALITIES:
            raise ValueError(f"{self.left} is {FLAG}, which is compared by = and != alone")
        return FLAG

    def arrow(self) -> Any:
        return _COMPARISONS[self.sign](self.left.arrow(), self.right.arrow())


@dataclass(frozen=True, slots=True)
class _IsNull:
    column: _Node

    def names(self) -> Iterator[str]:
        yield from self.column.names()

    def kind(self, kinds: Kinds) -> str:
        if isinstance(self.column, _Constant):
            raise ValueError(f"{self.column} is no column, so it is never null")
        return FLAG

    def arrow(self) -> Any:
        return self.column.arrow().is_null()


@dataclass(frozen=True, slots=True)
class _Joined:
    """Parts joined by `and_` or `or_`, by Kleene's logic of three values."""

    join: Callable[[Any, Any], Any]
    parts: tuple[_Node, ...]

    def names(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.names()

    def kind(self, kinds: Kinds) -> str:
        for part in self.parts:
            _check_flag(part, kinds)
        return FLAG

    def arrow(self) -> Any:
        return reduce(self.join, (part.arrow() for part in self.parts))


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Node

    def names(self) -> Iterator[str]:
        yield from self.part.names()

    def kind(self, kinds: Kinds) -> str:
        _check_flag(self.part, kinds)
        return FLAG

    def arrow(self) -> Any:
        return ~self.part.arrow()


def _check_flag(part: _Node, kinds: Kinds) -> None:
    if (kind := part.kind(kinds)) != FLAG:
        raise ValueError(f"{part} is {kind}, and no condition; compare it with something")


@dataclass(frozen=True, slots=True)
class Clause:
    """One of the parts that `and` joins: its text, and what Arrow evaluates."""

    text: str
    node: _Node

    @property
    def names(self) -> list[str]:
        """The columns that it looks at, each once."""
        return list(dict.fromkeys(self.node.names()))

    @property
    def expression(self) -> Any:
        """The clause as Arrow's expression: true, false or null for each row."""
        return self.node.arrow()


@dataclass(frozen=True, slots=True)
class RowCondition:
    """A parsed condition: all of its clauses hold."""

    text: str
    clauses: tuple[Clause, ...]

    @property
    def names(self) -> list[str]:
        """The columns that it looks at, each once."""
        return list(dict.fromkeys(name for clause in self.clauses for name in clause.names))

    def check(self, kinds: Kinds) -> None:
        """Checks it against the columns that there are, by their kinds: `NUMBER`, `TEXT` or `FLAG`.

        Raises:
            ValueError: a column does not exist, or what is compared is not of one kind; one line.
        """
        unknown = [name for name in self.names if name not in kinds]
        if unknown:
            there = f"there are {', '.join(sorted(kinds))}" if kinds else "there are none"
            raise ValueError(f"{self.text!r}: no column {', '.join(unknown)}; {there}")
        for clause in self.clauses:
            try:
                _check_flag(clause.node, kinds)
            except ValueError as error:
                raise ValueError(f"{self.text!r}: {error}") from None


def parse_condition(text: str) -> RowCondition:
    """Parses a condition.

    Raises:
        ValueError: it cannot be read; one line that says where.
    """
    text = " ".join(text.split())
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a condition of {len(text)} characters; it may have {MOST_CHARACTERS}")
    try:
        parser = _Parser(text)
        return RowCondition(text=text, clauses=tuple(parser.clauses()))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


class _Token(NamedTuple):
    what: str  # number, string, name, word, sign, end
    text: str
    start: int
    end: int


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if not match:
            raise ValueError(f"cannot be read from {text[place:].strip()[:20]!r} on")
        what, found = str(match.lastgroup), match[str(match.lastgroup)]
        if what == "name" and found.lower() in _WORDS:
            what, found = "word", found.lower()
        yield _Token(what, found, match.start(str(match.lastgroup)), match.end())
        place = match.end()
    yield _Token("end", "", len(text), len(text))


class _Parser:
    """Descends from `or` to names and numbers."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, self._place, self._depth = text, list(_tokens(text)), 0, 0

    def clauses(self) -> Iterator[Clause]:
        """The clauses of the whole text; where `or` joins them, it is one."""
        parts = [self._clause()]
        while self._take("and"):
            parts.append(self._clause())
        if self._next.text == "or" or len(parts) == 1:
            self._place, self._depth = 0, 0
            parts = [Clause(self._text, self._any())]
        if self._next.what != "end":
            raise self._unexpected("and, or, or the end")
        yield from parts

    def _clause(self) -> Clause:
        start = self._next.start
        node = self._negated()
        return Clause(self._text[start : self._tokens[self._place - 1].end], node)

    def _any(self) -> _Node:
        return self._joined("or", or_, self._all)

    def _all(self) -> _Node:
        return self._joined("and", and_, self._negated)

    def _joined(self, word: str, join: Callable[[Any, Any], Any], parse: Callable[[], _Node]) -> _Node:
        parts = [parse()]
        while self._take(word):
            parts.append(parse())
        return parts[0] if len(parts) == 1 else _Joined(join, tuple(parts))

    def _negated(self) -> _Node:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ValueError(f"more than {_MOST_DEPTH} parts within parts")
        node: _Node = _Not(self._negated()) if self._take("not") else self._predicate()
        self._depth -= 1
        return node

    def _predicate(self) -> _Node:
        if self._take("("):
            node = self._any()
            self._expect(")")
            return node
        left = self._operand()
        if self._next.text in _COMPARISONS and self._next.what == "sign":
            return _Comparison(self._advance().text, left, self._operand())
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return _negated_if(negated, _IsNull(left))
        negated = self._take("not")
        if self._take("in"):
            return _negated_if(negated, _Joined(or_, tuple(_Comparison("=", left, one) for one in self._listed())))
        if self._take("between"):
            least = _Comparison(">=", left, self._operand())
            self._expect("and")
            return _negated_if(negated, _Joined(and_, (least, _Comparison("<=", left, self._operand()))))
        if negated:
            raise self._unexpected("in or between")
        return left

    def _listed(self) -> Iterable[_Node]:
        end = {"[": "]", "(": ")"}.get(self._next.text, "")
        if not end:
            raise self._unexpected("a list such as [1, 2]")
        self._advance()
        values = [self._operand()]
        while self._take(","):
            values.append(self._operand())
        self._expect(end)
        return values

    def _operand(self) -> _Node:
        token = self._next
        if token.what == "word" and token.text in ("true", "false"):
            return _Constant(self._advance().text == "true")
        if token.what not in ("number", "string", "name"):
            raise self._unexpected("a column, a number or a text")
        self._advance()
        if token.what == "name":
            return _Column(token.text)
        if token.what == "string":
            quote = token.text[0]
            return _Constant(token.text[1:-1].replace(quote * 2, quote))
        return _Constant(int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text))

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _advance(self) -> _Token:
        self._place += 1
        return self._tokens[self._place - 1]

    def _take(self, text: str) -> bool:
        is_next = self._next.what in ("word", "sign") and self._next.text == text
        self._place += is_next
        return is_next

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._unexpected(text)

    def _unexpected(self, wanted: str) -> ValueError:
        found = repr(self._text[self._next.start : self._next.end]) if self._next.what != "end" else "its end"
        return ValueError(f"{wanted} is expected where {found} is")


def _negated_if(negated: bool, node: _Node) -> _Node:
    return _Not(node) if negated else node
