from typing import Any

import numpy as np
import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, dialogue, item

from model.core.nextgpt import NextGPT
from model.parts.config import ModelConfig
from model.training.validation_replies import Row, Sampled, Sampler
from pipelines.sample import Audio, Image, Item, Modality, Turn, Video, turns_to_json

BUDGET = {"max_new_tokens": 32, "steps": 2}


def row(turns: tuple[Turn, ...]) -> Row:
    """As the hand-over has it: an embedding for each named item of the user's."""
    parts = [part for turn in turns if turn.role == "user" for part in turn.parts]
    inputs = sum(isinstance(part, Item) and bool(part.name) for part in parts)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(inputs, 32)).astype(np.float32) if inputs else None
    return {"key": "k", "turns": turns_to_json(turns), "encoder": features}


def by_modality(samples: list[Sampled]) -> dict[Modality, Sampled]:
    return {sample.modality: sample for sample in samples}


def test_each_modality_has_a_reply_with_its_medium_and_what_the_data_have(model: NextGPT, tokenizer: Any) -> None:
    samples = Sampler(model, tokenizer, **BUDGET)([row(turns) for turns in (CAPTION, REQUEST, MIXED)])
    assert {sample.modality: type(sample.medium) for sample in samples} == {
        Modality.IMAGE: Image,
        Modality.VIDEO: Video,
        Modality.AUDIO: Audio,
    }
    image = by_modality(samples)[Modality.IMAGE]
    assert image.prompt == "show me a dog"
    assert image.expected == "a dog [image: a red square] and its bark [audio: a red square]"
    assert isinstance(image.text, str)


def test_an_answer_late_in_a_dialogue_is_prompted_with_what_came_before_and_with_its_own_features(
    model: NextGPT, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = dialogue(
        (item("image"), "what?"), ("A dog.",), (item("video"), "and"), (item("image"),), (item("audio"), "?"), ("No.",)
    )
    [sample] = Sampler(model, tokenizer, renders=False, **BUDGET)([row(turns)])[:1]
    assert sample.prompt == "user: [image: a red square] what?\nassistant: A dog.\nuser: [video: a red square] and"
    assert sample.expected == "[image: a red square]"
    assert sample.medium is None
    assert capsys.readouterr().out == ""


def test_where_nothing_is_generated_a_prompt_with_such_an_item_is_answered_in_text(
    model: NextGPT, tokenizer: Any
) -> None:
    sounds = dialogue(("what is", item("audio"), "this?"), ("a bark",))
    samples = Sampler(model, tokenizer, **BUDGET)([row(CAPTION), row(sounds)])
    assert [(sample.modality, sample.medium) for sample in samples] == [(Modality.IMAGE, None), (Modality.AUDIO, None)]
    assert (samples[1].prompt, samples[1].expected) == ("what is [audio: a red square] this?", "a bark")


def test_the_same_weights_give_the_same_samples_and_the_random_state_is_left_alone(
    model: NextGPT, tokenizer: Any
) -> None:
    sampler, rows = Sampler(model, tokenizer, **BUDGET), [row(REQUEST)]
    state = torch.get_rng_state()
    one, two = sampler(rows), sampler(rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [sample.text for sample in one] == [sample.text for sample in two]
    first, second = (by_modality(samples)[Modality.IMAGE].medium for samples in (one, two))
    assert isinstance(first, Image)
    assert isinstance(second, Image)
    assert np.array_equal(first.pixels, second.pixels)


def test_a_decoder_that_is_absent_leaves_the_text_and_is_told_once(
    tiny: ModelConfig, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {
        m: output.model_copy(update={"decoder": "/nowhere/sd"}) if m is Modality.IMAGE else output
        for m, output in tiny.outputs.items()
    }
    model = NextGPT.from_config(tiny.model_copy(update={"outputs": outputs}))
    sampler = Sampler(model, tokenizer, **BUDGET)
    for _ in range(2):
        samples = by_modality(sampler([row(REQUEST)]))
        assert samples[Modality.IMAGE].medium is None
        assert isinstance(samples[Modality.AUDIO].medium, Audio)
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 1
    assert notes[0].startswith("note: image samples are text only: /nowhere/sd: ")


def test_what_goes_wrong_with_a_sample_is_told_and_ends_nothing(
    model: NextGPT, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {**row(CAPTION), "encoder": np.zeros((1, 7), np.float32)}
    assert Sampler(model, tokenizer, **BUDGET)([broken]) == []
    assert model.training
    [note] = capsys.readouterr().out.splitlines()
    assert note.startswith("note: no image sample: features are 7 wide")
