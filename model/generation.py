"""Replies: constrained decoding, and the conditions of the items that a reply holds.

Suffixes: V vocabulary, N input items, E encoder width, M output items of a modality, L and D length and width of a
condition.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batch import Example, collate
from model.dialogue import IGNORE, STOP, Dialogue, encode_dialogue
from model.nextgpt import NextGPT
from model.tokenizer import eos_ids, special_ids
from pipelines.sample import Item, Modality, Part, Turn

Condition = tuple[Modality, npt.NDArray[np.float32]]
_NO_LIMIT = 1 << 30
_STOP_WINDOW = 8  # tokens that surely hold the whole of "###", however a tokenizer cuts it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: its text, its parts in order, and each item's modality and condition, float32 (L, D)."""

    text: str
    parts: tuple[Part, ...]
    conditions: list[Condition]


@dataclass(slots=True)
class _Run:
    """A stretch of an answer: the tokens of a text, or a whole group of signal tokens of `modality`."""

    modality: Modality | None
    ids: list[int] = field(default_factory=list)


def generate(
    model: NextGPT,
    tokenizer: Any,
    turns: Sequence[Turn],
    features: npt.NDArray[np.floating] | None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    require: Sequence[Modality] = (),
    max_items: int | None = None,
) -> Reply:
    """Answers a dialogue that ends in a user's turn.

    `features` (N, E) are the encoder's embeddings of the named input items in the order they stand. At `temperature` 0
    the likeliest token is taken, else one is drawn from `seed`. Signal tokens come in whole groups or not at all; the
    items of `require` that the model did not bring forth itself are added at the end. A reply holds at most `max_items`
    items (required ones always), so that a model that repeats itself does not fill it with media. The oldest exchanges
    are left out where the dialogue is longer than the LLM reads.

    Raises ValueError when features and items differ in number, the model has no signal tokens for a required modality,
    `max_new_tokens` has no room for the required items, or the last turn alone is longer than the LLM reads.
    """
    _check(model, turns, features, max_new_tokens, temperature, require)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            prompt = _prompt(model, tokenizer, list(turns), features, max_new_tokens)
            answer = _Decoding(model, tokenizer, temperature, seed).run(
                prompt, max_new_tokens, Counter(require), max_new_tokens if max_items is None else max_items
            )
            parts = _parts(answer, tokenizer)
            conditions = _conditions(model, prompt, answer, tokenizer)
    finally:
        model.train(was_training)
    return Reply(text=" ".join(part for part in parts if isinstance(part, str)), parts=parts, conditions=conditions)


def _check(
    model: NextGPT,
    turns: Sequence[Turn],
    features: npt.NDArray[np.floating] | None,
    max_new_tokens: int,
    temperature: float,
    require: Sequence[Modality],
) -> None:
    items, given = _num_inputs(turns), 0 if features is None else len(features)
    if items != given:
        raise ValueError(f"features of {given} items given, but the turns hold {items} named ones; give one for each")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; use 0 for the likeliest tokens, or more to draw them")
    for modality in require:
        if modality not in model.vocabulary.groups:
            raise ValueError(f"require: the model has no signal tokens for {modality.value}; leave it out")
    needed = max(1, sum(model.vocabulary.groups[modality] for modality in require))
    if max_new_tokens < needed:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, but the reply takes at least {needed}; raise it")


def _num_inputs(turns: Sequence[Turn]) -> int:
    return sum(
        isinstance(part, Item) and bool(part.name) for turn in turns if turn.role == "user" for part in turn.parts
    )


def _prompt(
    model: NextGPT,
    tokenizer: Any,
    turns: list[Turn],
    features: npt.NDArray[np.floating] | None,
    max_new_tokens: int,
) -> Example:
    """The dialogue so far, with as many of its latest exchanges as the LLM has positions for."""
    room = int(getattr(model.llm.config, "max_position_embeddings", None) or _NO_LIMIT) - max_new_tokens
    num_input_tokens = model.config.input_projection.num_input_tokens
    while True:
        dialogue = encode_dialogue(turns, tokenizer, model.vocabulary, num_input_tokens, _NO_LIMIT, for_generation=True)
        if len(dialogue.input_ids) <= room:
            return Example(key="prompt", dialogue=dialogue, features_NE=features)
        if len(turns) < 3:
            raise ValueError(f"the last turn takes {len(dialogue.input_ids)} tokens of {room}; shorten it")
        features = None if features is None else features[_num_inputs(turns[:2]) :]
        turns = turns[2:]


