"""Stops a training whose loss is no number any more, or explodes."""

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 50  # steps whose mean a loss is compared with
WARM_UP = 10  # steps after which there is a mean to compare with
_NAMED = 6  # samples that the message names


class Diverged(RuntimeError):
    """A loss to stop at: of which step and samples, and why. Its text is one line."""

    def __init__(self, step: int, loss: float, keys: Sequence[str], reason: str) -> None:
        super().__init__(step, loss, keys, reason)  # all of them, so that it can travel between processes
        self.step, self.loss, self.keys, self.reason = step, loss, keys, reason

    def __str__(self) -> str:
        named = ", ".join(self.keys[:_NAMED])
        more = f", ... (and {len(self.keys) - _NAMED} more)" if len(self.keys) > _NAMED else ""
        return f"step {self.step}: {self.reason}; its samples: {named}{more}; the run was saved before this step"


class LossGuard:
    """Compares each loss with the mean of the steps before it; the same losses give the same verdict on every rank."""

    def __init__(self, stop_above: float) -> None:
        self.stop_above = stop_above
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, step: int, loss: float, samples: int) -> None:
        """Takes in the loss of a global batch of so many samples; that of none says nothing.

        Raises Diverged, its keys yet to be filled in, where it is not finite or above `stop_above` times the mean of
        the last steps.
        """
        if not samples:
            return
        if not math.isfinite(loss):
            raise Diverged(step, loss, (), f"the loss is {loss}")
        if len(self._losses) >= WARM_UP:
            mean = math.fsum(self._losses) / len(self._losses)
            if loss > self.stop_above * mean:
                reason = f"the loss is {loss:.4g}, and was {mean:.4g} in the mean of the last {len(self._losses)} steps"
                raise Diverged(step, loss, (), reason)
        self._losses.append(loss)

    def state(self) -> list[float]:
        """What a resumed run needs to decide as this one would."""
        return list(self._losses)

    def load(self, state: Sequence[float]) -> None:
        """Goes on from what `state` gave."""
        self._losses = deque(state, maxlen=WINDOW)
