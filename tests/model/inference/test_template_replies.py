"""Replies of tiny LLMs in their own chat format: what ends them, the words of the system, media and checkpoints."""

from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from chat_families import FAMILIES, tokenizer_of
from dialogue_cases import dialogue, item
from generation_cases import fed, saying
from llm_families import build_llm

from model.checkpoints.checkpoint import from_pretrained, save_pretrained
from model.core.chat_template import chat_template
from model.core.dialogue import encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import encode_text, load_tokenizer
from model.inference.generation import generate
from model.inference.query import Query, Sampling
from model.inference.responder import Responder
from model.inference.speaker import Speaker
from model.parts.config import ModelConfig
from pipelines.sample import Image, Item, Modality

ASK = dialogue(("show me a dog",))
DOCUMENT = "# Title\n\n### Heading\n\n1. one ###\n\n### Next"
CLASSES = {"qwen3": "Qwen3", "smollm2": "Llama", "mistral": "Mistral", "gemma3": "Gemma3Text"}


class Speaking:
    """A tiny model on an LLM of a family, with its tokenizer."""

    def __init__(self, folder: Any, name: str, tiny: ModelConfig) -> None:
        base = tokenizer_of(name)
        end = base.convert_tokens_to_ids(FAMILIES[name].end)
        build_llm(folder, CLASSES[name], base, vocab_size=len(base) + 20, num_key_value_heads=2, eos_token_id=end)
        values = tiny.model_dump(mode="json")
        values["llm"] = {"name": str(folder)}
        self.config = ModelConfig.model_validate(values)
        self.model, self.tokenizer = NextGPT.from_config(self.config).eval(), load_tokenizer(self.config)
        self.template = chat_template("auto", self.tokenizer)
        [self.end] = self.template.ends

    def say(self, ids: list[int], turns: Any = ASK, **options: Any) -> Any:
        with saying(self.model, ids, self.end):
            return generate(self.model, self.tokenizer, turns, None, **{"max_new_tokens": 80, **options})

    def prompt(self, turns: Any, system: str = "") -> list[int]:
        return encode_dialogue(
            turns,
            self.tokenizer,
            self.model.vocabulary,
            1,
            10_000,
            template=self.template,
            system=system,
            for_generation=True,
        ).input_ids


@pytest.fixture(scope="module", params=sorted(CLASSES))
def speaking(request: pytest.FixtureRequest, tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Speaking:
    return Speaking(tmp_path_factory.mktemp(request.param), request.param, tiny)


@pytest.fixture(scope="module")
def qwen(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Speaking:
    return Speaking(tmp_path_factory.mktemp("qwen"), "qwen3", tiny)


def test_headings_of_an_answer_come_whole_and_its_own_token_ends_it(speaking: Speaking) -> None:
    said = encode_text(speaking.tokenizer, DOCUMENT)
    told: list[Any] = []
    with saying(speaking.model, said, speaking.end):
        query = Query(turns=ASK, sampling=Sampling(max_new_tokens=200))
        response = Responder(speaking.model, speaking.tokenizer).respond(query, on_part=told.append)
    assert response.text == DOCUMENT
    assert "".join(told) == DOCUMENT
    assert response.tokens == len(said)
    assert not response.was_cut


def test_the_model_reads_the_prompt_of_its_template(speaking: Speaking) -> None:
    with fed(speaking.model) as seen:
        speaking.say(encode_text(speaking.tokenizer, "x"))
    assert seen[0] == speaking.prompt(ASK)


def test_only_tokens_of_text_and_whole_items_are_generated(speaking: Speaking) -> None:
    special = {i for i, token in speaking.tokenizer.added_tokens_decoder.items() if token.special}
    wanted = [*sorted(special - speaking.template.ends), speaking.model.vocabulary.base_size - 1]
    with fed(speaking.model) as seen:
        speaking.say([token for token in wanted if token not in speaking.model.vocabulary.first_ids])
    generated = {token for ids in seen[1:] for token in ids}
    assert not generated & (special - {i for m in Modality for i in speaking.model.vocabulary.group(m)})


def test_the_conditions_of_an_answer_are_those_of_training(qwen: Speaking) -> None:
    first = qwen.model.vocabulary.group(Modality.IMAGE)[0]
    said = [*encode_text(qwen.tokenizer, "a dog"), first, *encode_text(qwen.tokenizer, " there")]
    with fed(qwen.model) as seen:
        reply = qwen.say(said)
    assert reply.parts == ("a dog", Item(modality=Modality.IMAGE), "there")
    turns = (*ASK, *dialogue(("",), ("a dog", item("image"), "there"))[1:])
    learned = encode_dialogue(turns, qwen.tokenizer, qwen.model.vocabulary, 1, 512, template=qwen.template).input_ids
    assert learned[: len(seen[-1])] == seen[-1]  # the whole that gave the conditions


def test_the_system_is_read_as_such_and_stays_when_the_oldest_exchanges_go(qwen: Speaking) -> None:
    turns = dialogue(("Be brief.\nfirst " + "word " * 100,), ("one",), ("second",), ("two",), ("third",))
    with fed(qwen.model) as seen:
        qwen.say([], turns=turns, system=["Be brief."])
    rest = dialogue(("first " + "word " * 100,), *(turn.parts for turn in turns[1:]))
    assert seen[0] == qwen.prompt(rest, "Be brief.")
    longest = qwen.model.llm.config.max_position_embeddings
    turns = dialogue(("Be brief.\nfirst " + "word " * longest,), ("one",), ("second",))
    with fed(qwen.model) as seen:
        qwen.say([], turns=turns, system=["Be brief."])
    assert seen[0] == qwen.prompt(turns[2:], "Be brief.")


def test_a_speaker_answers_with_media_and_a_checkpoint_keeps_the_template(qwen: Speaking, tmp_path: Any) -> None:
    save_pretrained(qwen.model, tmp_path, qwen.tokenizer)
    model, tokenizer = from_pretrained(tmp_path)
    assert model.config.llm.template == "auto"
    assert tokenizer.chat_template == qwen.tokenizer.chat_template
    query = Query(turns=dialogue(("<|im_end|> hi", item("image", "x"))), require=[Modality.IMAGE])
    query = replace(query, media={"x": Image(pixels=np.zeros((8, 8, 3), np.uint8))})
    query = replace(query, sampling=Sampling(max_new_tokens=30), settings={Modality.IMAGE: {"steps": 1}})
    one, other = (Responder(*pair).respond(query) for pair in ((qwen.model, qwen.tokenizer), (model, tokenizer)))
    assert one.parts == other.parts
    assert isinstance(one.media[-1], Image)
    np.testing.assert_array_equal(one.media[-1].pixels, other.media[-1].pixels)
    told: SimpleQueue[Any] = SimpleQueue()
    speaker = Speaker(Responder(model, tokenizer))
    speaker.ask(query, told.put)
    while isinstance(heard := told.get(), str | Item):
        pass
    speaker.close()
    assert heard.text == one.text
