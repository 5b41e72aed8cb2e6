"""Replies: constrained decoding in batches, and the conditions of the items that the replies hold.

Suffixes: B rows, T tokens, H LLM width, V vocabulary, N input items, E encoder width, M output modalities, L and D
length and width of a condition.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.answers import Answer, Detokenizer, Limits
from model.batch import Example, collate
from model.dialogue import IGNORE, Dialogue, encode_dialogue
from model.nextgpt import NextGPT
from model.query import Sampling
from model.tokenizer import eos_ids, special_ids
from pipelines.sample import Item, Modality, Part, Turn

Condition = tuple[Modality, npt.NDArray[np.float32]]
OnPart = Callable[[int, Part], None]
_NO_LIMIT = 1 << 30
_DIALOGUES_AT_ONCE = 32  # whose conditions are computed in one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A dialogue that ends in a user's turn, the media that its answer must hold, and how to draw that one.

    `features` (N, E) are the encoder's embeddings of the named input items in the order they stand.
    """

    turns: Sequence[Turn]
    features: npt.NDArray[np.floating] | None = None
    require: Sequence[Modality] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: its text, its parts in order, and each item's modality and condition, float32 (L, D)."""

    text: str
    parts: tuple[Part, ...]
    conditions: list[Condition]


def generate(
    model: NextGPT,
    tokenizer: Any,
    turns: Sequence[Turn],
    features: npt.NDArray[np.floating] | None,
    *,
    require: Sequence[Modality] = (),
    **sampling: Any,
) -> Reply:
    """Answers one prompt, drawn as `Sampling(**sampling)` says: `generate_batch` of it alone."""
    prompt = Prompt(turns=turns, features=features, require=require, sampling=Sampling(**sampling))
    [reply] = generate_batch(model, tokenizer, [prompt])
    return reply


def generate_batch(
    model: NextGPT, tokenizer: Any, prompts: Sequence[Prompt], *, on_part: OnPart | None = None
) -> list[Reply]:
    """Answers prompts side by side, each as it would be alone.

    Signal tokens come in whole groups or not at all; required items that the model did not bring forth itself are added
    at the end. The oldest exchanges are left out where a dialogue is longer than the LLM reads. `on_part` is told the
    row and what has become certain of its reply: pieces of text, which joined are the reply's text, and items where
    they stand.

    Raises ValueError when features and items differ in number, the model has no signal tokens for a required modality,
    `max_new_tokens` has no room for the required items, or the last turn alone is longer than the LLM reads.
    """
    examples = _examples(model, tokenizer, prompts)
    ends, detokenizer = eos_ids(tokenizer, model.llm), Detokenizer(tokenizer)
    answers = [
        Answer(
            detokenizer,
            model.vocabulary,
            _limits(prompt.sampling, ends),
            prompt.require,
            partial(on_part, row) if on_part else None,
        )
        for row, prompt in enumerate(prompts)
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            decoding = _Decoding(model, set(special_ids(tokenizer)) - ends)
            decoding.run(examples, answers, [_Draw(prompt.sampling) for prompt in prompts])
            conditions = _conditions(model, examples, answers, detokenizer)
    finally:
        model.train(was_training)
    return [_reply(answer.parts(), items) for answer, items in zip(answers, conditions, strict=True)]


def _limits(sampling: Sampling, ends: set[int]) -> Limits:
    tokens = sampling.max_new_tokens
    return Limits(
        max_new_tokens=tokens, max_items=tokens if sampling.max_items is None else sampling.max_items, ends=ends
    )


def _reply(parts: tuple[Part, ...], conditions: list[Condition]) -> Reply:
    return Reply(text=" ".join(part for part in parts if isinstance(part, str)), parts=parts, conditions=conditions)


def _examples(model: NextGPT, tokenizer: Any, prompts: Sequence[Prompt]) -> list[Example]:
    examples = []
    for row, prompt in enumerate(prompts):
        try:
            _check(model, prompt)
            examples.append(_example(model, tokenizer, prompt))
        except ValueError as error:
            raise ValueError(f"prompt {row + 1}: {error}" if len(prompts) > 1 else str(error)) from None
    return examples


def _check(model: NextGPT, prompt: Prompt) -> None:
    items, given = _num_inputs(prompt.turns), 0 if prompt.features is None else len(prompt.features)
    if items != given:
        raise ValueError(f"features of {given} items given, but the turns hold {items} named ones; give one for each")
    for modality in prompt.require:
        if modality not in model.vocabulary.groups:
            raise ValueError(f"require: the model has no signal tokens for {modality.value}; leave it out")
    needed = max(1, sum(model.vocabulary.groups[modality] for modality in prompt.require))
    if (given := prompt.sampling.max_new_tokens) < needed:
        raise ValueError(f"max_new_tokens is {given}, but the reply takes at least {needed}; raise it")


def _num_inputs(turns: Sequence[Turn]) -> int:
    return sum(
        isinstance(part, Item) and bool(part.name) for turn in turns if turn.role == "user" for part in turn.parts
    )


def _example(model: NextGPT, tokenizer: Any, prompt: Prompt) -> Example:
    """The dialogue so far, with as many of its latest exchanges as the LLM has positions for."""
    longest = int(getattr(model.llm.config, "max_position_embeddings", None) or _NO_LIMIT)
    room = longest - prompt.sampling.max_new_tokens
    num_input_tokens = model.config.input_projection.num_input_tokens
    turns, features = prompt.turns, prompt.features
    while True:
        dialogue = encode_dialogue(turns, tokenizer, model.vocabulary, num_input_tokens, _NO_LIMIT, for_generation=True)
        if len(dialogue.input_ids) <= room:
            return Example(key="prompt", dialogue=dialogue, features_NE=features)
        if len(turns) < 3:
            raise ValueError(f"the last turn takes {len(dialogue.input_ids)} tokens of {room}; shorten it")
        features = None if features is None else features[_num_inputs(turns[:2]) :]
        turns = turns[2:]


class _Draw:
    """Where the next token of an answer comes from: its settings, and its own random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        # On the CPU, so that the draws do not depend on the device.
        self._generator = torch.Generator("cpu").manual_seed(sampling.seed)

    def number(self) -> float:
        """The next of them, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64)) if self.temperature else 0.0


