import pytest

from model.runs.meter import Meter


def test_rates_and_shares_are_of_the_window_and_the_start_does_not_distort_them() -> None:
    meter = Meter(num_steps=100, window=2)
    first = meter.step(samples=8, tokens=90, positions=100, data_seconds=60.0, step_seconds=9.0)
    assert first == {"padding": pytest.approx(0.1)}
    for data_seconds in (3.0, 0.5, 0.5):
        figures = meter.step(samples=8, tokens=100, positions=100, data_seconds=data_seconds, step_seconds=1.5)
    assert figures == {
        "padding": 0.0,
        "samples_per_second": pytest.approx(4.0),
        "tokens_per_second": pytest.approx(50.0),
        "data_wait": pytest.approx(0.25),
    }


def test_the_estimate_counts_validation_over_all_steps() -> None:
    meter = Meter(num_steps=12, window=2)
    assert meter.seconds_left(0) is None
    for other_seconds in (50.0, 0.0, 8.0, 0.0, 0.0):  # what came before the first step was not this start's
        meter.step(samples=1, tokens=1, positions=1, data_seconds=0.0, step_seconds=1.0, other_seconds=other_seconds)
    assert meter.seconds_left(5) == pytest.approx(7 * (1.0 + 8.0 / 4))


def test_a_line_says_what_a_person_wants_to_know() -> None:
    meter = Meter(num_steps=5000)
    figures = {"loss": 2.3141, "token_accuracy": 0.5, "image_alignment": 0.812, "learning_rate": 1e-4}
    sizes = {"samples": 64, "tokens": 2560, "positions": 2615, "data_seconds": 0.0012, "step_seconds": 0.302}
    start = meter.step(**sizes)
    assert meter.line(1, 1, figures | start) == (
        "stage 1 step 1/5000: loss 2.314, image_alignment 0.812 | padding 2.1 % | estimating"
    )
    assert meter.line(1, 2, figures | meter.step(**sizes)).endswith("| about 25 m 15 s left")  # by a single step
    for _ in range(4):
        meter.step(**sizes)
    assert meter.line(1, 4366, figures | meter.step(**sizes)) == (
        "stage 1 step 4366/5000: loss 2.314, image_alignment 0.812 | "
        "211 samples/s, 8.4k tokens/s, data 0.4 %, padding 2.1 % | 3 m 12 s left"
    )


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59.6, "1 m 0 s"), (3725, "1 h 2 m"), (90000, "1 d 1 h")])
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    meter = Meter(num_steps=3)
    for _ in range(2):
        meter.step(samples=1, tokens=1, positions=1, data_seconds=0.0, step_seconds=seconds)
    assert meter.line(1, 2, {}).endswith(f"| about {shown} left")
