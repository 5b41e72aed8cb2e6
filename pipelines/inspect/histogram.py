"""Histograms and evenly spaced selections of any number of values, in one pass and bounded memory; their charts."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")

MAX_BARS = 28
# Few values are far larger than all others; what is beyond this share of them goes into one last bar.
SHOWN = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """How many values are at least `low` and less than `high`, which is infinite for the last bar of a long tail."""

    low: float
    high: float
    count: int


class Histogram:
    """Counts values, rounded to multiples of `step`, so that memory holds the distinct ones alone."""

    def __init__(self, step: float = 1.0) -> None:
        self.step = step
        self._counts: Counter[int] = Counter()

    def add(self, value: float, count: int = 1) -> None:
        """Counts a value `count` times."""
        self._counts[round(value / self.step)] += count

    def __len__(self) -> int:
        return self._counts.total()

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return sum(value * count for value, count in self._counts.items()) * self.step

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of all does not exceed."""
        assert self._counts, "an empty histogram has no quantiles"
        values = sorted(self._counts.items())
        sums = itertools.accumulate(count for _, count in values)
        reached = next(place for place, total in enumerate(sums) if total >= share * len(self))
        return values[reached][0] * self.step

    def bars(self) -> list[Bar]:
        """At most `MAX_BARS` adjacent bars of equal, round width that cover the values; empty without values."""
        if not self._counts:
            return []
        first, last = round(self.quantile(0) / self.step), round(self.quantile(SHOWN) / self.step)
        width = _round_width((last - first + 1) / MAX_BARS)
        start = first // width * width
        heights = [0] * ((last - start) // width + 1)
        beyond = 0
        for value, count in self._counts.items():
            place = (value - start) // width
            if place < len(heights):
                heights[place] += count
            else:
                beyond += count
        edges = [(start + place * width) * self.step for place in range(len(heights) + 1)]
        bars = [Bar(low=edges[n], high=edges[n + 1], count=height) for n, height in enumerate(heights)]
        return [*bars, Bar(low=edges[-1], high=math.inf, count=beyond)] if beyond else bars


class Spread(Generic[Value]):
    """Chooses at most `quota` of any number of values, evenly spaced in arrival order; deterministic."""

    def __init__(self, quota: int) -> None:
        self._quota, self._stride = quota, 1
        self._kept: list[Value] = []
        self.seen = 0

    def offer(self, value: Value) -> None:
        """Offers the next value."""
        if self.seen % self._stride == 0:
            self._kept.append(value)
        if len(self._kept) > 8 * self._quota:
            self._kept = self._kept[::2]
            self._stride *= 2
        self.seen += 1

    def chosen(self) -> list[Value]:
        """The values chosen from all offered so far."""
        count = len(self._kept)
        if count <= self._quota:
            return list(self._kept)
        return [self._kept[place * count // self._quota] for place in range(self._quota)]


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is not less."""
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= least:
                return digit * scale
        scale *= 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A histogram to draw: `bars` are heights (0 to 1) with labels; empty if all values are equal.

    `marks` are thresholds: at which bar each stands, as a fraction too, and its label.
    """

    title: str
    note: str
    bars: list[tuple[float, str]]
    low: str
    high: str
    summary: str
    marks: list[tuple[float, str]] = field(default_factory=list)


def number(value: float) -> str:
    """A number such as 1,234 or 0.5, with at most three decimals."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:,.3g}"


def draw_chart(
    title: str, unit: str, histogram: Histogram, note: str, thresholds: Sequence[float] = (), digits: int = 2
) -> Chart:
    """The chart of a histogram that holds values; values are told to so many decimals."""

    def words(value: float) -> str:
        return f"{number(round(value, digits))}\u00a0{unit}".rstrip("\u00a0")

    least, most = histogram.quantile(0), histogram.quantile(1)
    if least == most:
        return Chart(title=title, note=note, bars=[], low="", high="", summary=f"{words(least)} each")
    bars = histogram.bars()
    highest = max(bar.count for bar in bars)
    whole = histogram.step == 1

    def label(low: float, high: float, count: int) -> str:
        if math.isinf(high):
            return f"{words(low)} or more: {number(count)}"
        last = high - histogram.step if whole else high
        return f"{words(low) if low == last else f'{words(low)} to {words(last)}'}: {number(count)}"

    return Chart(
        title=title,
        note=note,
        bars=[(bar.count / highest, label(bar.low, bar.high, bar.count)) for bar in bars],
        low=words(bars[0].low),
        high=f"{words(bars[-1].low)} or more" if math.isinf(bars[-1].high) else words(bars[-1].high - whole),
        summary=f"{words(least)} to {words(most)}, median {words(histogram.quantile(0.5))}, "
        f"mean {words(round(histogram.sum / len(histogram), max(1, digits - 1)))}",
        marks=[(place, words(value)) for value in thresholds if (place := _place(bars, value)) is not None],
    )


def _place(bars: Sequence[Bar], value: float) -> float | None:
    """Where a value stands among bars: 1.5 is the middle of the second; None where it is outside."""
    for place, bar in enumerate(bars):
        if bar.low <= value <= bar.high:
            return place + (0.5 if math.isinf(bar.high) else (value - bar.low) / (bar.high - bar.low))
    return None
