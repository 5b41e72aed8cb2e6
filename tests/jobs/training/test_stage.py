"""A stage's plan: embeddings that do not fit the model are refused before anything starts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import pair, task, write_dataset, write_sidecar
from transformers import LlamaConfig

from jobs import train_stage
from jobs.common.cli import UsageError
from jobs.common.settings import load_settings
from jobs.training import preflight
from jobs.training.stage import StagePlan, plan_stage
from pipelines.curate import measures
from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import ENCODER, SidecarManifest, sidecar_folder


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may remember the preset's own encoder, which did not make the embeddings of these tests."""
    monkeypatch.setattr(preflight, "known_ids", lambda *_: [])


def plan(folder: Path, shape: list[int], view: str = "cc3m_dec", kind: str = "image") -> StagePlan:
    """Plans stage 2 of the published model on a dataset whose caption embeddings have this shape."""
    directory = folder / view.partition("_")[0]
    Manifest(
        dataset=directory.name,
        rows=4,
        samples=4,
        samples_per_shard=4,
        rejected={},
        shards=[],
        views={view: "generate"},
        output_items={kind: 4},
        input_items=0,
        licence="",
        stages={view: 2},
    ).write(directory)
    SidecarManifest(
        kind=kind,
        encoder_id=f"{kind}-imported-0",
        encoder_name="imported",
        untrained=False,
        shape=shape,
        dtype="float16",
        items=4,
        shards=[],
        of_shards=[],
    ).write(sidecar_folder(directory, f"{kind}-imported-0"))
    overrides = [f"datasets={{{view}: 1}}", f"model.llm.name={stand_in_for_vicuna(folder / 'vicuna')}"]
    return plan_stage(load_settings(2, "nextgpt_7b", overrides), folder, folder / "run", None)


def stand_in_for_vicuna(folder: Path) -> Path:
    """What is looked at before anything is loaded: an LLM's configuration, and that there are files."""
    folder.mkdir(exist_ok=True)
    LlamaConfig(hidden_size=4096, vocab_size=32_000, num_hidden_layers=32).save_pretrained(folder)
    for name in ("tokenizer.model", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_embeddings_of_the_decoders_size_are_taken(tmp_path: Path) -> None:
    assert [view.name for view in plan(tmp_path, [77, 768]).views] == ["cc3m_dec"]


@pytest.mark.parametrize(
    ("view", "kind", "shape", "told"),
    [
        ("cc3m_dec", "image", [77, 1024], "are 77x1024, preset nextgpt_7b takes 77x768; "),
        ("webvid_dec", "video", [77, 768], "are 77x768, preset nextgpt_7b takes 77x1024; "),
        ("audiocap_dec", "audio", [512, 512], "are 512x512, preset nextgpt_7b takes 1x512; "),
    ],
)
def test_embeddings_of_another_size_are_refused_in_one_sentence(
    tmp_path: Path, view: str, kind: str, shape: list[int], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, shape, view, kind)
    message = str(caught.value)
    assert message.startswith(f"{view}: {kind} embeddings by imported {told}")
    assert f"jobs/embed.py --preset nextgpt_7b --modality {kind}" in message
    assert "\n" not in message


def curated(folder: Path) -> Path:
    """Six pictures as stage 1 sees them, encoded, with the plain measures of each."""
    directory = folder / "cc3m"
    samples = [pair(f"k{shade}", shade=shade) for shade in range(0, 60, 10)]
    manifest = write_dataset(directory, samples, 4, {"cc3m_enc": "caption"})
    replace(manifest, stages={"cc3m_enc": 1}).write(directory)
    write_sidecar(directory, task(ENCODER, encoder_id="e"))
    work = columns_work(directory, measures.scorer())
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {"measures": measures.scorer()})
    finish(work)
    return folder


def selected(shards: Path, *overrides: str) -> StagePlan:
    return plan_stage(load_settings(1, "world", ["model.encoder.dim=4", *overrides]), shards, shards / "run", None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["where=luminance >= 20 and luminance < 50"],
        ["datasets={cc3m_enc: {where: luminance >= 20 and luminance < 50, weight: 2}}"],
        ["where=luminance >= 20", "where={cc3m_enc: luminance >= 20 and luminance < 50}"],
    ],
)
def test_what_a_condition_selects_is_known_before_anything_starts(tmp_path: Path, overrides: list[str]) -> None:
    plan = selected(curated(tmp_path), *overrides)
    (selection,) = plan.selections.values()
    assert selection.selected.tolist() == [False, False, True, True, True, False]
    told = "cc3m_enc: 6 samples = 3 selected, 2 dropped by luminance >= 20, 1 dropped by luminance < 50"
    assert selection.describe("cc3m_enc") == told
    assert plan.views[0].weight == (2 if "weight" in overrides[0] else 1)
    assert plan.selected(plan.views[0], np.array([0, 2, 5])).tolist() == [False, True, False]


def test_the_conditions_of_a_catalogs_view_and_of_the_stage_hold_together(tmp_path: Path) -> None:
    directory = curated(tmp_path) / "cc3m"
    replace(Manifest.read(directory), where={"cc3m_enc": "luminance > 10"}).write(directory)
    (selection,) = selected(tmp_path, "where=luminance < 40").selections.values()
    assert selection.where == ("luminance > 10", "luminance < 40")
    assert selection.kept == 2


