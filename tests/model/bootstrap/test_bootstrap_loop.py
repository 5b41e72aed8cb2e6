from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.bootstrap.loop import train

STEPS = 230


class Stopped(Exception):
    pass


def _module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(4, 2)


def _train(state: Path, stop_at: int | None = None) -> nn.Module:
    module, calls = _module(), iter(range(STEPS))

    def loss(generator: torch.Generator) -> Tensor:
        if next(calls) == stop_at:
            raise Stopped
        inputs = torch.randn(8, 4, generator=generator)
        return (module(inputs) - inputs[:, :2]).square().mean()

    train("line", module, loss, steps=STEPS, learning_rate=1e-2, state=state)
    return module


def test_a_training_that_was_cut_off_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole.pt")
    with pytest.raises(Stopped):
        _train(tmp_path / "cut.pt", stop_at=157)
    continued = _train(tmp_path / "cut.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), continued.parameters(), strict=True))


def test_a_finished_training_is_only_loaded(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole.pt")
    again = _train(tmp_path / "whole.pt", stop_at=0)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_it_learns_and_leaves_the_average_of_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, module = _module(), _train(tmp_path / "state.pt")
    inputs = torch.randn(64, 4)
    errors = [(m(inputs) - inputs[:, :2]).square().mean().item() for m in (before, module)]
    assert errors[1] < 0.2 * errors[0]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(saved["average"]["weight"], module.weight)
    assert not torch.equal(saved["module"]["weight"], module.weight)
    assert f"line {STEPS}/{STEPS}: loss" in capsys.readouterr().out
