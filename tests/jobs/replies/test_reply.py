"""A request from its checkpoint to the bytes of its files, in this process: no Ray is started."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.replies.batch_replies import respond
from jobs.replies.respond import ReplySettings
from model.checkpoints.checkpoint import save_pretrained
from model.checkpoints.description import SHIPPED, as_path
from model.checkpoints.hub import read_model_config
from model.core.nextgpt import NextGPT
from model.inference.query import Response, Sampling
from model.parts.config import load_preset
from pipelines.media.codecs import decode, encode
from pipelines.sample import Image, Modality
from pipelines.world.oracles import read

PROMPT = "like this, but louder"
PICTURE = encode(Image(pixels=np.full((32, 32, 3), 200, np.uint8)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ReplySettings:
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_pretrained(NextGPT.from_config(load_preset("tiny")), checkpoint)
    return ReplySettings(
        checkpoint=checkpoint,
        config=load_preset("tiny"),
        architecture="joint",
        require=list(Modality),
        sampling=Sampling(max_items=3, max_new_tokens=60, temperature=1.0, seed=3),
        steps=2,
    )


def test_a_request_gets_its_text_in_pieces_and_a_file_for_each_item(settings: ReplySettings) -> None:
    *pieces, result = respond(settings, PROMPT, [PICTURE])
    assert isinstance(result, Response)
    assert "".join(str(piece) for piece in pieces) == result.text
    assert [(medium.modality, medium.format) for medium in result.media] == [
        (Modality.IMAGE, "png"),
        (Modality.VIDEO, "mp4"),
        (Modality.AUDIO, "wav"),
    ]
    assert all(decode(medium) for medium in result.media)
    assert len(result.untrained) == 5


def test_the_same_seed_gives_the_same_files_and_another_seed_others(settings: ReplySettings) -> None:
    one, two = list(respond(settings, PROMPT, [PICTURE])), list(respond(settings, PROMPT, [PICTURE]))
    assert one == two
    seed = replace(settings.sampling, seed=4)
    *_, other = respond(replace(settings, sampling=seed), PROMPT, [PICTURE])
    assert other != one[-1]


def test_the_scheduler_answers_with_text_and_what_it_planned_to_make(settings: ReplySettings) -> None:
    prompt = "Make a picture of a small red circle at the left."
    scheduler = replace(
        settings,
        checkpoint=as_path(SHIPPED),
        config=read_model_config(SHIPPED),
        architecture="scheduler",
        require=[],
        sampling=Sampling(max_items=3),
        steps=None,
    )
    *pieces, result = respond(scheduler, prompt, [])
    assert isinstance(result, Response)
    assert "".join(str(piece) for piece in pieces) == result.text
    [picture] = result.media
    assert getattr(read(decode(picture)), "colour", None) == "red"
    assert list(respond(scheduler, prompt, []))[-1] == result