def test_without_a_condition_nothing_is_selected_and_settings_say_nothing(tmp_path: Path) -> None:
    plan = selected(curated(tmp_path))
    assert plan.selections == {}
    assert plan.settings.where is None
    assert plan.selected(plan.views[0], np.arange(6)) is None


def caption_of(content: Content) -> Values:
    return {"new_caption": None if content.sample.key == "k20" else f"anew {content.sample.key}"}


def make_captions() -> EachSample:
    return EachSample(caption_of)


def test_new_captions_are_taken_by_those_that_have_one_and_are_part_of_what_the_run_is(tmp_path: Path) -> None:
    shards = curated(tmp_path)
    with pytest.raises(UsageError, match=r"cc3m: captions: new, but there are no new captions; jobs/recaption\.py "):
        selected(shards, "captions=new")
    scorer = Scorer(name="recaption", columns={"new_caption": "str"}, version="1", make=make_captions)
    work = columns_work(shards / "cc3m", scorer)
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {"recaption": scorer})
    finish(work)
    new, both = (selected(shards, f"captions={choice}", "where=luminance < 40") for choice in ("new", "both"))
    told = "cc3m_enc: 6 samples = 3 selected, 2 dropped by luminance < 40, 1 dropped by new_caption is not null"
    assert new.selections["cc3m_enc"].describe("cc3m_enc") == told
    assert both.selections["cc3m_enc"].kept == 4
    assert (new.views[0].manifest.num_examples, both.views[0].manifest.num_examples) == (6, 11)
    assert new.identities["worded"] != both.identities["worded"]
    assert "worded" not in selected(shards).identities


@pytest.mark.parametrize(
    "overrides",
    [
        ["datasets={cc3m_enc: {weight: luminance, where: luminance < 45}}"],
        ["datasets={cc3m_enc: luminance}", "where=luminance < 45"],
        ["weight_columns={cc3m_enc: luminance}", "where=luminance < 45"],
    ],
)
def test_a_column_weighs_what_is_selected(tmp_path: Path, overrides: list[str]) -> None:
    plan = selected(curated(tmp_path), *overrides)
    assert plan.settings.weight_columns == {"cc3m_enc": "luminance"}
    assert plan.views[0].weight == 1
    assert plan.weights["cc3m_enc"].values.tolist() == [0, 10, 20, 30, 40, 0]
    told = "cc3m_enc: 4 samples of 10 to 40 by luminance, 100 in all; 2 never come"
    assert plan.weights["cc3m_enc"].describe("cc3m_enc") == told
    assert plan.weighed(plan.views[0], np.array([1, 5, 4])).tolist() == [10, 0, 40]
    assert plan.accounts["cc3m_enc"]["selected"] == 5
    assert plan.accounts["cc3m_enc"]["weight"]["column"] == "luminance"
    assert plan.identities.keys() == {"selected", "weighed"}


def test_a_dry_run_says_how_many_samples_remain_by_dataset_and_by_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--dry-run", "--stage", "1", "--shards", str(curated(tmp_path)), "--out", str(tmp_path / "run")]
    command += ["model.encoder.dim=4", "where=luminance >= 20 and luminance < 50"]
    train_stage.main([*command, "datasets={cc3m_enc: {weight: luminance}}", "use_gpu=false"])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "selected: cc3m_enc: 6 samples = 3 selected, 2 dropped by luminance >= 20, 1 dropped by luminance < 50",
        "weighed: cc3m_enc: 3 samples of 20 to 40 by luminance, 90 in all; 3 never come",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("datasets={cc3m_enc: brightness}", "cc3m: weight brightness: no such column; there are aspect, caption_chars"),
        ("datasets={cc3m_enc: {weight: key}}", "cc3m: weight key: the column is a text; a weight must be a number"),
        (
            "datasets={cc3m_enc: seconds}",
            "cc3m: weight seconds: null of k0; a weight must be 0 to 1000; leave such samples out by where",
        ),
        ("weight_columns={cc3m_dec: luminance}", "weight_columns: cc3m_dec is not among the datasets of this run"),
        ("where=brightness > 3", "cc3m: where 'brightness > 3': no column brightness; there are aspect, "),
        ("where=luminance > 'x'", "cc3m: where \"luminance > 'x'\": luminance is a number, 'x' is a text"),
        ("where={cc3m_dec: luminance > 3}", "where: cc3m_dec is not among the datasets of this run"),
        (
            "datasets={cc3m_enc: {wher: luminance > 3}}",
            "datasets.dict[str,constrained-float].cc3m_enc: Input should be a valid number (got {'wher': ",
        ),
        ("where=[1]", "where: Input should be a valid dictionary"),
    ],
)
def test_a_condition_that_does_not_fit_is_a_line(tmp_path: Path, override: str, told: str) -> None:
    shards = curated(tmp_path)
    with pytest.raises(UsageError) as caught:
        selected(shards, override)
    assert [line for line in str(caught.value).splitlines() if line.startswith(told)], str(caught.value)
