"""A column of numbers weighs samples; what is no weight is refused in one line that names the sample."""

from pathlib import Path

import numpy as np
import pytest
from dataset_cases import pair, write_dataset

from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.curate.selection import select
from pipelines.curate.weights import weigh
from pipelines.handover.survey import Survey
from pipelines.storage.shards import Manifest

QUALITY = [2.5, 0.0, None, -1.0, 1.0, 1000.5]


def quality_of(content: Content) -> Values:
    number = int(content.sample.key[1:])
    return {"quality": QUALITY[number], "number": number}


def make_quality() -> EachSample:
    return EachSample(quality_of)


SCORER = Scorer(name="quality", columns={"quality": "float", "number": "int"}, version="1", make=make_quality)


def curated(directory: Path) -> Manifest:
    manifest = write_dataset(directory, [pair(f"k{n}") for n in range(6)], 4)
    work = columns_work(directory, SCORER)
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {"quality": SCORER})
    finish(work)
    return manifest


def test_the_values_are_the_weights_and_those_not_selected_may_have_any(tmp_path: Path) -> None:
    manifest = curated(tmp_path / "pictures")
    selection = select(tmp_path / "pictures", manifest, ["number in [0, 1, 4]"])
    found = weigh(tmp_path / "pictures", manifest, "quality", selection)
    assert found.values.tolist() == [2.5, 0, 0, 0, 1, 0]
    assert found.describe("pictures") == "pictures: 2 samples of 1 to 2.5 by quality, 3.5 in all; 4 never come"
    assert weigh(tmp_path / "pictures", manifest, "number").values.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.identity != weigh(tmp_path / "pictures", manifest, "number", selection).identity


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("number > 1", "null of k2; "),
        ("number > 2", "-1.0 of k3; "),
        ("number > 3", "1000.5 of k5; "),
    ],
)
def test_what_is_no_weight_is_refused_with_the_first_sample_that_has_it(tmp_path: Path, where: str, told: str) -> None:
    manifest = curated(tmp_path / "pictures")
    selection = select(tmp_path / "pictures", manifest, [where])
    with pytest.raises(ValueError, match="leave such samples out by where") as caught:
        weigh(tmp_path / "pictures", manifest, "quality", selection)
    assert str(caught.value).startswith(f"pictures: weight quality: {told}a weight must be 0 to 1000")
    assert "\n" not in str(caught.value)


def test_weights_of_shards_that_have_changed_are_not_used(tmp_path: Path) -> None:
    curated(tmp_path / "pictures")
    manifest = write_dataset(tmp_path / "pictures", [pair(f"k{n}") for n in range(5)], 4)
    with pytest.raises(ValueError, match=r"the columns quality are of other shards than these; run jobs/curate\.py"):
        weigh(tmp_path / "pictures", manifest, "quality")


def test_without_any_columns_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    told = f"no such column; there are none of numbers; jobs/curate.py --shards {tmp_path} makes them"
    with pytest.raises(ValueError, match=told):
        weigh(tmp_path / "pictures", manifest, "quality")


def test_samples_of_weight_zero_are_neither_trained_on_nor_held_out() -> None:
    survey = Survey(
        lengths=np.ones(4, np.int32),
        key_hashes=np.array([0, 1, 2**63, 2**63 + 1], np.uint64),
        truncated=0,
        left_out=[],
        numbers=np.arange(4),
    )
    training, apart = survey.split(2.0, 0.25, weights=np.array([0.0, 1.0, 0.0, 1.5]))
    assert (training.samples.tolist(), apart.samples.tolist()) == ([3], [1])
    assert training.taken == 3