class _Decoding:
    """The loop over tokens, with the LLM's cache of keys and values."""

    def __init__(self, model: NextGPT, tokenizer: Any, temperature: float, seed: int) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.device = model.new_input_rows.weight.device
        # On the CPU, so that the draws do not depend on the device.
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.eos = eos_ids(tokenizer, model.llm)
        self.forbidden_V = torch.zeros(model.vocabulary.total_size, dtype=torch.bool)
        self.forbidden_V[[i for i in special_ids(tokenizer) if i not in self.eos]] = True
        self.cache: Any = None

    def run(self, prompt: Example, max_new_tokens: int, required: Counter[Modality], max_items: int) -> list[_Run]:
        """The answer's runs; the last text may end in the stop mark."""
        spare = max_items - required.total()
        logits_V = self._read(self.model.embed_batch(collate([prompt]).to(self.device)))
        groups, answer, room = self.model.vocabulary.groups, [_Run(None)], max_new_tokens
        while room > (reserved := sum(groups[modality] for modality in required.elements())):
            token = self._choose(logits_V, self._openings(room - reserved if spare > 0 else 0, required))
            if token in self.eos:
                break
            modality = self.model.vocabulary.first_ids.get(token)
            if modality is None:
                answer[-1].ids.append(token)
                if _stops(answer[-1], self.tokenizer):
                    break
                ids = [token]
            else:
                ids = list(self.model.vocabulary.group(modality))
                answer += [_Run(modality, ids), _Run(None)]
                spare -= not required[modality]
                required = required - Counter([modality])
            room -= len(ids)
            if room:
                logits_V = self._read(self.model.embed(torch.tensor([ids], device=self.device)))
        return answer + [_Run(m, list(self.model.vocabulary.group(m))) for m in required.elements()]

    def _openings(self, free: int, required: Counter[Modality]) -> set[int]:
        """The first signal tokens whose group has room, be it the room kept for a required item."""
        vocabulary = self.model.vocabulary
        return {i for i, m in vocabulary.first_ids.items() if required[m] or vocabulary.groups[m] <= free}

    def _read(self, embeds: Tensor) -> Tensor:
        """Feeds embeddings (1, T, H) to the LLM; returns the next token's logits on the CPU."""
        output = self.model.run_llm(embeds, past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        return self.model.logits(output.last_hidden_state[0, -1]).float().cpu()

    def _choose(self, logits_V: Tensor, openings: set[int]) -> int:
        forbidden_V = self.forbidden_V.clone()
        forbidden_V[list(openings)] = False
        logits_V = logits_V.masked_fill(forbidden_V, -torch.inf)
        if self.temperature == 0:
            return int(logits_V.argmax())
        probabilities_V = torch.softmax(logits_V / self.temperature, dim=-1)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def _text(run: _Run, tokenizer: Any) -> str:
    """A text without the stop mark and the space before it."""
    return str(tokenizer.decode(run.ids, skip_special_tokens=True)).rstrip().removesuffix(STOP).rstrip()


def _without_stop(run: _Run, tokenizer: Any) -> list[int]:
    """The tokens of a text before the stop mark: what training has before a signal group."""
    ids = list(run.ids)
    if run.modality is None and _stops(run, tokenizer):
        text = _text(run, tokenizer)
        while ids and not _ends_within(str(tokenizer.decode(ids, skip_special_tokens=True)), text):
            ids.pop()
    return ids


def _ends_within(beginning: str, text: str) -> bool:
    return text.startswith(beginning) and beginning == beginning.rstrip()


def _stops(run: _Run, tokenizer: Any) -> bool:
    """Whether a text has come to the stop mark, in whatever tokens."""
    return str(tokenizer.decode(run.ids[-_STOP_WINDOW:])).rstrip().endswith(STOP)


def _parts(answer: list[_Run], tokenizer: Any) -> tuple[Part, ...]:
    parts = [Item(modality=run.modality) if run.modality else _text(run, tokenizer).strip() for run in answer]
    return tuple(part for part in parts if part)


def _conditions(model: NextGPT, prompt: Example, answer: list[_Run], tokenizer: Any) -> list[Condition]:
    """Runs the whole dialogue once as training does, and projects the states of the answer's groups."""
    ids, groups, order = list(prompt.dialogue.input_ids), [], []
    for run in answer:
        if run.modality is not None:
            groups.append((Item(modality=run.modality), len(ids), len(run.ids)))
            order.append(run.modality)
        ids += _without_stop(run, tokenizer)
    if not groups:
        return []
    ids = ids[: groups[-1][1] + groups[-1][2]]
    dialogue = Dialogue(ids, [IGNORE] * len(ids), prompt.dialogue.input_positions, groups)
    blank = {
        m: (np.zeros((order.count(m), o.num_queries, o.dim), np.float32), [0] * order.count(m))
        for m, o in model.config.outputs.items()
    }
    example = Example(key="reply", dialogue=dialogue, features_NE=prompt.features_NE, targets=blank)
    projected = model(collate([example]).to(model.new_input_rows.weight.device)).conditions
    remaining = {modality: iter(values.float().cpu().numpy()) for modality, values in projected.items()}
    return [(modality, next(remaining[modality])) for modality in order]
