"""Conditions are read as SQL's are, checked before they are evaluated, and never run as Python."""

import sqlite3
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.conditions import MOST_CHARACTERS, parse_condition
from pipelines.storage.expressions import FLAG, NUMBER, TEXT

KINDS = {"a": NUMBER, "b": NUMBER, "name": TEXT, "blank": FLAG}
ROWS: list[dict[str, Any]] = [
    {"a": 1, "b": 2.5, "name": "x", "blank": True},
    {"a": None, "b": -1.0, "name": "it's", "blank": False},
    {"a": 3, "b": None, "name": None, "blank": None},
    {"a": 2, "b": 2.0, "name": 'say "y"', "blank": False},
]


def holds(text: str, rows: list[dict[str, Any]] = ROWS) -> list[int]:
    """The numbers of the rows for which every clause holds."""
    condition = parse_condition(text)
    condition.check(KINDS)
    columns = {"a": pa.int64(), "b": pa.float64(), "name": pa.string(), "blank": pa.bool_()}
    table = pa.Table.from_pylist(
        [row | {"n": n} for n, row in enumerate(rows)], pa.schema({**columns, "n": pa.int64()})
    )
    for clause in condition.clauses:
        table = pa.dataset.dataset(table).to_table(filter=clause.expression)
    return table["n"].to_pylist()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a > 1", [2, 3]),
        ("a >= 2 and b is not null", [3]),
        ("a is null or b is null", [1, 2]),
        ("not a = 1", [2, 3]),
        ("a in [1, 3]", [0, 2]),
        ("a not in (1, 3)", [3]),
        ("a between 1 and 2 and b > 2.2", [0]),
        ("a not between 1 and 2", [2]),
        ("name = 'it''s'", [1]),
        ('name == "say ""y"""', [3]),
        ("blank", [0]),
        ("not blank", [1, 3]),
        ("blank = false", [1, 3]),
        ("a < b", [0]),
        ("NOT (a = 1 OR b < 0) AND name IS NOT NULL", [3]),
        ("b > -1.5e0 and b<=+2.5", [0, 1, 3]),
        (" a\n=\t2 ", [3]),
        ("2 < a", [2]),
    ],
)
def test_what_holds(text: str, numbers: list[int]) -> None:
    assert holds(text) == numbers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a column, a number or a text is expected where its end is"),
        ("a >", "a column, a number or a text is expected where its end is"),
        ("a > 1 b", "and, or, or the end is expected where 'b' is"),
        ("(a > 1", ") is expected where its end is"),
        ("a in 3", "a list such as [1, 2] is expected where '3' is"),
        ("a is 3", "null is expected where '3' is"),
        ("a not 3", "in or between is expected where '3' is"),
        ("a = null", "a column, a number or a text is expected where 'null' is"),
        ("a > 1 ; drop", "cannot be read from '; drop' on"),
        ("name = 'open", 'cannot be read from "\'open" on'),
        ("a.__class__ = 1", "cannot be read from '.__class__ = 1' on"),
        ("f(a) > 1", "and, or, or the end is expected where '(' is"),
        ("2x > 1", "cannot be read from '2x > 1' on"),
        ("(" * 60 + "a", "more than 50 parts within parts"),
        ("not " * 60 + "blank", "more than 50 parts within parts"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_condition(text)
    assert str(caught.value).endswith(told)
    assert "\n" not in str(caught.value)


def test_a_condition_has_its_limits() -> None:
    with pytest.raises(ValueError, match="it may have 2000"):
        parse_condition("a > 1 and " * (MOST_CHARACTERS // 10) + "a > 1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("c > 1 and d is null", "no column c, d; there are a, b, blank, name"),
        ("a > '1'", "a is a number, '1' is a text"),
        ("name in ['x', 2]", "name is a text, 2 is a number"),
        ("a", "a is a number, and no condition; compare it with something"),
        ("not name", "name is a text, and no condition; compare it with something"),
        ("a > 1 or name", "name is a text, and no condition; compare it with something"),
        ("blank > false", "blank is true or false, which is compared by = and != alone"),
        ("3 is null", "3 is no column, so it is never null"),
        ("blank = 1", "blank is true or false, 1 is a number"),
    ],
)
def test_what_does_not_fit_the_columns_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_condition(text).check(KINDS)
    assert str(caught.value) == f"{text!r}: {told}"


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("a > 1 and b is null and name in ['x', 'y']", ["a > 1", "b is null", "name in ['x', 'y']"]),
        ("(a > 1 or b > 1) and not blank", ["(a > 1 or b > 1)", "not blank"]),
        ("a > 1 or b > 1 and blank", ["a > 1 or b > 1 and blank"]),
        ("blank and a > 1 or b > 1", ["blank and a > 1 or b > 1"]),
        ("a between 1 and 2 and blank", ["a between 1 and 2", "blank"]),
        ("blank", ["blank"]),
    ],
)
def test_clauses_are_what_and_joins_at_the_top(text: str, clauses: list[str]) -> None:
    condition = parse_condition(text)
    assert [clause.text for clause in condition.clauses] == clauses
    assert condition.names == list(dict.fromkeys(name for clause in condition.clauses for name in clause.names))


names = st.sampled_from(["a", "b"])
numbers = st.one_of(st.integers(-3, 3).map(str), names)


def written(pattern: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of a pattern such as `{} in ({})`."""
    return st.builds(pattern.format, *parts)


listed = st.lists(numbers, min_size=1, max_size=3).map(", ".join)
predicates = st.one_of(
    written("{} {} {}", names, st.sampled_from(["<", "<=", ">", ">=", "=", "!=", "<>"]), numbers),
    written("{} {}", names, st.sampled_from(["is null", "is not null"])),
    written("{} {} ({})", names, st.sampled_from(["in", "not in"]), listed),
    written("{} {} {} and {}", names, st.sampled_from(["between", "not between"]), numbers, numbers),
)


def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    joined = written("{} {} {}", inner, st.sampled_from(["and", "or"]), inner)
    return st.one_of(joined, written("not {}", inner), written("({})", inner))


values = st.one_of(st.none(), st.integers(-3, 3))


@given(
    text=st.recursive(predicates, deeper, max_leaves=6),
    rows=st.lists(st.fixed_dictionaries({"a": values, "b": values}), max_size=6),
)
def test_it_holds_where_it_does_in_sql(text: str, rows: list[dict[str, Any]]) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table rows (n integer, a integer, b real)")
    database.executemany("insert into rows values (?, ?, ?)", [(n, row["a"], row["b"]) for n, row in enumerate(rows)])
    expected = [n for (n,) in database.execute(f"select n from rows where {text} order by n")]
    assert holds(text, rows) == expected
