"""Captions by a checkpoint of this project: a real tiny one, and what one bad medium costs."""

from dataclasses import replace
from pathlib import Path

import pytest
from dataset_cases import pair, talk

from jobs.recaptioning.by_checkpoint import BATCH, CheckpointCaptions, MakeCheckpointCaptions, checkpoint_source
from jobs.recaptioning.recaptions import Recaptions, recaption_scorer
from jobs.replies.respond import ReplySettings
from model.checkpoints.checkpoint import save_pretrained
from model.core.nextgpt import NextGPT
from model.inference.query import Query, Response, Sampling
from model.parts.config import load_preset
from pipelines.curate.scorers import Content
from pipelines.sample import Media, Modality, Sample

BROKEN = Media(modality=Modality.IMAGE, data=b"nothing", format="png")


class Answering:
    """Tells the mean of the picture; of a batch with a picture of 200 it fails whole."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def respond_batch(self, queries: list[Query]) -> list[Response]:
        self.sizes.append(len(queries))
        shades = [int(next(iter(query.media.values())).pixels.mean()) for query in queries]  # type: ignore[union-attr]
        if 200 in shades:
            raise RuntimeError("out of memory")
        return [
            Response(parts=(f"shade {shade}, asked {query.turns[0].parts[-1]}",), media=(), prompt_tokens=1, tokens=1)
            for shade, query in zip(shades, queries, strict=True)
        ]


def settings() -> ReplySettings:
    return ReplySettings(
        checkpoint="none",
        config=load_preset("tiny"),
        architecture="joint",
        require=[],
        sampling=Sampling(max_new_tokens=8, max_items=0),
        steps=None,
    )


def told(samples: list[Sample], model: Answering) -> list[dict[str, object]]:
    captions = Recaptions(CheckpointCaptions(settings(), "generate a caption", model))  # type: ignore[arg-type]
    return [dict(values) for values in captions([Content(sample=sample) for sample in samples])]


def test_each_pair_is_asked_with_its_medium_and_the_prompt_in_batches() -> None:
    model = Answering()
    found = told([talk("t", ["x"]), *(pair(f"k{n}", shade=n) for n in range(BATCH + 1))], model)
    assert found[0] == {"new_caption": None}
    assert [one["new_caption"] for one in found[1:]] == [
        f"shade {n}, asked generate a caption" for n in range(BATCH + 1)
    ]
    assert model.sizes == [BATCH, 1]


def test_a_pair_that_cannot_be_read_or_answered_costs_itself_alone() -> None:
    samples = [
        pair("k0", shade=1),
        replace(pair("k1"), media={"png": BROKEN}),
        pair("k2", shade=200),
        pair("k3", shade=3),
    ]
    found = told(samples, Answering())
    assert [one.get("new_caption", "")[:7] for one in found] == ["shade 1", "", "", "shade 3"]  # type: ignore[index]
    assert str(found[1]["reason"]).startswith("unreadable: ")
    assert found[2]["reason"] == "not captioned: RuntimeError: out of memory"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    save_pretrained(NextGPT.from_config(load_preset("tiny")), folder)
    return folder


def test_a_checkpoint_captions_and_is_known_by_its_files_and_the_prompt(checkpoint: Path) -> None:
    source = checkpoint_source(checkpoint, load_preset("tiny"), "generate a caption", 8)
    assert isinstance(source.make, MakeCheckpointCaptions)
    values = recaption_scorer(source).make()([Content(sample=pair(f"k{n}", shade=n)) for n in range(2)])
    assert all(isinstance(one.get("new_caption"), str) or "nothing" in str(one["reason"]) for one in values)
    version = recaption_scorer(source).version
    assert recaption_scorer(checkpoint_source(checkpoint, load_preset("tiny"), "describe it", 8)).version != version
    (checkpoint / "more.txt").write_text("another weight")
    assert (
        recaption_scorer(checkpoint_source(checkpoint, load_preset("tiny"), "generate a caption", 8)).version != version
    )
