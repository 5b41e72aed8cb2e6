"""Prompts of many kinds, and a tiny model that answers them in many ways."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, dialogue

from model.inference.query import Query, Sampling
from pipelines.sample import Item, Modality

ASK = dialogue(("show me a dog",))
VIDEO, AUDIO, IMAGE = Modality.VIDEO, Modality.AUDIO, Modality.IMAGE


@contextmanager
def saying(model, ids, then):
    """Makes the model want to say `ids` one after another, and `then` ever after."""
    rest, original = iter(ids), model.logits

    def logits(hidden):
        values = original(hidden)
        if len(values):  # the next token's; a whole dialogue has no labels here
            values = values.clone()
            values[:, next(rest, then)] += 1e4
        return values

    model.logits = logits
    try:
        yield
    finally:
        del model.logits


@contextmanager
def fed(model):
    """Collects what the model reads: the prompt, then the answer piece by piece, then the whole if it holds items."""
    seen, original = [], model.embed

    def embed(ids_BT, **options):
        seen.append(ids_BT.flatten().tolist())
        return original(ids_BT, **options)

    model.embed = embed
    try:
        yield seen
    finally:
        del model.embed


def lively(model, tokenizer):
    """Makes signal tokens and the end so likely that replies differ in items and in length."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.vocabulary
    eos, width = tokenizer.eos_token_id, model.new_output_rows.weight.shape[1]
    with torch.no_grad():
        for token in vocabulary.first_ids:
            model.new_output_rows.weight[token - vocabulary.base_size] = 0.1 * torch.randn(width, generator=generator)
        model.llm.get_output_embeddings().weight[eos] = 0.06 * torch.randn(width, generator=generator)
    return model


def prompts_of_many_kinds(**sampling):
    """Query r is drawn from the seed r."""
    rng = np.random.default_rng(0)
    questions = ["hello", "show me a dog", "what is the sound of a large bell in the evening?", "###", "3"]
    prompts = [Query(turns=dialogue((question,))) for question in questions]
    for turns in (CAPTION[:1], MIXED[:1], MIXED[:3], REQUEST[:1]):
        inputs = sum(isinstance(part, Item) for turn in turns if turn.role == "user" for part in turn.parts)
        features = rng.standard_normal((inputs, 32)).astype(np.float32)
        prompts.append(Query(turns=turns, features=features, require=[AUDIO] if len(turns) > 1 else []))
    prompts.append(Query(turns=ASK, require=[VIDEO, IMAGE]))
    return [replace(prompt, sampling=Sampling(**{"seed": row, **sampling})) for row, prompt in enumerate(prompts)]


def assert_alike(found, expected):
    assert [reply.parts for reply in found] == [reply.parts for reply in expected]
    assert [reply.text for reply in found] == [reply.text for reply in expected]
    for one, other in zip(found, expected, strict=True):
        assert [modality for modality, _ in one.conditions] == [modality for modality, _ in other.conditions]
        for (_, condition), (_, alone) in zip(one.conditions, other.conditions, strict=True):
            np.testing.assert_allclose(condition, alone, atol=1e-4)
