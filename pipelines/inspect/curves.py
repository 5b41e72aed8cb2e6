"""Layout of the learning curves of a run's log: coordinates are fractions of a panel, from its lower left corner."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.sample import Modality

Row = Mapping[str, Any]
Points = list[tuple[float, float]]
Ticks = list[tuple[float, str]]
NUM_POINTS = 100  # of a line
_NUM_TICKS = 4
_MARGIN = math.log10(1.15)  # of a logarithmic axis; added to logarithms, where it is not lost in tiny values
_HELD_OUT = "validation/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One figure: a line of training, each point the mean of some steps, and dots of the held-out samples.

    `last` is the last held-out value in words, of training where nothing was held out. `hue` names the colour.
    """

    label: str
    hue: str
    line: Points
    dots: Points
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves that share their axes. `mean_predictor` is the coordinate of 1, if it is marked."""

    title: str
    note: str
    curves: list[Curve]
    x_ticks: Ticks
    y_ticks: Ticks
    mean_predictor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    title: str
    note: str
    figures: Mapping[str, tuple[str, str]]  # a label and a hue by name
    share: bool  # from 0 to 100 %; all else on a logarithmic axis


_RATIOS = {
    f"{modality}_mean_ratio": (noun, modality.value)
    for modality, noun in zip(Modality, ("pictures", "videos", "sounds"), strict=True)
}
_KINDS = (
    _Kind(title="Loss", note="all terms, log scale", figures={"loss": ("loss", "text")}, share=False),
    _Kind(
        title="Token accuracy",
        note="share of the learned tokens",
        figures={"token_accuracy": ("tokens", "text")},
        share=True,
    ),
    _Kind(title="Alignment error", note="that of predicting the mean is 1, log scale", figures=_RATIOS, share=False),
)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """The panels for which a log has values."""
    steps = max((row["step"] for row in rows), default=0)
    return [panel for kind in _KINDS if (panel := _panel(kind, rows, steps)) is not None]


def _panel(kind: _Kind, rows: Sequence[Row], steps: int) -> Panel | None:
    lines = {name: _means(_series(rows, name)) for name in kind.figures}
    dots = {name: _series(rows, _HELD_OUT + name) for name in kind.figures}
    values = [y for points in (*lines.values(), *dots.values()) for _, y in points]
    if not values:
        return None
    ratio = kind.figures is _RATIOS
    place, y_ticks = _shares() if kind.share else _logarithmic([*values, *([1.0] if ratio else [])])

    def placed(points: Points) -> Points:
        return [(x / steps, place(y)) for x, y in points]

    curves = [
        Curve(
            label=label,
            hue=hue,
            line=placed(lines[name]),
            dots=placed(dots[name]),
            last=_words((dots[name] or lines[name])[-1][1], kind.share),
        )
        for name, (label, hue) in kind.figures.items()
        if lines[name] or dots[name]
    ]
    return Panel(
        title=kind.title,
        note=kind.note,
        curves=curves,
        x_ticks=[(value / steps, f"{value:,}") for value in _round_numbers(steps)],
        y_ticks=y_ticks,
        mean_predictor=place(1.0) if ratio else None,
    )


def _series(rows: Sequence[Row], name: str) -> Points:
    """A figure's values by step, without missing ones."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _means(points: Points) -> Points:
    """Averages neighbouring points until few are left, each at the last of its steps."""
    size = math.ceil(len(points) / NUM_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _shares() -> tuple[Callable[[float], float], Ticks]:
    return (lambda value: value), [(share, _words(share, True)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _logarithmic(values: Sequence[float]) -> tuple[Callable[[float], float], Ticks]:
    """An axis a little wider than the values, with ticks at 1, 2 and 5 of each power of ten, or fewer."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)) - _MARGIN, math.log10(max(positive)) + _MARGIN

    def place(value: float) -> float:
        return max(0.0, (math.log10(value) - low) / (high - low)) if value > 0 else 0.0

    powers = range(math.floor(low), math.ceil(high))
    ticks: list[float] = []
    for leading in ((1, 2, 5), (1, 3), (1,)):
        ticks = [one * 10.0**power for power in powers for one in leading if low <= math.log10(one) + power <= high]
        if len(ticks) <= _NUM_TICKS + 1:
            break
    return place, [(place(value), _words(value, False)) for value in ticks]


def _round_numbers(most: int) -> list[int]:
    """0 and a few round numbers up to `most`."""
    step = next(
        step for power in range(12) for step in (10**power, 2 * 10**power, 5 * 10**power) if most / step <= _NUM_TICKS
    )
    return list(range(0, most + 1, step))


def _words(value: float, share: bool) -> str:
    return f"{100 * value:.3g} %" if share else f"{value:.2g}"
