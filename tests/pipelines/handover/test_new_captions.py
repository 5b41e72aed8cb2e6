"""New captions beside shards: a plan takes a pair's own, the new one, or both, with the embeddings of these alone."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from dataset_cases import NotingEncoder, embedding_of, pair, talk, write_dataset

from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.embed.embedding import Encoding, Sidecar, assemble_row
from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import EncoderIdentity
from pipelines.embed.sidecar_shards import ShardState
from pipelines.embed.steps import EncodeRow, cut_shard, prepare_row, write_row
from pipelines.embed.units import shard_items
from pipelines.handover.stage_samples import PlannedView, SampleReader, plan_view
from pipelines.handover.survey import measure_shard, survey_views
from pipelines.inspect.verify import verify_all
from pipelines.sample import Item, Sample, turns_from_json
from pipelines.storage.files import write_rows
from pipelines.storage.new_captions import find_new_captions
from pipelines.storage.shards import REJECT_SCHEMA, REJECTS, Manifest, hash_file
from pipelines.storage.sidecars import from_npy
from pipelines.views import CaptionChoice, example, num_examples, with_caption

MISSING = "k1"
SAYS = {"all": "a new one of"}


def new_caption_of(content: Content) -> Values:
    key = content.sample.key
    if key == MISSING:
        raise ValueError("the model said nothing")
    return {"new_caption": f"{SAYS['all']} {key}" if content.names else None}


def make() -> EachSample:
    return EachSample(new_caption_of)


def recaption(directory: Path, version: str = "1") -> None:
    scorer = Scorer(name="recaption", columns={"new_caption": "str"}, version=version, make=make, about={"model": "m"})
    work = columns_work(directory, scorer)
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {"recaption": scorer})
    finish(work)


def embed(directory: Path, choice: CaptionChoice) -> Sidecar:
    """What jobs/embed.py does for captions, in this process."""
    manifest = Manifest.read(directory)
    task = EmbedTask(kind="image", factory=NotingEncoder, dtype="float32", batch_size=64)
    new = find_new_captions(directory, manifest, choice)
    sidecar = Sidecar(directory, manifest, "image", "float32", EncoderIdentity.of(NotingEncoder()), new)
    works, tasks = [sidecar.work], {"image": task}
    if sidecar.todo:
        shards = [(0, shard) for shard in range(len(manifest.shards))]
        encoding = Encoding([sidecar], shards, [shard_items(sidecar.work, shard) for _, shard in shards])
        encode = EncodeRow(works, tasks)
        for row in encoding.to_encode():
            for unit in cut_shard(row, works, tasks):
                encoding.keep(write_row(encode(prepare_row(unit, works, tasks)), works, {"image": "noting"}))
        for row in encoding.to_assemble():
            done = assemble_row(row, works)
            sidecar.take(done["shard"], ShardState.from_json(done["state"]))
    sidecar.finish()
    return sidecar


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pairs, the third with two captions; the second could not be captioned anew."""
    directory = tmp_path / "pictures"
    samples = [pair(f"k{n}", shade=n, more=["another"] if n == 2 else []) for n in range(4)]
    manifest = write_dataset(directory, samples, 3)
    write_rows(directory / REJECTS, [], REJECT_SCHEMA)
    replace(manifest, captions=5, rows=5, rejects_sha256=hash_file(directory / REJECTS)).write(directory)
    recaption(directory)
    return directory


def plan(directory: Path, choice: CaptionChoice, kind: str = "generate") -> PlannedView:
    return plan_view(f"pictures_{kind}", kind, directory, 1.0, {}, features=(), captions=choice)  # type: ignore[arg-type]


def length_of(sample: Sample) -> tuple[int, int]:
    return len(next(sample.items()).caption), 99


EXPECTED = {
    "original": [["caption of k0"], ["caption of k1"], ["caption of k2", "another"], ["caption of k3"]],
    "new": [["a new one of k0"], ["caption of k1"], ["a new one of k2"], ["a new one of k3"]],
    "both": [
        ["caption of k0", "a new one of k0"],
        ["caption of k1"],
        ["caption of k2", "another", "a new one of k2"],
        ["caption of k3", "a new one of k3"],
    ],
}


