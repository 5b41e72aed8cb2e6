"""Throughput, data wait and time left of a training run, computed from measured times."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_LOSSES = ("loss", "alignment", "denoising")
_FEW_STEPS = 5
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


@dataclass(frozen=True, slots=True)
class _Step:
    samples: int
    tokens: int
    data_seconds: float
    seconds: float


class Meter:
    """Rates over the last `window` steps since this start; the first step, which waits for the readers, is excluded."""

    def __init__(self, num_steps: int, window: int = 50) -> None:
        self.num_steps = num_steps
        self._steps: deque[_Step] = deque(maxlen=window)
        self._seen = 0
        self._other_seconds = 0.0

    def step(
        self,
        *,
        samples: int,
        tokens: int,
        positions: int,
        data_seconds: float,
        step_seconds: float,
        other_seconds: float = 0.0,
    ) -> dict[str, float]:
        """Records a step; returns the figures to log.

        `samples`, `tokens` (without padding) and `positions` (with it) are those of the global batch. `data_seconds` is
        the time spent waiting for data, `step_seconds` computing, and `other_seconds` since the last step on validation
        and checkpoints, which counts only for the time left. Figures: `padding`, the share of padding in this step;
        over the window, `samples_per_second`, `tokens_per_second` and `data_wait`, a share of the time.
        """
        figures = {"padding": 1 - tokens / positions if positions else 0.0}
        self._seen += 1
        if self._seen == 1:
            return figures
        self._other_seconds += other_seconds
        self._steps.append(_Step(samples, tokens, data_seconds, data_seconds + step_seconds))
        if seconds := sum(step.seconds for step in self._steps):
            figures["samples_per_second"] = sum(step.samples for step in self._steps) / seconds
            figures["tokens_per_second"] = sum(step.tokens for step in self._steps) / seconds
            figures["data_wait"] = sum(step.data_seconds for step in self._steps) / seconds
        return figures

    def seconds_left(self, step: int) -> float | None:
        """The estimated time for the steps after `step`; None before the first measurement."""
        if not self._steps:
            return None
        # Validation is rare, so it is averaged over all steps, not over the window.
        each = sum(one.seconds for one in self._steps) / len(self._steps) + self._other_seconds / (self._seen - 1)
        return (self.num_steps - step) * each

    @property
    def _about(self) -> str:
        """Marks estimates from the first few steps."""
        return "about " if self._seen <= _FEW_STEPS else ""

    def line(self, stage: int, step: int, figures: Mapping[str, float]) -> str:
        """A step's figures as a line for people."""
        losses = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if name.endswith(_LOSSES))
        rates = [
            f"{_short(figures[name])} {unit}"
            for name, unit in (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s"))
            if name in figures
        ]
        shares = [
            f"{title} {100 * figures[name]:.1f} %"
            for name, title in (("data_wait", "data"), ("padding", "padding"))
            if name in figures
        ]
        left = self.seconds_left(step)
        estimate = "estimating" if left is None else f"{self._about}{_duration(left)} left"
        parts = [f"stage {stage} step {step}/{self.num_steps}: {losses}", ", ".join(rates + shares), estimate]
        return " | ".join(part for part in parts if part)


def _short(value: float) -> str:
    """Two or three significant digits: 8.4, 211, 8.4k, 1.2M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_plain(value / factor)}{unit}"
    return _plain(value)


def _plain(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    """The two largest units: `3 m 12 s`, `2 h 5 m`, `1 d 3 h`."""
    whole = round(seconds)
    for size, unit, smaller, name in _UNITS:
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {name}"
    return f"{whole} s"
