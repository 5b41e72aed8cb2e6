"""Prompts that join others which are being answered: each gets the reply that it gets alone."""

from typing import Any

import pytest
from dialogue_cases import dialogue
from generation_cases import assert_alike, lively, prompts_of_many_kinds
from llm_families import FAMILIES, family_config
from transformers import AutoTokenizer

from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.inference.generation import Generator, generate_batch
from model.inference.query import Query, Reply, Sampling
from model.parts.builtin import resolve
from model.parts.config import ModelConfig
from pipelines.sample import Modality


def alone(model: NextGPT, tokenizer: Any, prompts: list[Query]) -> list[Reply]:
    return [generate_batch(model, tokenizer, [prompt])[0] for prompt in prompts]


def one_after_another(generator: Generator, prompts: list[Query], every: int) -> dict[int, Reply]:
    """Adds a prompt every few tokens."""
    replies: dict[int, Reply] = {}
    for prompt in prompts:
        generator.add(prompt)
        for _ in range(every):
            replies |= generator.step()
    while not generator.is_idle:
        replies |= generator.step()
    return replies


@pytest.mark.parametrize(("every", "at_once"), [(1, None), (7, None), (2, 3)])
def test_a_prompt_that_joins_late_gets_the_reply_that_it_gets_alone(
    every: int, at_once: int | None, model: NextGPT, tokenizer: Any
) -> None:
    lively(model, tokenizer).eval()
    prompts = prompts_of_many_kinds(max_new_tokens=50, temperature=0.7)
    replies = one_after_another(Generator(model, tokenizer, at_once=at_once), prompts, every)
    assert_alike([replies[number] for number in range(len(prompts))], alone(model, tokenizer, prompts))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_llms_lets_prompts_join_or_wait(family: str, tiny: ModelConfig, tmp_path: Any) -> None:
    config = family_config(tmp_path, family, tiny, AutoTokenizer.from_pretrained(resolve(tiny.llm.name)))
    model, tokenizer = NextGPT.from_config(config).eval(), load_tokenizer(config)
    prompts = prompts_of_many_kinds(max_new_tokens=48)
    replies = one_after_another(Generator(model, tokenizer), prompts, 3)
    assert_alike([replies[number] for number in range(len(prompts))], alone(model, tokenizer, prompts))


def test_what_rows_leave_behind_does_not_pile_up(model: NextGPT, tokenizer: Any) -> None:
    """Someone is always being answered, and yet the cache is no longer than what is read."""
    model.eval()
    generator = Generator(model, tokenizer)
    prompt = Query(turns=dialogue(("hello",)), require=[Modality.IMAGE], sampling=Sampling(max_new_tokens=20))
    longest = 0
    for _ in range(30):
        generator.add(prompt)
        for _ in range(4):
            generator.step()
        longest = max(longest, generator._decoding._memory.length)
    assert longest < 100
    assert not generator.is_idle


def test_a_prompt_that_is_dropped_is_not_answered_and_disturbs_nobody(model: NextGPT, tokenizer: Any) -> None:
    lively(model, tokenizer).eval()
    prompts = prompts_of_many_kinds(max_new_tokens=30)
    generator = Generator(model, tokenizer, at_once=len(prompts) - 1)
    numbers = [generator.add(prompt) for prompt in prompts]
    replies: dict[int, Reply] = generator.step()
    for number in (numbers[1], numbers[-1]):  # one that is being answered, one that waits
        assert number not in replies
        generator.drop(number)
        generator.drop(number)
    while not generator.is_idle:
        replies |= generator.step()
    kept = [number for number in numbers if number not in (numbers[1], numbers[-1])]
    assert sorted(replies) == kept
    assert_alike([replies[n] for n in kept], alone(model, tokenizer, [prompts[n] for n in kept]))