@pytest.mark.parametrize("choice", get_args(CaptionChoice))
def test_each_example_has_a_chosen_caption_and_its_own_embedding(pictures: Path, choice: CaptionChoice) -> None:
    embed(pictures, "original")
    embed(pictures, choice)
    view = plan(pictures, choice)
    survey = survey_views([view], lambda: length_of, "length")[0]
    wanted = [(number, text) for number, texts in enumerate(EXPECTED[choice]) for text in texts]
    assert survey.lengths.tolist() == [len(text) for _, text in wanted]
    assert (survey.numbers // view.manifest.most_captions).tolist() == [number for number, _ in wanted]
    rows = SampleReader([view]).read_all([(0, number) for number in survey.numbers.tolist()])
    for row, (_, text) in zip(rows, wanted, strict=True):
        user, assistant = turns_from_json(row["turns"])
        (item,) = (part for part in assistant.parts if isinstance(part, Item))
        assert (user.parts, assistant.parts[0], item.caption) == ((text,), text, text)
        np.testing.assert_array_equal(from_npy(row["image"]), [embedding_of(text)])
    assert not list(verify_all(pictures.parent))


def test_a_view_of_captions_needs_no_embeddings_and_says_the_new_one(pictures: Path) -> None:
    view = plan(pictures, "new", "caption")
    assert (view.manifest.num_examples, len(measure_shard(view, 0, length_of))) == (4, 3)
    row = SampleReader([view]).read(0, 3)
    assert turns_from_json(row["turns"])[1].parts == ("a new one of k3",)


def test_embeddings_of_other_captions_are_refused_in_one_line(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(pictures, "original")
    told = r"has no image embeddings of captions: new; run jobs/embed.py .* --modality image --which-captions new$"
    with pytest.raises(ValueError, match=told):
        plan(pictures, "new")
    embed(pictures, "new")
    assert plan(pictures, "new").sidecars["image"].name == "noting-0-new"
    assert plan(pictures, "original").sidecars["image"].name == "noting-0"
    monkeypatch.setitem(SAYS, "all", "a newer one of")
    recaption(pictures, version="2")
    with pytest.raises(
        ValueError, match=r"noting-0-new are of other shards or new captions than these; run "
    ) as caught:
        plan(pictures, "new")
    assert "\n" not in str(caught.value)
    (problem, *_) = verify_all(pictures.parent)
    assert "made for another shard or new captions than" in str(problem)
    assert embed(pictures, "new").todo == [0, 1]
    assert plan(pictures, "new")
    assert embed(pictures, "new").todo == []
    assert plan(pictures, "original")


def test_without_new_captions_or_with_those_of_other_shards_the_command_is_named(pictures: Path) -> None:
    write_dataset(pictures, [pair(f"k{n}") for n in range(5)], 3)
    with pytest.raises(ValueError, match=r"the new captions are of other shards than these; run jobs/recaption\.py"):
        plan(pictures, "both")
    write_dataset(pictures.parent / "others", [pair("k0")], 3)
    with pytest.raises(ValueError, match=r"captions: new, but there are no new captions; jobs/recaption\.py --shards "):
        plan(pictures.parent / "others", "new")


def test_a_dialogue_keeps_its_own_captions(tmp_path: Path) -> None:
    sample = talk("t", ["a dog"])
    assert with_caption(sample, "new", "both") is sample
    write_dataset(tmp_path / "talks", [sample], 1, {"talks": "dialogue"})
    embed(tmp_path / "talks", "original")
    view = plan_view("talks", "dialogue", tmp_path / "talks", 1.0, {}, features=(), captions="new")
    assert view.captions is None
    assert view.sidecars["image"].name == "noting-0"


def test_a_caption_of_several_media_is_one_of_all() -> None:
    sample = pair("k", more=["second"])
    both = with_caption(sample, "third", "both")
    assert [example(both, number).turns[1].parts for number in range(num_examples(both))] == [
        ("caption of k",),
        ("second",),
        ("third",),
    ]
    assert with_caption(sample, "third", "new").turns[1].parts == ("third",)
    assert num_examples(with_caption(sample, None, "new")) == 1
