"""Generates replies: constrained decoding in batches, and the conditions of the items in the replies.

Suffixes: B rows, T tokens, H LLM width, V vocabulary, N input items, E encoder width, M output modalities, L and D
length and width of a condition.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.core.batch import Example, collate
from model.core.chat_template import ChatTemplate, chat_template
from model.core.dialogue import IGNORE, EncodedDialogue, encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import eos_ids, special_ids
from model.inference.answers import Answer, AnswerLimits, Detokenizer
from model.inference.constraint import Constraints
from model.inference.decoding import Decoding, Draw, Pending
from model.inference.query import Condition, NoRoom, Query, Reply, Sampling, TooLong, text_of
from model.parts.features import Array, ItemFeatures, after, by_encoder, check_features, input_items
from pipelines.sample import Item, Modality, Part, Turn

OnPart = Callable[[int, Part], None]
_NO_LIMIT = 1 << 30
_DIALOGUES_AT_ONCE = 32  # batch size for computing conditions
_COUNTED_CHARACTERS = 1 << 20  # of one turn; the tokens of a longer one are not counted to say that it is too long


def generate(
    model: NextGPT,
    tokenizer: Any,
    turns: Sequence[Turn],
    features: ItemFeatures | Array | None,
    *,
    system: Sequence[str] = (),
    require: Sequence[Modality] = (),
    **sampling: Any,
) -> Reply:
    """Answers one query with `Sampling(**sampling)`: `generate_batch` with a batch of one."""
    query = Query(turns=turns, system=system, features=features, require=require, sampling=Sampling(**sampling))
    [reply] = generate_batch(model, tokenizer, [query])
    return reply


def generate_batch(
    model: NextGPT, tokenizer: Any, queries: Sequence[Query], *, on_part: OnPart | None = None
) -> list[Reply]:
    """Answers queries as a batch, each as it would be answered alone; their media are their `features`.

    Signal tokens are generated in whole groups only; required items that the model did not generate are added at the
    end. If a dialogue exceeds the LLM's context, the oldest exchanges are dropped, to leave `max_new_tokens` for the
    answer, or a quarter of the context if they are more; what is left is the limit of the answer. `on_part` receives
    the row and each part of its reply once final: pieces of text, which concatenate to the reply's text, and items, in
    order.

    Raises ValueError if features and items differ in number, the model has no signal tokens for a required modality,
    `max_new_tokens` has no room for the required items, or the last turn alone exceeds the LLM's context.
    """
    was_training = model.training
    if was_training:  # switching every module takes as long as a token
        model.eval()
    try:
        generator = Generator(model, tokenizer)
        for row, query in enumerate(queries):
            try:
                generator.add(query, partial(on_part, row) if on_part else None)
            except ValueError as error:
                raise ValueError(f"prompt {row + 1}: {error}" if len(queries) > 1 else str(error)) from None
        replies: dict[int, Reply] = {}
        while not generator.is_idle:
            replies |= generator.step()
    finally:
        if was_training:
            model.train()
    return [replies[row] for row in range(len(queries))]


class Generator:
    """Answers queries as they arrive: waiting ones join the batch at the next token, up to `at_once` in total.

    Each is answered as it would be alone, up to rounding. The model must be in evaluation mode; not thread-safe.
    """

    def __init__(self, model: NextGPT, tokenizer: Any, *, at_once: int | None = None) -> None:
        self._model, self._tokenizer, self._at_once = model, tokenizer, at_once
        template = chat_template(model.config.llm.template, tokenizer, model.config.llm.system)
        self._ends = eos_ids(tokenizer, model.llm) | template.ends
        self._detokenizer = Detokenizer(tokenizer, template.stop)
        self._decoding = Decoding(model, set(special_ids(tokenizer)) - self._ends)
        self._constraints = Constraints(tokenizer, model.vocabulary.total_size)
        self._context = _Context(model, tokenizer, template)
        self._waiting: dict[int, Pending] = {}
        self._running: dict[int, Pending] = {}
        self._count = 0

    @property
    def is_idle(self) -> bool:
        """Whether there are no queries left."""
        return not self._waiting and not self._running

    def add(self, query: Query, on_part: Callable[[Part], None] | None = None) -> int:
        """Queues a query; returns its number, counted from 0. Raises ValueError as `generate_batch` does."""
        _check(self._model, query)
        example = self._context.example(query)
        limits = self._limits(query, self._context.left(example))
        answer = Answer(self._detokenizer, self._model.vocabulary, limits, query.require, on_part)
        self._waiting[self._count] = Pending(example, answer, Draw(query.sampling))
        self._count += 1
        return self._count - 1

    def drop(self, number: int) -> None:
        """Cancels a query."""
        self._waiting.pop(number, None)
        if row := self._running.pop(number, None):
            self._decoding.drop(row)

    @torch.inference_mode()
    def step(self) -> dict[int, Reply]:
        """Advances by one token; returns the newly completed replies, by number."""
        if self._decoding.rows:
            self._decoding.step()
        self._admit()
        done = {number: row for number, row in self._running.items() if not row.answer.unread}
        for number in done:
            del self._running[number]
        if not done:
            return {}
        conditions = _conditions(self._model, list(done.values()), self._detokenizer)
        nulls = self._model.null_conditions()
        return {
            number: _reply(row, items, nulls) for (number, row), items in zip(done.items(), conditions, strict=True)
        }

    def _limits(self, query: Query, left: int) -> AnswerLimits:
        items, schema = query.sampling.max_items, query.sampling.schema
        tokens = min(query.sampling.max_new_tokens, left)
        return AnswerLimits(
            max_new_tokens=tokens,
            max_items=0 if schema else tokens if items is None else items,
            ends=self._ends,
            stops=query.sampling.stops,
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
        self._decoding.join(list(joining.values()))


def _reply(row: Pending, conditions: list[Condition], nulls: Mapping[Modality, Tensor]) -> Reply:
    return Reply(
        parts=row.answer.parts(),
        conditions=conditions,
        prompt_tokens=len(row.example.dialogue.input_ids),
        tokens=sum(len(run.ids) for run in row.answer.runs),
        was_cut=row.answer.was_cut,
        negatives={modality: null_LD.float().cpu().numpy() for modality, null_LD in nulls.items()},
    )


def _check(model: NextGPT, query: Query) -> None:
    check_features(by_encoder(query.features), input_items(query.turns))
    for modality in query.require:
        if modality not in model.vocabulary.groups:
            raise ValueError(f"require: the model has no signal tokens for {modality.value}; leave it out")
    if query.require and query.sampling.schema:
        raise ValueError("require: an answer with a schema cannot contain items; drop one of the two")
    needed = _needed(model, query)
    if (given := query.sampling.max_new_tokens) < needed:
        raise NoRoom(f"max_new_tokens is {given}, but the reply needs at least {needed}; raise it")


def _needed(model: NextGPT, query: Query) -> int:
    """The least number of tokens that hold the required items."""
    return max(1, sum(model.vocabulary.groups[modality] for modality in query.require))


class _Context:
    """The LLM's context: which part of a dialogue fits into it, and what that leaves for the answer."""

    def __init__(self, model: NextGPT, tokenizer: Any, template: ChatTemplate) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._longest = int(getattr(model.llm.config, "max_position_embeddings", None) or _NO_LIMIT)
        self._most_characters = self._longest * max(map(len, tokenizer.get_vocab()))

    def example(self, query: Query) -> Example:
        """Encodes the dialogue, with as many of its latest exchanges as fit beside the answer. Raises TooLong."""
        system, turns = self._template.without_system(query.turns, query.system)
        least = max(query.sampling.least_room, _needed(self._model, query))
        wanted = min(query.sampling.max_new_tokens, max(least, self._longest // 4))
        starts = self._starts(turns)
        # Long histories: each try encodes all that is left.
        place = bisect_left(
            starts, True, key=lambda start: self._length(turns[start:], system) <= self._longest - wanted
        )
        start = starts[min(place, len(starts) - 1)]
        dialogue, room = self._encoded(turns[start:], system), self._longest - least
        if len(dialogue.input_ids) > room:
            raise TooLong(f"the last turn takes {len(dialogue.input_ids)} tokens, at most {room} fit; shorten it")
        features = after(by_encoder(query.features), input_items(turns[:start]))
        return Example(key="prompt", dialogue=dialogue, features=features)

    def left(self, example: Example) -> int:
        """How many tokens an answer may have."""
        return self._longest - len(example.dialogue.input_ids)

    def _starts(self, turns: Sequence[Turn]) -> list[int]:
        """Where the dialogue may begin: before any exchange that is not too long at first sight, or the last turn."""
        starts, characters, last = list[int](), 0, (len(turns) - 1) // 2 * 2
        for start in range(last, -1, -2):
            characters += sum(len(text_of(turn.parts)) for turn in turns[start : start + 2])
            if start == last and characters > max(self._most_characters, _COUNTED_CHARACTERS):
                raise TooLong(f"the last turn has {characters} characters, at most {self._longest} tokens fit")
            if starts and (characters > self._most_characters or len(turns) - start > self._longest):
                break
            starts.append(start)
        return starts[::-1] or [0]

    def _length(self, turns: Sequence[Turn], system: str) -> int:
        return len(self._encoded(turns, system).input_ids)

    def _encoded(self, turns: Sequence[Turn], system: str) -> EncodedDialogue:
        num_input_tokens = self._model.config.input_projection.num_input_tokens
        vocabulary = self._model.vocabulary
        return encode_dialogue(
            turns,
            self._tokenizer,
            vocabulary,
            num_input_tokens,
            _NO_LIMIT,
            template=self._template,
            system=system,
            for_generation=True,
        )


def _conditions(model: NextGPT, done: Sequence[Pending], detokenizer: Detokenizer) -> list[list[Condition]]:
    """Runs dialogues with items through the training forward pass; returns the conditions of each one's items."""
    conditions: list[list[Condition]] = [[] for _ in done]
    whole = {}
    for row, pending in enumerate(done):
        if any(run.modality for run in pending.answer.runs):
            whole[row] = _whole(model, pending.example, pending.answer, detokenizer)
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
    return Example(key=prompt.key, dialogue=dialogue, features=prompt.features, targets=blank)
