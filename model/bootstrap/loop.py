"""The training loop of the foundations: resumable, with weight averaging and progress."""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.storage.files import atomic_path

_SAVE_EVERY = 100  # steps
_AVERAGING = 0.998  # of the weights per step, after the first steps
_WARM_UP = 50  # steps

Loss = Callable[[torch.Generator], Tensor]


def train(name: str, module: nn.Module, loss: Loss, *, steps: int, learning_rate: float, state: Path) -> None:
    """Minimises `loss` over the module's parameters by AdamW with a cosine schedule; the result is averaged weights.

    `loss` gets a generator seeded by the step, so a run resumed from the file `state` takes the same steps as an
    uninterrupted one. A finished `state` is only loaded.
    """
    average = deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    first = _load(state, module, average, optimizer)
    progress = _Progress(name, first, steps)
    module.eval()  # no dropout: its random state is not saved, and nothing here overfits
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        value = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        _update(average, module, step)
        progress(step, value)
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            _save(state, step + 1, module, average, optimizer)
    module.load_state_dict(average.state_dict())


def worded(captions: Sequence[Sequence[str]], rows_N: Tensor, generator: torch.Generator) -> list[str]:
    """Picks one caption per item at random."""
    variants = torch.rand(len(rows_N), generator=generator).tolist()
    several = [captions[row] for row in rows_N.tolist()]
    return [some[int(variant * len(some))] for some, variant in zip(several, variants, strict=True)]


def _schedule(step: int, steps: int) -> float:
    return min((step + 1) / _WARM_UP, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _update(average: nn.Module, module: nn.Module, step: int) -> None:
    weight = 1 - min(_AVERAGING, (step + 1) / (step + 10))
    for mean, new in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(new, weight)


def _save(path: Path, step: int, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    content = {"module": module.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    with atomic_path(path) as temporary:
        torch.save({"step": step, **content}, temporary)


def _load(path: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    module.load_state_dict(saved["module"])
    average.load_state_dict(saved["average"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


class _Progress:
    """Prints a line every 10 s: step, loss, time left."""

    def __init__(self, name: str, first: int, steps: int) -> None:
        self.name, self.first, self.steps = name, first, steps
        self.started = self.told = time.monotonic()
        self.mean = 0.0

    def __call__(self, step: int, value: Tensor) -> None:
        done = step + 1 - self.first
        self.mean += (float(value.detach()) - self.mean) / min(done, 50)
        now = time.monotonic()
        if now - self.told < 10 and step + 1 < self.steps:
            return
        self.told = now
        left = (now - self.started) / done * (self.steps - step - 1)
        print(f"{self.name} {step + 1}/{self.steps}: loss {self.mean:.4f} | {left:.0f} s left", flush=True)
