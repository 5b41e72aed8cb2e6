"""Generates replies: constrained decoding in batches, and the conditions of the items in the replies.

Suffixes: B rows, T tokens, H LLM width, V vocabulary, N input items, E encoder width, M output modalities, L and D
length and width of a condition.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.core.batch import Example, collate
from model.core.dialogue import IGNORE, EncodedDialogue, encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import eos_ids, special_ids
from model.inference.answers import Answer, Detokenizer, Limits
from model.inference.constraint import Constraints
from model.inference.decoding import Decoding, Draw, Row
from model.inference.query import Sampling, TooLong
from pipelines.sample import Item, Modality, Part, Turn

Condition = tuple[Modality, npt.NDArray[np.float32]]
OnPart = Callable[[int, Part], None]
_NO_LIMIT = 1 << 30
_DIALOGUES_AT_ONCE = 32  # batch size for computing conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A dialogue that ends with a user turn, the media that its answer must contain, and sampling settings.

    `features` (N, E) are the encoder's embeddings of the named input items, in order.
    """

    turns: Sequence[Turn]
    features: npt.NDArray[np.floating] | None = None
    require: Sequence[Modality] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: its text, its parts in order, and each item's modality and condition, float32 (L, D).

    `prompt_tokens` and `tokens` count the tokens read and generated; `was_cut` is true if the length limit ended it.
    """

    text: str
    parts: tuple[Part, ...]
    conditions: list[Condition]
    prompt_tokens: int
    tokens: int
    was_cut: bool


def generate(
    model: NextGPT,
    tokenizer: Any,
    turns: Sequence[Turn],
    features: npt.NDArray[np.floating] | None,
    *,
    require: Sequence[Modality] = (),
    **sampling: Any,
) -> Reply:
    """Answers one prompt with `Sampling(**sampling)`: `generate_batch` with a batch of one."""
    prompt = Prompt(turns=turns, features=features, require=require, sampling=Sampling(**sampling))
    [reply] = generate_batch(model, tokenizer, [prompt])
    return reply


def generate_batch(
    model: NextGPT, tokenizer: Any, prompts: Sequence[Prompt], *, on_part: OnPart | None = None
) -> list[Reply]:
    """Answers prompts as a batch, each as it would be answered alone.

    Signal tokens are generated in whole groups only; required items that the model did not generate are added at the
    end. If a dialogue exceeds the LLM's context, the oldest exchanges are dropped. `on_part` receives the row and each
    part of its reply once final: pieces of text, which concatenate to the reply's text, and items, in order.

    Raises ValueError if features and items differ in number, the model has no signal tokens for a required modality,
    `max_new_tokens` has no room for the required items, or the last turn alone exceeds the LLM's context.
    """
    was_training = model.training
    if was_training:  # switching every module takes as long as a token
        model.eval()
    try:
        generator = Generator(model, tokenizer)
        for row, prompt in enumerate(prompts):
            try:
                generator.add(prompt, partial(on_part, row) if on_part else None)
            except ValueError as error:
                raise ValueError(f"prompt {row + 1}: {error}" if len(prompts) > 1 else str(error)) from None
        replies: dict[int, Reply] = {}
        while not generator.is_idle:
            replies |= generator.step()
    finally:
        if was_training:
            model.train()
    return [replies[row] for row in range(len(prompts))]


@dataclass(slots=True)
class _Asked:
    """An encoded prompt, and its unfinished answer."""

    example: Example
    row: Row


class Generator:
    """Answers prompts as they arrive: waiting prompts join the batch at the next token, up to `at_once` in total.

    Each is answered as it would be alone, up to rounding. The model must be in evaluation mode; not thread-safe.
    """

    def __init__(self, model: NextGPT, tokenizer: Any, *, at_once: int | None = None) -> None:
        self._model, self._tokenizer, self._at_once = model, tokenizer, at_once
        self._ends, self._detokenizer = eos_ids(tokenizer, model.llm), Detokenizer(tokenizer)
        self._decoding = Decoding(model, set(special_ids(tokenizer)) - self._ends)
        self._constraints = Constraints(tokenizer, model.vocabulary.total_size)
        self._waiting: dict[int, _Asked] = {}
        self._running: dict[int, _Asked] = {}
        self._count = 0

    @property
    def is_idle(self) -> bool:
        """Whether there are no prompts left."""
        return not self._waiting and not self._running

    def add(self, prompt: Prompt, on_part: Callable[[Part], None] | None = None) -> int:
        """Queues a prompt; returns its number, counted from 0. Raises ValueError as `generate_batch` does."""
        _check(self._model, prompt)
        example = _example(self._model, self._tokenizer, prompt)
        limits = self._limits(prompt)
        answer = Answer(self._detokenizer, self._model.vocabulary, limits, prompt.require, on_part)
        self._waiting[self._count] = _Asked(example, Row(answer, Draw(prompt.sampling)))
        self._count += 1
        return self._count - 1

    def drop(self, number: int) -> None:
        """Cancels a prompt."""
        self._waiting.pop(number, None)
        if asked := self._running.pop(number, None):
            self._decoding.drop(asked.row)

    @torch.inference_mode()
    def step(self) -> dict[int, Reply]:
        """Advances by one token; returns the newly completed replies, by number."""
        if self._decoding.rows:
            self._decoding.step()
        self._admit()
        done = {number: asked for number, asked in self._running.items() if not asked.row.answer.unread}
        for number in done:
            del self._running[number]
        if not done:
            return {}
        conditions = _conditions(
            self._model,
            [asked.example for asked in done.values()],
            [asked.row.answer for asked in done.values()],
            self._detokenizer,
        )
        return {number: _reply(asked, items) for (number, asked), items in zip(done.items(), conditions, strict=True)}

    def _limits(self, prompt: Prompt) -> Limits:
        tokens, items, schema = prompt.sampling.max_new_tokens, prompt.sampling.max_items, prompt.sampling.schema
        return Limits(
            max_new_tokens=tokens,
            max_items=0 if schema else tokens if items is None else items,
            ends=self._ends,
            constraint=self._constraints(schema) if schema else None,
        )

    def _admit(self) -> None:
        room = len(self._waiting) if self._at_once is None else self._at_once - len(self._running)
        if not self._decoding.is_open or room < 1:
            return
        joining = dict(list(self._waiting.items())[:room])
        for number in joining:
            del self._waiting[number]
        self._running |= joining
        asked = list(joining.values())
        self._decoding.join([one.example for one in asked], [one.row for one in asked])


def _reply(asked: _Asked, conditions: list[Condition]) -> Reply:
    parts, answer = asked.row.answer.parts(), asked.row.answer
    return Reply(
        text=" ".join(part for part in parts if isinstance(part, str)),
        parts=parts,
        conditions=conditions,
        prompt_tokens=len(asked.example.dialogue.input_ids),
        tokens=sum(len(run.ids) for run in answer.runs),
        was_cut=answer.was_cut,
    )


def _check(model: NextGPT, prompt: Prompt) -> None:
    items, given = _num_inputs(prompt.turns), 0 if prompt.features is None else len(prompt.features)
    if items != given:
        raise ValueError(f"features for {given} items, but the turns contain {items} named ones; give one for each")
    for modality in prompt.require:
        if modality not in model.vocabulary.groups:
            raise ValueError(f"require: the model has no signal tokens for {modality.value}; leave it out")
    if prompt.require and prompt.sampling.schema:
        raise ValueError("require: an answer with a schema cannot contain items; drop one of the two")
    needed = max(1, sum(model.vocabulary.groups[modality] for modality in prompt.require))
    if (given := prompt.sampling.max_new_tokens) < needed:
        raise ValueError(f"max_new_tokens is {given}, but the reply needs at least {needed}; raise it")


def _num_inputs(turns: Sequence[Turn]) -> int:
    return sum(
        isinstance(part, Item) and bool(part.name) for turn in turns if turn.role == "user" for part in turn.parts
    )


def _example(model: NextGPT, tokenizer: Any, prompt: Prompt) -> Example:
    """Encodes the dialogue, with as many of its latest exchanges as fit into the LLM's context."""
    longest = int(getattr(model.llm.config, "max_position_embeddings", None) or _NO_LIMIT)
    room = longest - prompt.sampling.max_new_tokens
    num_input_tokens = model.config.input_projection.num_input_tokens
    turns, features = prompt.turns, prompt.features
    while True:
        dialogue = encode_dialogue(turns, tokenizer, model.vocabulary, num_input_tokens, _NO_LIMIT, for_generation=True)
        if len(dialogue.input_ids) <= room:
            return Example(key="prompt", dialogue=dialogue, features_NE=features)
        if len(turns) < 3:
            raise TooLong(f"the last turn takes {len(dialogue.input_ids)} tokens, at most {room} fit; shorten it")
        features = None if features is None else features[_num_inputs(turns[:2]) :]
        turns = turns[2:]


