"""Groups of equal and nearly equal rows: the same whatever the order, at a cost of sorting."""

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.duplicates import COLUMNS, Prints, find_duplicates
from pipelines.curate.groups import MOST_BITS, first_of_group, near_prints, near_words
from pipelines.curate.prints import PRINT, print_words
from pipelines.handover.survey import hash_key, held_out


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The first of each row's group, by going from row to row."""
    neighbours: dict[int, set[int]] = {row: {row} for row in range(count)}
    for left, right in pairs:
        neighbours[left].add(right)
        neighbours[right].add(left)
    found = []
    for row in range(count):
        seen, todo = {row}, [row]
        while todo:
            for other in neighbours[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        found.append(min(seen))
    return found


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_a_group_is_what_pairs_connect_and_its_first_row_stays(given: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = given
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    assert first_of_group(count, [(left, right)]).tolist() == connected(count, pairs)


def test_a_long_chain_is_one_group() -> None:
    rows = np.random.default_rng(0).permutation(50_000)
    assert not first_of_group(50_000, [(rows[:-1], rows[1:])]).any()


def distinct_prints(count: int, seed: int = 0) -> npt.NDArray[np.void]:
    generator = np.random.default_rng(seed)
    prints = np.zeros((count, 1), PRINT)
    prints["hash"] = generator.integers(0, 2**64, (count, 1), np.uint64)
    prints["thumb"] = generator.integers(0, 256, (count, 1, 48))
    return prints


def flipped(prints: npt.NDArray[np.void], bits: int, seed: int) -> npt.NDArray[np.void]:
    """The same prints, each with so many bits of its hash turned."""
    generator, changed = np.random.default_rng(seed), prints.copy()
    for row in range(len(prints)):
        for place in generator.choice(64, bits, replace=False).tolist():
            changed["hash"][row] ^= np.uint64(1 << place)
    return changed


def test_of_many_prints_those_of_few_other_bits_are_found_and_no_others() -> None:
    prints = distinct_prints(20_000)
    rows = np.concatenate([prints, flipped(prints[:2000], 3, 1), flipped(prints[2000:3000], MOST_BITS + 1, 2)])
    left, right = near_prints(rows, np.arange(len(rows)))
    first = first_of_group(len(rows), [(left, right)])
    assert first[20_000:22_000].tolist() == list(range(2000)), "three bits leave a byte to sort by as it is"
    assert np.array_equal(first[22_000:], np.arange(22_000, 23_000)), "so many bits are another picture"
    assert np.array_equal(first[:20_000], np.arange(20_000))


def test_equal_hashes_of_other_colours_are_not_near() -> None:
    prints = distinct_prints(2)
    prints["hash"][1] = prints["hash"][0]
    assert near_prints(prints, np.arange(2))[0].tolist() == []
    prints["thumb"][1] = prints["thumb"][0] ^ 1
    assert set(near_prints(prints, np.arange(2))[0].tolist()) == {0}


def test_equal_prints_of_other_lengths_are_not_near() -> None:
    prints = np.repeat(distinct_prints(1), 3, axis=0)
    prints["seconds"][:, 0] = [10, 10.4, 12]
    left, right = near_prints(prints, np.arange(3))
    assert first_of_group(3, [(left, right)]).tolist() == [0, 0, 2]


def test_many_equal_rows_are_one_group_at_a_cost_of_their_number() -> None:
    prints = np.repeat(distinct_prints(1), 5000, axis=0)
    left, right = near_prints(prints, np.arange(5000))
    assert not first_of_group(5000, [(left, right)]).any()
    assert len(left) <= 8 * 32 * 5000


def test_texts_with_most_pieces_in_common_are_near() -> None:
    texts = [
        "a brown dog runs along the beach at sunset with a red ball",
        "a brown dog runs along the beach at sunset with a red balls",
        "two people sit at a table in a cafe and read the newspaper",
        "a brown cat sleeps under the table in the kitchen of a house",
        "two people sit at a table in a cafe and read a newspaper",
    ]
    words = np.concatenate([print_words(text) for text in texts])
    left, right = near_words(words, np.arange(5))
    assert first_of_group(5, [(left, right)]).tolist() == [0, 0, 2, 3, 2]


# Few values, so that rows are often equal or near.
row_values = st.fixed_dictionaries(
    {"shade": st.integers(0, 2), "turned": st.integers(0, 1), "text": st.integers(0, 2), "has": st.booleans()}
)
Row = dict[str, int]
Part = Sequence[tuple[str, str, Row]]  # dataset, key and values of each


def table_of(rows: Sequence[tuple[str, Row]]) -> pa.Table:
    prints, told = distinct_prints(3), []
    for key, row in rows:
        own = prints[row["shade"]].copy()
        own["hash"] ^= np.uint64(row["turned"] << 5)
        text, has = f"text {'abc'[row['text']]}", row["has"]
        told.append(
            {
                "key": key,
                "bytes_hash": own.tobytes()[:16] if has else None,
                "pixels_hash": own["thumb"].tobytes()[:16] if has and row["turned"] else None,
                "text_hash": text.encode().ljust(16),
                "prints": own.tobytes() if has else None,
                "words": print_words(text).tobytes(),
            }
        )
    schema = {name: pa.binary() for name in ("bytes_hash", "pixels_hash", "text_hash", "prints", "words")}
    return pa.Table.from_pylist(told, pa.schema({"key": pa.string(), **schema}))


def duplicates_of(parts: Sequence[Part]) -> dict[str, dict[str, str]]:
    """What is said of each sample, by its name, where samples come in these parts."""
    found = [(name, [(key, row) for own, key, row in part if own == name]) for part in parts for name in "ab"]
    found = [(name, rows) for name, rows in found if rows]
    if not found:
        return {}
    prints, places = Prints.of([name for name, _ in found], [table_of(rows) for _, rows in found])
    assert sorted(places.tolist()) == list(range(len(prints)))
    columns = find_duplicates(prints, 0.3)
    names = zip(*(prints.names[name].to_pylist() for name in ("dataset", "key")), strict=True)
    return {
        f"{dataset}/{key}": {name: values[row].as_py() for name, values in columns.items()}
        for row, (dataset, key) in enumerate(names)
    }


def is_apart(name: str) -> bool:
    return bool(held_out(np.array([hash_key(name.partition("/")[2])], np.uint64), 0.3)[0])


@settings(max_examples=60)
@given(rows=st.lists(row_values, max_size=9), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 9), max_size=3))
def test_any_order_and_any_partition_give_the_same_groups(rows: list[Row], seed: int, cuts: list[int]) -> None:
    samples = [("ab"[number % 2], f"k{number:02}", row) for number, row in enumerate(rows)]
    shuffled = random.Random(seed).sample(samples, len(samples))
    edges = [0, *sorted(min(cut, len(samples)) for cut in cuts), len(samples)]
    whole = duplicates_of([samples])
    assert duplicates_of([shuffled[start:stop] for start, stop in pairwise(edges)]) == whole
    for key, row in whole.items():
        assert set(row) == set(COLUMNS)
        for name in set(COLUMNS) - {"leaks"}:
            # The one that stays is before all others, and stays itself.
            assert row[name] is None or (row[name] < key and whole[row[name]][name] is None)
        if row["duplicate_of"]:
            assert row["near_duplicate_of"], "what is equal is near"
        if row["leaks"]:
            assert (is_apart(key), is_apart(row["leaks"])) == (False, True)
            assert len({whole[one]["near_duplicate_of"] or one for one in (key, row["leaks"])}) == 1
