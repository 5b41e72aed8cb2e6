"""The benchmark of inputs in its smallest form: a row from patches that is trained and examined, and the table."""

from pathlib import Path

import pytest

from pipelines.sample import Modality
from tests.benchmarks import inputs_arm, world_pairs
from tests.benchmarks.arms import Budget
from tests.benchmarks.inputs import ARMS, table


def test_pooled_vectors_and_patches_are_compared() -> None:
    assert {arm.features for arm in ARMS.values()} == {"pooled", "patches"}
    assert len({arm.overrides for arm in ARMS.values()}) == len(ARMS)


@pytest.mark.parametrize("arm", ["pooled-linear-1", "patches-resampler-4"])
def test_a_row_trains_and_is_examined(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process of the benchmark does it, on eight pairs of each modality."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name, value in (("PAIRS", 8), ("EXAMINED", 8)):
        monkeypatch.setattr(world_pairs, name, value)
    inputs_arm.prepare(tmp_path)
    found = inputs_arm.measure(tmp_path, ARMS[arm].overrides, seed=0, budget=Budget(steps=2, each=4))
    assert found["modalities"][Modality.IMAGE]["right"].keys() == {"colour", "shape", "size", "place", "all"}
    assert found["loss"] > 0
    assert found["weights"] > 0


def test_the_table_tells_the_spread_over_seeds() -> None:
    found = [
        {
            "weights": 1000,
            "loss": 0.5,
            "seconds": 60.0,
            "modalities": {modality.value: {"right": {"colour": 0.5, "all": share}} for modality in Modality},
        }
        for share in (0.25, 0.75)
    ]
    head, _, row = table({"pooled-linear-1": found})
    assert head.count("|") == row.count("|")
    assert row.startswith("| pooled | linear | 1 | 1,000 | 50.0 (25 to 75) | colour 50 |")
    assert row.endswith("| 0.500 | 60 |")
