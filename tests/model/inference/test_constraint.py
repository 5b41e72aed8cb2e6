"""Answers held to a schema: JSON of it whatever the model wants to say, with what is forced not asked for."""

import json
from dataclasses import replace
from typing import Any

import pytest
from dialogue_cases import dialogue
from generation_cases import assert_alike, lively, prompts_of_many_kinds
from llm_families import FAMILIES, family_config
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.inference.constraint import Constraints
from model.inference.generation import generate_batch
from model.inference.query import Query, Reply, Sampling
from model.parts.builtin import resolve
from model.parts.config import ModelConfig
from pipelines.sample import Modality
from pipelines.scheduling.tool_plans import schema

SHORT = {
    "type": "object",
    "properties": {"tool": {"enum": ["look", "listen"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["tool", "count"],
    "additionalProperties": False,
}


def asked(document: dict[str, Any] = SHORT, **sampling: Any) -> Query:
    options = {"max_new_tokens": 200, "schema": json.dumps(document), **sampling}
    return Query(turns=dialogue(("show me a dog",)), sampling=Sampling(**options))


def check(reply: Reply) -> None:
    document = json.loads(reply.text)
    assert list(document) == ["tool", "count"]
    assert document["tool"] in ("look", "listen")
    assert document["count"] in range(1, 10)
    assert reply.text == json.dumps(document, separators=(",", ":"))
    assert not reply.was_cut
    assert reply.conditions == []


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_whatever_the_model_wants_the_answer_is_json_of_the_schema(
    model: NextGPT, tokenizer: Any, temperature: float
) -> None:
    lively(model, tokenizer)
    prompts = [asked(temperature=temperature, seed=seed) for seed in range(8)]
    replies = generate_batch(model, tokenizer, prompts)
    for reply in replies:
        check(reply)
    assert temperature == 0 or len({reply.text for reply in replies}) > 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_llms_keeps_to_it(family: str, tiny: ModelConfig, tmp_path: Any) -> None:
    config = family_config(tmp_path, family, tiny, AutoTokenizer.from_pretrained(resolve(tiny.llm.name)))
    model, tokenizer = NextGPT.from_config(config), load_tokenizer(config)
    check(generate_batch(model, tokenizer, [asked()])[0])


def test_beside_answers_that_are_free_each_is_what_it_is_alone(model: NextGPT, tokenizer: Any) -> None:
    lively(model, tokenizer)
    prompts = [asked(), *prompts_of_many_kinds(max_new_tokens=48), asked(temperature=1.0, seed=3)]
    alone = [generate_batch(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert_alike(generate_batch(model, tokenizer, prompts), alone)
    check(alone[0])


def test_a_plan_is_read_as_it_was_written(model: NextGPT, tokenizer: Any) -> None:
    prompt = asked(schema(["image-1"]), temperature=2.0, max_new_tokens=400)
    for reply in generate_batch(
        model, tokenizer, [replace(prompt, sampling=replace(prompt.sampling, seed=s)) for s in range(6)]
    ):
        if not reply.was_cut:
            for step in json.loads(reply.text)["steps"]:
                assert list(step) == ["id", "tool", "needs", "input"]
                assert step["tool"] != "describe_image" or step["input"] == "image-1"


def test_what_must_follow_is_not_asked_for(tokenizer: Any) -> None:
    constraint = Constraints(tokenizer, len(tokenizer))(json.dumps(SHORT))
    ids = tokenizer.encode('{"tool":"look","count":3}', add_special_tokens=False)
    chosen = 0
    while not constraint.is_complete:
        allowed = constraint.allowed()
        assert allowed[ids[0]]
        token, chosen = ids.pop(0), chosen + 1
        for forced in constraint.take(token):
            assert forced == ids.pop(0)
    assert not ids
    assert chosen <= 5


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "document",
    [
        {"type": "object"},
        {"type": "array", "items": {"type": "string"}},
        {
            "type": "object",
            "properties": {"words": {"type": "string"}, "count": {"type": "integer"}, "size": {"type": "number"}},
            "required": ["words", "count", "size"],
            "additionalProperties": False,
        },
    ],
    ids=["any object", "strings", "numbers"],
)
def test_json_without_an_end_of_its_own_is_ended_in_time(
    model: NextGPT, tokenizer: Any, document: dict[str, Any], temperature: float
) -> None:
    lively(model, tokenizer)
    prompts = [asked(document, temperature=temperature, seed=seed, max_new_tokens=150) for seed in range(6)]
    for reply in generate_batch(model, tokenizer, prompts):
        assert not reply.was_cut
        assert isinstance(json.loads(reply.text), dict if document["type"] == "object" else list)


def test_an_answer_that_comes_to_its_limit_is_cut(model: NextGPT, tokenizer: Any) -> None:
    [reply] = generate_batch(model, tokenizer, [asked(max_new_tokens=5)])
    assert reply.was_cut
    assert reply.tokens == 5


def test_tokens_with_a_space_before_the_word_serve_as_well() -> None:
    """As Llama's: a mark for the space, and bytes for what no token has."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁{",
        '"',
        "tool",
        "look",
        "▁look",
    ]
    tokenizer = Tokenizer(
        models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    constraint = Constraints(fast, len(fast))(json.dumps(SHORT))
    allowed = {fast.convert_ids_to_tokens(int(token)) for token in constraint.allowed().nonzero()[:, 0]}
    assert allowed == {"▁", "▁{", "<0x20>", "<0x7B>"}
    written = fast.convert_tokens_to_ids("▁{")
    ids = [written, *constraint.take(written)]
    while not constraint.is_complete:
        token = int(constraint.allowed().nonzero()[0, 0])
        ids += [token, *constraint.take(token)]
    assert json.loads(fast.decode(ids))["tool"] in ("look", "listen")


@pytest.mark.parametrize("text", ["no json", "[1]", '{"type": "nonsense"}'])
def test_what_is_no_schema_is_refused(model: NextGPT, tokenizer: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"^schema: "):
        generate_batch(model, tokenizer, [replace(asked(), sampling=Sampling(schema=text))])


def test_it_holds_no_items(model: NextGPT, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="require: an answer with a schema cannot contain items"):
        generate_batch(model, tokenizer, [replace(asked(), require=[Modality.IMAGE])])
