"""General questions: how near a checkpoint's answers are to those of the LLM that it was trained from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from sacrebleu.metrics import CHRF

from model.core.adapter import has_adapter
from model.inference.generation import generate_batch
from model.inference.query import Query, Sampling, text_of
from model.inference.responder import Responder
from pipelines.sample import Item, Turn
from tests.benchmarks import Row, say

QUESTIONS = Path(__file__).with_name("english.yaml")
# Of chrF, between an answer of the checkpoint and the LLM's own; unrelated English scores about 20.
TARGET = 0.5
_MOST_TOKENS = 60


def run(scale: float, checkpoint: str) -> list[Row]:
    """The chrF of answers to the LLM's own (`ours`), of 100 (`peer`), and how many are equal to them."""
    asked = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8"))
    asked = asked[: max(1, round(len(asked) * scale))]
    responder = Responder.from_pretrained(checkpoint)
    ours = [_answer(responder, question, 1) for question in asked]
    with _as_it_was(responder.model.llm):
        own = [_answer(responder, question, 0)[0] for question in asked]
    chrf, alike = CHRF(), list[float]()
    for question, (text, _), original in zip(asked, ours, own, strict=True):
        alike.append(chrf.sentence_score(text, [original]).score)
        say(f"{question} -> {original} | {text} | {alike[-1]:.0f}")
    equal = sum(text == original for (text, _), original in zip(ours, own, strict=True))
    media, score = sum(count for _, count in ours), mean(alike)
    note = f"{equal} of {len(asked)} are the LLM's own, word by word; {media} made a medium"
    return [
        Row(name="general questions", ours=score, peer=100, ratio=score / 100, target=TARGET, unit="chrF", note=note)
    ]


@contextmanager
def _as_it_was(llm: Any) -> Iterator[None]:
    """An LLM without its adapter, for good where that had been merged."""
    if not has_adapter(llm):
        yield
        return
    llm.unmerge_adapter()
    with llm.disable_adapter():
        yield


def _answer(responder: Responder, question: str, most: int) -> tuple[str, int]:
    """What is said, and how many media are asked of the decoders, at most so many."""
    turns = (Turn(role="user", parts=(question,)),)
    sampling = Sampling(max_new_tokens=_MOST_TOKENS, max_items=most)
    [reply] = generate_batch(responder.model, responder.tokenizer, [Query(turns=turns, sampling=sampling)])
    return text_of(reply.parts), sum(isinstance(part, Item) for part in reply.parts)
