"""A selection keeps what satisfies its conditions, accounts for the rest, and leaves order and held-out split alone."""

from pathlib import Path

import numpy as np
import pytest
from dataset_cases import pair, task, write_dataset, write_sidecar
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.curate.selection import not_holding, select
from pipelines.handover.mixture import Mixture
from pipelines.handover.stage_samples import plan_view
from pipelines.handover.survey import Survey, held_out, survey_views
from pipelines.sample import Sample
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import ENCODER


def number_of(content: Content) -> Values:
    number = int(content.sample.key[1:])
    return {"number": number, "even": number % 2 == 0, "of": "k0" if number in (3, 4) else None, "hidden": b"x"}


def make_numbers() -> EachSample:
    return EachSample(number_of)


NUMBERS = Scorer(
    name="numbers",
    columns={"number": "int", "even": "bool", "of": "str", "hidden": "bytes"},
    version="1",
    make=make_numbers,
)


def curated(directory: Path, count: int, samples_per_shard: int = 3, captions: int = 1) -> Manifest:
    more = [f"caption {number}" for number in range(captions - 1)]
    manifest = write_dataset(directory, [pair(f"k{n}", more=more) for n in range(count)], samples_per_shard)
    work = columns_work(directory, NUMBERS)
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {"numbers": NUMBERS})
    finish(work)
    return manifest


def test_every_sample_is_selected_or_dropped_by_the_first_clause_that_does_not_hold(tmp_path: Path) -> None:
    manifest = curated(tmp_path / "pictures", 8)
    found = select(tmp_path / "pictures", manifest, ["number > 1 and even", "of is null"])
    assert found.selected.tolist() == [False, False, True, False, False, False, True, False]
    assert found.dropped == {"number > 1": 2, "even": 3, "of is null": 1}
    assert found.kept + sum(found.dropped.values()) == 8
    told = "pictures: 8 samples = 2 selected, 2 dropped by number > 1, 3 dropped by even, 1 dropped by of is null"
    assert found.describe("pictures") == told
    assert found.to_json()["columns"] == {"numbers": columns_work(tmp_path / "pictures", NUMBERS).id}


def test_the_shards_own_columns_can_be_named_without_any_others(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "pictures", [pair("k0"), pair("k1"), pair("k2")], 2)
    assert select(tmp_path / "pictures", manifest, ["key in ['k0', 'k2']"]).selected.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("nmber > 1", "pictures: where 'nmber > 1': no column nmber; there are caption, even, key, number, of, source"),
        ("number > 'x'", "pictures: where \"number > 'x'\": number is a number, 'x' is a text"),
        ("hidden is null", "no column hidden; there are caption, even, key, number, of, source"),
        ("number >", "a column, a number or a text is expected where its end is"),
    ],
)
def test_a_condition_that_does_not_fit_is_told_in_one_line(tmp_path: Path, where: str, told: str) -> None:
    manifest = curated(tmp_path / "pictures", 2)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        select(tmp_path / "pictures", manifest, [where])
    assert str(caught.value).endswith(told)
    assert "\n" not in str(caught.value)


def test_without_any_columns_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    with pytest.raises(ValueError, match=f"no column number; .*; jobs/curate.py --shards {tmp_path} makes them"):
        select(tmp_path / "pictures", manifest, ["number > 1"])


def test_columns_of_shards_that_have_changed_are_not_used(tmp_path: Path) -> None:
    curated(tmp_path / "pictures", 4)
    manifest = write_dataset(tmp_path / "pictures", [pair(f"k{n}") for n in range(5)], 3)
    with pytest.raises(ValueError, match=r"the columns numbers are of other shards than these; run jobs/curate\.py"):
        select(tmp_path / "pictures", manifest, ["number > 1"])


def test_why_a_sample_is_not_selected(tmp_path: Path) -> None:
    manifest = curated(tmp_path / "pictures", 5)
    where = ["even and number < 2", "of is null"]
    assert list(not_holding(tmp_path / "pictures", manifest, where, "00001.tar", 1)) == [
        "number < 2 (number is 4)",
        "of is null (of is 'k0')",
    ]
    assert list(not_holding(tmp_path / "pictures", manifest, where, "00000.tar", 0)) == []


def length_of(sample: Sample) -> tuple[int, int]:
    return 1 + int(sample.key[1:]) % 5, 9


def surveyed(directory: Path) -> Survey:
    write_sidecar(directory, task(ENCODER, encoder_id="e"))
    view = plan_view("pictures_enc", "caption", directory, 1.0, {})
    return survey_views([view], lambda: length_of, "length")[0]


def test_held_out_is_what_was_held_out_before_and_training_takes_no_other(tmp_path: Path) -> None:
    manifest, survey = curated(tmp_path / "pictures", 40), surveyed(tmp_path / "pictures")
    selected = select(tmp_path / "pictures", manifest, ["even"]).selected
    training, apart = survey.split(1.0, 0.3, selected)
    assert sorted([*training.samples, *apart.samples]) == list(range(0, 40, 2))
    assert [held_out(survey.key_hashes, 0.3)[number] for number in apart.samples] == [True] * len(apart.samples)
    assert not held_out(survey.key_hashes, 0.3)[training.samples].any()
    everything, all_apart = survey.split(1.0, 0.3)
    assert set(apart.samples) == set(all_apart.samples) & set(range(0, 40, 2))
    assert len(everything.samples) + len(all_apart.samples) == 40


def test_captions_of_a_sample_are_selected_together(tmp_path: Path) -> None:
    manifest, survey = curated(tmp_path / "pictures", 6, captions=2), surveyed(tmp_path / "pictures")
    selected = select(tmp_path / "pictures", manifest, ["number in [1, 4]"]).selected
    training, _ = survey.split(1.0, 0.0, selected[survey.numbers // manifest.most_captions])
    assert training.samples.tolist() == [2, 3, 8, 9]


@settings(max_examples=25)
@given(world_size=st.integers(1, 4), kept=st.lists(st.booleans(), min_size=12, max_size=12).filter(any))
def test_each_selected_sample_once_an_epoch_whatever_the_number_of_workers(world_size: int, kept: list[bool]) -> None:
    hashes = np.arange(12, dtype=np.uint64) << np.uint64(60)
    survey = Survey(
        lengths=np.arange(1, 13, dtype=np.int32),
        key_hashes=hashes,
        truncated=0,
        left_out=[],
        numbers=np.arange(12),
    )
    training, _ = survey.split(1.0, 0.0, np.array(kept))
    plan = Mixture([training], batch_size=4, micro_batch_size=2, window=2, seed=0, epochs=1)
    taken = [
        number
        for step in range(plan.num_steps)
        for rank in range(world_size)
        for _, _, number in plan.rank_batch(step, rank, world_size)
    ]
    assert sorted(taken) == np.flatnonzero(kept).tolist()


def test_lineage_says_why_a_sample_is_not_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.inspect.lineage import print_origins
    from pipelines.storage.files import write_rows
    from pipelines.storage.shards import REJECT_SCHEMA, REJECTS

    curated(tmp_path / "pictures", 5)
    write_rows(tmp_path / "pictures" / REJECTS, [], REJECT_SCHEMA)
    assert print_origins(tmp_path, ["k2", "k4"], "number < 3 and of is null") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("pictures/k2: sample 2 of 00000.tar")
    assert told[1:2] + told[3:] == ["  selected", "  not selected: number < 3 (number is 4); of is null (of is 'k0')"]
