"""The reading benchmark: both sides read every sample of what it writes; how fast they do is not for a test to say."""

from tests.benchmarks.reading import run


def test_both_comparisons_are_measured() -> None:
    epoch, start = run(0.01)
    assert epoch.measured
    assert not epoch.at_most
    assert start.measured
    assert start.at_most
    assert "epoch of 30,000" in start.note
