"""Histograms hold every value once; choices are even and bounded."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.inspect.histogram import MAX_BARS, Histogram, Spread

VALUES = st.lists(st.integers(0, 10_000) | st.integers(0, 20), min_size=1, max_size=200)


def histogram(values: list[int], step: float = 1.0) -> Histogram:
    result = Histogram(step)
    for value in values:
        result.add(value)
    return result


@given(VALUES)
def test_every_value_is_in_one_bar_and_bars_are_of_one_width_without_gaps(values: list[int]) -> None:
    bars = histogram(values).bars()
    assert [bar.count for bar in bars] == [sum(bar.low <= value < bar.high for value in values) for bar in bars]
    assert sum(bar.count for bar in bars) == len(values)
    assert all(one.high == other.low for one, other in itertools.pairwise(bars))
    assert len({bar.high - bar.low for bar in bars if not math.isinf(bar.high)}) == 1
    assert len(bars) <= MAX_BARS + 2


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[int], share: float) -> None:
    found = histogram(values).quantile(share)
    assert found == sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def test_a_few_huge_values_do_not_flatten_the_others() -> None:
    bars = histogram([*range(10)] * 100 + [1_000_000]).bars()
    assert [bar.count for bar in bars] == [100] * 10 + [1]
    assert math.isinf(bars[-1].high)


def test_parts_of_a_unit_are_counted_in_steps() -> None:
    seconds = Histogram(0.1)
    for value in (0.52, 0.48, 9.97):
        seconds.add(value)
    assert (seconds.quantile(0), seconds.quantile(1)) == (0.5, 10.0)
    assert seconds.sum == pytest.approx(11.0)


def test_no_values_give_no_bars() -> None:
    assert Histogram().bars() == []


@given(st.integers(0, 5000), st.integers(1, 30))
def test_a_choice_is_even_over_all_that_was_offered(count: int, quota: int) -> None:
    spread = Spread[int](quota)
    for value in range(count):
        spread.offer(value)
    chosen = spread.chosen()
    assert len(chosen) == min(count, quota)
    assert spread.seen == count
    assert chosen == sorted(set(chosen))
    gaps = [other - one for one, other in itertools.pairwise([*chosen, count])]
    assert not gaps or max(gaps) <= 1.5 * count / quota + 1
