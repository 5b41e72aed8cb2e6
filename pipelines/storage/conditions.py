"""Conditions on columns, such as `similarity > 0.22 and duplicate_of is null`: parsed, checked, and given to Arrow.

The language is a small part of SQL's: names, numbers, strings, `true`, `false`, the comparisons, `is null`,
`is not null`, `in [...]`, `between ... and ...`, `and`, `or`, `not` and parentheses. As in SQL, a comparison with null
is neither true nor false, and what is not true does not hold. Nothing is ever evaluated as Python.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import and_, or_
from typing import Any, NamedTuple

from pipelines.storage.expressions import (
    COMPARISONS,
    Comparing,
    Constant,
    Expression,
    Joined,
    Kinds,
    Named,
    Negated,
    NullTest,
    check_condition,
    thresholds,
)

MOST_CHARACTERS = 2000
_MOST_DEPTH = 50
_WORDS = ("and", "or", "not", "is", "null", "in", "between", "true", "false")
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\w)
    |(?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<name>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|[<>=()\[\],]))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One of the parts that `and` joins: its text, and what Arrow evaluates."""

    text: str
    node: Expression

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

    @property
    def thresholds(self) -> list[tuple[str, float]]:
        """The numbers that columns are compared with, each once, by the name of the column."""
        return list(dict.fromkeys(found for clause in self.clauses for found in thresholds(clause.node)))

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
                check_condition(clause.node, kinds)
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

    def _any(self) -> Expression:
        return self._joined("or", or_, self._all)

    def _all(self) -> Expression:
        return self._joined("and", and_, self._negated)

    def _joined(self, word: str, join: Callable[[Any, Any], Any], parse: Callable[[], Expression]) -> Expression:
        parts = [parse()]
        while self._take(word):
            parts.append(parse())
        return parts[0] if len(parts) == 1 else Joined(join, tuple(parts))

    def _negated(self) -> Expression:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ValueError(f"more than {_MOST_DEPTH} parts within parts")
        node: Expression = Negated(self._negated()) if self._take("not") else self._predicate()
        self._depth -= 1
        return node

    def _predicate(self) -> Expression:
        if self._take("("):
            node = self._any()
            self._expect(")")
            return node
        left = self._operand()
        if self._next.text in COMPARISONS and self._next.what == "sign":
            return Comparing(self._advance().text, left, self._operand())
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return _negated_if(negated, NullTest(left))
        negated = self._take("not")
        if self._take("in"):
            return _negated_if(negated, Joined(or_, tuple(Comparing("=", left, one) for one in self._listed())))
        if self._take("between"):
            least = Comparing(">=", left, self._operand())
            self._expect("and")
            return _negated_if(negated, Joined(and_, (least, Comparing("<=", left, self._operand()))))
        if negated:
            raise self._unexpected("in or between")
        return left

    def _listed(self) -> Iterable[Expression]:
        end = {"[": "]", "(": ")"}.get(self._next.text, "")
        if not end:
            raise self._unexpected("a list such as [1, 2]")
        self._advance()
        values = [self._operand()]
        while self._take(","):
            values.append(self._operand())
        self._expect(end)
        return values

    def _operand(self) -> Expression:
        token = self._next
        if token.what == "word" and token.text in ("true", "false"):
            return Constant(self._advance().text == "true")
        if token.what not in ("number", "string", "name"):
            raise self._unexpected("a column, a number or a text")
        self._advance()
        if token.what == "name":
            return Named(token.text)
        if token.what == "string":
            quote = token.text[0]
            return Constant(token.text[1:-1].replace(quote * 2, quote))
        return Constant(int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text))

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


def _negated_if(negated: bool, node: Expression) -> Expression:
    return Negated(node) if negated else node
