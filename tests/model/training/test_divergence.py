import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.divergence import WARM_UP, Diverged, LossGuard

KEYS = [f"cc3m/{number:06d}" for number in range(64)]


def feed(guard: LossGuard, losses: list[float], first: int = 1) -> int | None:
    """The step that a guard stops at, if any."""
    for step, loss in enumerate(losses, first):
        try:
            guard.check(step, loss, 64)
        except Diverged as stopped:
            return stopped.step
    return None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_first_step_already(loss: float) -> None:
    with pytest.raises(Diverged) as stopped:
        LossGuard(20.0).check(1, loss, 64)
    assert (stopped.value.step, stopped.value.reason) == (1, f"the loss is {loss}")


def test_the_message_names_some_samples_and_survives_the_way_between_processes() -> None:
    text = (
        "step 3: the loss is nan; its samples: cc3m/000000, cc3m/000001, cc3m/000002, cc3m/000003, cc3m/000004, "
        "cc3m/000005, ... (and 58 more); the run was saved before this step"
    )
    error = Diverged(3, math.nan, KEYS, "the loss is nan")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == text
    assert "its samples: cc3m/000000, cc3m/000001; the run" in str(Diverged(3, math.nan, KEYS[:2], ""))


def test_a_loss_far_above_the_mean_stops_but_not_while_there_is_hardly_a_mean() -> None:
    assert feed(LossGuard(20.0), [1.0] * WARM_UP + [21.0]) == WARM_UP + 1
    assert feed(LossGuard(20.0), [1.0] * WARM_UP + [19.0]) is None
    assert feed(LossGuard(20.0), [1.0] * (WARM_UP - 1) + [21.0]) is None


def test_the_reason_of_an_explosion_says_how_far_it_was() -> None:
    guard = LossGuard(2.0)
    feed(guard, [1.5] * WARM_UP)
    with pytest.raises(Diverged, match=r"^step 11: the loss is 9, and averaged 1\.5 over the last 10 steps; "):
        guard.check(11, 9.0, 2)


def test_a_step_without_samples_says_nothing() -> None:
    guard = LossGuard(2.0)
    guard.check(1, 0.0, 0)
    assert guard.state() == []


@given(st.lists(st.floats(0.01, 30.0), max_size=120), st.integers(0, 120))
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(losses: list[float], cut: int) -> None:
    before, after = losses[:cut], losses[cut:]
    whole, first, second = LossGuard(5.0), LossGuard(5.0), LossGuard(5.0)
    stopped = feed(first, before)
    if stopped is None:
        second.load(first.state())
        stopped = feed(second, after, first=len(before) + 1)
    assert stopped == feed(whole, losses)
