"""Stops a training run whose loss becomes NaN or infinite, or explodes."""

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 50  # steps in the moving average that a loss is compared with
WARM_UP = 10  # steps before losses are compared
_NAMED = 6  # samples listed in the message


class Diverged(RuntimeError):
    """The loss diverged: step, samples and reason. Its text is one line."""

    def __init__(self, step: int, loss: float, keys: Sequence[str], reason: str) -> None:
        super().__init__(step, loss, keys, reason)  # all arguments, so that it can be pickled
        self.step, self.loss, self.keys, self.reason = step, loss, keys, reason

    def __str__(self) -> str:
        named = ", ".join(self.keys[:_NAMED])
        more = f", ... (and {len(self.keys) - _NAMED} more)" if len(self.keys) > _NAMED else ""
        return f"step {self.step}: {self.reason}; its samples: {named}{more}; the run was saved before this step"


class LossGuard:
    """Compares each loss with the mean of previous steps; equal losses give the same verdict on every rank."""

    def __init__(self, stop_above: float) -> None:
        self.stop_above = stop_above
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, step: int, loss: float, samples: int) -> None:
        """Checks the loss of a global batch; a batch without samples is ignored.

        Raises Diverged, without keys, if the loss is not finite or above `stop_above` times the mean of the last steps.
        """
        if not samples:
            return
        if not math.isfinite(loss):
            raise Diverged(step, loss, (), f"the loss is {loss}")
        if len(self._losses) >= WARM_UP:
            mean = math.fsum(self._losses) / len(self._losses)
            if loss > self.stop_above * mean:
                reason = f"the loss is {loss:.4g}, and averaged {mean:.4g} over the last {len(self._losses)} steps"
                raise Diverged(step, loss, (), reason)
        self._losses.append(loss)

    def state(self) -> list[float]:
        """The state that a resumed run needs for the same verdicts."""
        return list(self._losses)

    def load(self, state: Sequence[float]) -> None:
        """Restores the result of `state`."""
        self._losses = deque(state, maxlen=WINDOW)