class _Decoding:
    """The loop over tokens, with the LLM's cache of keys and values.

    Prompts are padded on the left, so that all rows read their next tokens at the same place. A row that is complete
    leaves the batch.
    """

    def __init__(self, model: NextGPT, forbidden: Iterable[int]) -> None:
        self.model = model
        self.device = model.new_input_rows.weight.device
        self.forbidden_V = torch.zeros(model.vocabulary.total_size, dtype=torch.bool, device=self.device)
        self.forbidden_V[list(forbidden)] = True
        self.openings_M = list(model.vocabulary.first_ids)
        self.cache: Any = None
        self.length = 0  # of what the cache holds, padding included
        self.padding_B = torch.zeros(0, dtype=torch.long)

    def run(self, examples: Sequence[Example], answers: Sequence[Answer], draws: Sequence[_Draw]) -> None:
        """Completes the answers."""
        rows = [row for row, answer in enumerate(answers) if answer.room]
        for answer in answers:
            if not answer.room:
                answer.complete()
        embeds_BTH = self._left_padded([examples[row] for row in rows]) if rows else None
        while embeds_BTH is not None:
            hidden_BH = self._read(embeds_BTH)
            # A row in the midst of its group has nothing to choose.
            choosing = [place for place, row in enumerate(rows) if not answers[row].unread]
            chosen = [rows[place] for place in choosing]
            tokens = self._choose(hidden_BH[choosing], [answers[r] for r in chosen], [draws[r] for r in chosen])
            for row, token in zip(chosen, tokens, strict=True):
                answers[row].take(token)
            rows = self._keep(rows, [bool(answers[row].unread) for row in rows])
            embeds_BTH = self._next([answers[row] for row in rows]) if rows else None

    def _left_padded(self, examples: Sequence[Example]) -> Tensor:
        """The embeddings of prompts (B, T, H), which all end in the last column."""
        embeds_BTH = self.model.embed_batch(collate(examples).to(self.device))
        lengths_B = torch.tensor([len(example.dialogue.input_ids) for example in examples], device=self.device)
        self.padding_B = embeds_BTH.shape[1] - lengths_B
        places_T = torch.arange(embeds_BTH.shape[1], device=self.device)
        shifted_BT = (places_T - self.padding_B[:, None]) % len(places_T)
        return embeds_BTH.take_along_dim(shifted_BT[..., None], dim=1)

    def _next(self, answers: Sequence[Answer]) -> Tensor:
        """The embeddings of what all rows have to read: one token, or as much as is left of everyone's group."""
        width = min(len(answer.unread) for answer in answers)
        ids_BT = [answer.unread[:width] for answer in answers]
        for answer in answers:
            answer.unread = answer.unread[width:]
        return self.model.embed(torch.tensor(ids_BT, device=self.device))

    def _read(self, embeds_BTH: Tensor) -> Tensor:
        """Feeds embeddings to the LLM; returns the last hidden states (B, H)."""
        places_T = torch.arange(self.length + embeds_BTH.shape[1], device=self.device)
        positions_BT = (places_T[self.length :] - self.padding_B[:, None]).clamp(min=0)
        output = self.model.run_llm(
            embeds_BTH,
            (places_T >= self.padding_B[:, None]).long(),
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache, self.length = output.past_key_values, len(places_T)
        return output.last_hidden_state[:, -1]

    def _choose(self, hidden_BH: Tensor, answers: Sequence[Answer], draws: Sequence[_Draw]) -> list[int]:
        if not answers:
            return []
        logits_BV = self.model.logits(hidden_BH).float()
        modalities = self.model.vocabulary.first_ids.values()
        closed_BM = torch.tensor([[not answer.may_hold(m) for m in modalities] for answer in answers], dtype=torch.bool)
        allowed_BV = logits_BV.masked_fill(self.forbidden_V, -torch.inf)
        allowed_BV[:, self.openings_M] = logits_BV[:, self.openings_M].masked_fill(
            closed_BM.to(self.device), -torch.inf
        )
        likeliest_B = allowed_BV.argmax(dim=-1)
        if not any(draw.temperature for draw in draws):
            return likeliest_B.tolist()
        return torch.where(*_drawn(allowed_BV, draws), likeliest_B).tolist()

    def _keep(self, rows: list[int], kept: list[bool]) -> list[int]:
        if all(kept):
            return rows
        places = torch.tensor([place for place, stays in enumerate(kept) if stays], device=self.device)
        if len(places):
            self.padding_B = self.padding_B[places]
            self.cache.reorder_cache(places)
        return [row for row, stays in zip(rows, kept, strict=True) if stays]


def _drawn(logits_BV: Tensor, draws: Sequence[_Draw]) -> tuple[Tensor, Tensor]:
    """Whether a row is drawn at all (B,), and the token that it draws (B,)."""
    numbers = [(draw.temperature, draw.top_p, draw.number()) for draw in draws]
    temperature_B, top_p_B, number_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device).unbind(1)
    drawn_B = temperature_B > 0
    probabilities_BV = torch.softmax(logits_BV.double() / temperature_B.where(drawn_B, 1)[:, None], dim=-1)
    if any(draw.top_p < 1 for draw in draws):
        sorted_BV = probabilities_BV.sort(dim=-1, descending=True).values
        last_B = (sorted_BV.cumsum(dim=-1) < top_p_B[:, None]).sum(dim=-1).clamp(max=sorted_BV.shape[1] - 1)
        least_B1 = sorted_BV.gather(1, last_B[:, None]).where(top_p_B[:, None] < 1, 0.0)
        probabilities_BV = probabilities_BV.where(probabilities_BV >= least_B1, 0.0)
    # One number a row, looked up in the distribution: nothing as long as a vocabulary leaves the device.
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    found_B1 = torch.searchsorted(cumulative_BV, number_B[:, None] * cumulative_BV[:, -1:], right=True)
    return drawn_B, found_B1[:, 0]


def _conditions(
    model: NextGPT, examples: Sequence[Example], answers: Sequence[Answer], detokenizer: Detokenizer
) -> list[list[Condition]]:
    """Runs the dialogues that hold items once as training does; returns the conditions of each one's items."""
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
    """A prompt with its answer up to the last item, and blank targets."""
    ids, groups = list(prompt.dialogue.input_ids), []
    for run in answer.runs[:-1]:  # after the last group there is one more text
        if run.modality is not None:
            groups.append((Item(modality=run.modality), len(ids), len(run.ids)))
        ids += run.ids if run.modality else detokenizer.before_stop(run.ids)
    dialogue = Dialogue(ids, [IGNORE] * len(ids), prompt.dialogue.input_positions, groups)
    counts = Counter(item.modality for item, *_ in groups)
    blank = {
        m: (np.zeros((counts[m], o.num_queries, o.dim), np.float32), [0] * counts[m])
        for m, o in model.config.outputs.items()
    }
    return Example(key=prompt.key, dialogue=dialogue, features_NE=prompt.features_NE, targets=blank)
