"""Tokens per second of our decoding loop, against transformers' `generate` on the same weights and prompts."""

from time import perf_counter
from typing import Any

import torch

from model.core.dialogue import encode_dialogue
from model.core.nextgpt import NextGPT
from model.inference.answers import Detokenizer
from model.inference.generation import generate_batch
from model.inference.query import Query, Sampling
from model.inference.responder import Responder
from model.parts.devices import best_device
from pipelines.sample import Turn
from tests.benchmarks import Row, compare

NEW_TOKENS = 48
REPEATS = 7
BATCHES = (1, 8, 32)
WORDS = ["red", "green", "blue", "yellow", "purple", "orange", "pink", "grey"]


def run(scale: float, checkpoint: str) -> list[Row]:
    """Tokens per second, for one prompt and for batches.

    The server merges the adapter into the weights; PEFT by default computes it separately.
    """
    loaded, served = (Responder.from_pretrained(checkpoint, device=best_device()) for _ in range(2))
    served.model.merge_adapter()
    for responder in (loaded, served):
        responder.model.eval()
        # Both generate up to the limit: the text does not matter, and they would stop at different tokens.
        _never_ends(responder.model)
    repeats = max(3, round(REPEATS * scale))
    return [
        _row(ours, peer, target, size, repeats)
        for ours, peer, target in ((served, loaded, 1.0), (served, served, None))
        for size in BATCHES
    ]


def _never_ends(model: NextGPT) -> None:
    Detokenizer.stops = lambda self, ids: False  # type: ignore[method-assign]
    model.llm.generation_config.eos_token_id = None


def _row(served: Responder, asked: Responder, target: float | None, size: int, repeats: int) -> Row:
    turns = [[Turn(role="user", parts=(f"Draw a {WORDS[place % len(WORDS)]} circle.",))] for place in range(size)]
    ours, peer = compare(
        lambda: _ours(served, turns), lambda: _peer(asked, turns), repeats, title=f"tokens/s, {size} at once"
    )
    name = "generate" if asked is not served else "generate, adapter merged there too"
    return Row(
        name=f"LLM as served, {size} at once / transformers' {name}",
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        target=target,
        unit="tokens/s",
        note=f"{NEW_TOKENS} tokens each, greedy, text to text; neither streams",
    )


def _ours(responder: Responder, turns: list[list[Turn]]) -> float:
    sampling = Sampling(max_new_tokens=NEW_TOKENS, max_items=0)
    prompts = [Query(turns=one, sampling=sampling) for one in turns]
    started = perf_counter()
    replies = generate_batch(responder.model, responder.tokenizer, prompts)
    seconds = perf_counter() - started
    assert all(reply.tokens == NEW_TOKENS for reply in replies)
    return len(turns) * NEW_TOKENS / seconds


def _peer(responder: Responder, turns: list[list[Turn]]) -> float:
    model, tokenizer = responder.model, responder.tokenizer
    rows = [
        encode_dialogue(one, tokenizer, model.vocabulary, 1, 10_000, for_generation=True).input_ids for one in turns
    ]
    width = max(map(len, rows))
    device = model.new_input_rows.weight.device
    started = perf_counter()
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    with torch.inference_mode():
        output: Any = model.llm.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        tokenizer.batch_decode(output[:, width:])
    seconds = perf_counter() - started
    assert output.shape[1] == width + NEW_TOKENS
    return len(turns) * NEW_TOKENS / seconds