def _conditions(
    model: NextGPT, examples: Sequence[Example], answers: Sequence[Answer], detokenizer: Detokenizer
) -> list[list[Condition]]:
    """Runs dialogues with items through the training forward pass; returns the conditions of each one's items."""
    conditions: list[list[Condition]] = [[] for _ in answers]
    whole = {}
    for row, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        if any(run.modality for run in answer.runs):
            whole[row] = _whole(model, example, answer, detokenizer)
    for start in range(0, len(whole), _DIALOGUES_AT_ONCE):
        rows = list(whole)[start : start + _DIALOGUES_AT_ONCE]
        batch = collate([whole[row] for row in rows]).to(model.new_input_rows.weight.device)
        remaining = {
            modality: iter(values.float().cpu().numpy()) for modality, values in model(batch).conditions.items()
        }
        for row in rows:
            order = [item.modality for item, *_ in whole[row].dialogue.output_groups]
            conditions[row] = [(modality, next(remaining[modality])) for modality in order]
    return conditions


def _whole(model: NextGPT, prompt: Example, answer: Answer, detokenizer: Detokenizer) -> Example:
    """A prompt with its answer up to the last item, and dummy targets."""
    ids, groups = list(prompt.dialogue.input_ids), []
    for run in answer.runs[:-1]:  # a final text follows the last group
        if run.modality is not None:
            groups.append((Item(modality=run.modality), len(ids), len(run.ids)))
        ids += run.ids if run.modality else detokenizer.before_stop(run.ids)
    dialogue = EncodedDialogue(ids, [IGNORE] * len(ids), prompt.dialogue.input_positions, groups)
    counts = Counter(item.modality for item, *_ in groups)
    blank = {
        m: (np.zeros((counts[m], o.num_queries, o.dim), np.float32), [0] * counts[m])
        for m, o in model.config.outputs.items()
    }
    return Example(key=prompt.key, dialogue=dialogue, features_NE=prompt.features_NE, targets=blank)
