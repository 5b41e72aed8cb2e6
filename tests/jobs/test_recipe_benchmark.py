"""The benchmark of recipes in its smallest form: a row that is trained and examined, and the table of kept results."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.files import read_json, write_json
from tests.benchmarks import arms, recipe_arm, suites, world_pairs
from tests.benchmarks.arms import Budget
from tests.benchmarks.recipe import ARMS, MODALITIES


def test_every_recipe_is_compared_at_every_number_of_signal_tokens_with_both_joints() -> None:
    assert len(ARMS) == 2 * 3 * 4
    assert {(arm.joint, arm.tokens, arm.recipe) for arm in ARMS.values()} == {
        (joint, tokens, named)
        for joint in ("projection", "connector")
        for tokens in (4, 16, 64)
        for named in ("aligned", "denoised", "both", "kept")
    }


def result(arm: str, share: float) -> dict[str, Any]:
    rights = {"colour": 0.5, "all": share}
    one = {"right": rights, "distance": 0.25, "mean_ratio": 0.5, "cosine": 0.75}
    return {
        "overrides": list(ARMS[arm].overrides),
        "weights": 1000,
        "modalities": {modality.value: one for modality in MODALITIES},
        "seconds": 60.0,
    }


def test_what_was_measured_is_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arm, changed = "projection-4-aligned", "connector-16-both"
    write_json(tmp_path / "text.json", {m.value: {"right": {"colour": 1.0, "all": 1.0}} for m in MODALITIES})
    for seed, share in enumerate((0.25, 0.75)):
        write_json(tmp_path / f"{arm}-9-steps-of-8-seed-{seed}.json", result(arm, share))
    write_json(tmp_path / f"{changed}-9-steps-of-8-seed-0.json", result(changed, 0.5) | {"overrides": ["of before"]})
    asked: list[tuple[str, int]] = []

    def measured(folder: Path, arms: Any, missing: list[tuple[str, int]], measure: Any, budget: Budget) -> None:
        asked.extend(missing)
        for name, seed in missing:
            write_json(folder / f"{name}-{budget.steps}-steps-of-{budget.each}-seed-{seed}.json", result(name, 0.5))

    monkeypatch.setattr(arms, "_measure", measured)
    suites.main(["recipe", "--only", arm, changed, "--seeds", "2", "--steps", "9", "--out", str(tmp_path)])
    assert asked == [(changed, 0), (changed, 1)]
    head, _, text, first, second = capsys.readouterr().out.strip().splitlines()
    assert head.count("|") == text.count("|") == first.count("|")
    assert first.startswith(
        "| projection | 4 | aligned | 1,000 | 50.0 (25 to 75) | colour 50 | 0.250 | 0.500 | 0.750 |"
    )
    assert first.endswith("| 60 |")
    assert second.startswith("| connector | 16 | both | 1,000 | 50.0 (50 to 50) |")


def test_a_row_trains_and_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process of the benchmark does it, on eight pairs of each modality."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name, value in (("PAIRS", 8), ("EXAMINED", 8)):
        monkeypatch.setattr(world_pairs, name, value)
    recipe_arm.prepare(tmp_path)
    text = read_json(tmp_path / "text.json")
    assert text["image"]["right"].keys() == {"colour", "shape", "size", "place", "all"}
    assert text["image"]["right"]["colour"] > 0.7
    found = recipe_arm.measure(tmp_path, ARMS["connector-16-both"].overrides, seed=0, budget=Budget(steps=2, each=4))
    assert found["weights"] > 0
    for modality in MODALITIES:
        figures = found["modalities"][modality.value]
        assert figures["right"].keys() == text[modality.value]["right"].keys()
        assert figures["distance"] > 0
        assert {"mean_ratio", "cosine", "denoising"} <= figures.keys()
