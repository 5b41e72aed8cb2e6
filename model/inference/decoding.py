"""The decoding loop: continuous batching, in which rows join and leave at any token.

Suffixes: B rows, T tokens, H LLM width, V vocabulary, M output modalities.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from model.core.batch import Example, collate
from model.core.nextgpt import NextGPT
from model.inference.answers import Answer
from model.inference.query import Sampling


class Draw:
    """How the tokens of an answer are sampled: its settings, and its own random generator."""

    def __init__(self, sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        # On the CPU, so that samples do not depend on the device.
        self._generator = torch.Generator("cpu").manual_seed(sampling.seed)

    def number(self) -> float:
        """The next random number, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64)) if self.temperature else 0.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A tokenized query, its unfinished answer, and how the answer's tokens are sampled: one row of a batch."""

    example: Example
    answer: Answer
    draw: Draw


@dataclass(slots=True)
class _Memory:
    """The LLM's key-value cache: `length` positions per row, of which the first `padding_B` are padding."""

    padding_B: Tensor
    length: int = 0
    cache: Any = None
    is_padded: bool = field(init=False)

    def __post_init__(self) -> None:
        self._pad(self.padding_B)

    def keep(self, places_B: Tensor) -> None:
        self._pad(self.padding_B[places_B])
        self.cache.reorder_cache(places_B)

    def _pad(self, padding_B: Tensor) -> None:
        # Computed once: on a GPU, reading a value waits for all pending work.
        self.padding_B, self.is_padded = padding_B, bool(padding_B.any())

    @property
    def is_plain(self) -> bool:
        """Whether all layers cache all positions, and nothing else."""
        return self.cache is None or all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def join(self, other: "_Memory") -> None:
        """Appends another cache's rows; the shorter cache is padded, and padding common to all rows is cut off."""
        width = max(self.length, other.length)
        for one in (self, other):
            one.padding_B = one.padding_B + (width - one.length)
        spare = int(torch.cat([self.padding_B, other.padding_B]).min())

        def joined(mine: Tensor, others: Tensor) -> Tensor:
            padded = (F.pad(tensor, (0, 0, width - tensor.shape[2], 0)) for tensor in (mine, others))
            return torch.cat([tensor[:, :, spare:] for tensor in padded])

        for layer, new in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys, layer.values = joined(layer.keys, new.keys), joined(layer.values, new.values)
        self._pad(torch.cat([self.padding_B, other.padding_B]) - spare)
        self.length = width - spare


class Decoding:
    """A batch of rows being answered.

    Prompts are left-padded, so that all rows read their next tokens at the same position. Completed rows leave; others
    may join at any time if the LLM's cache is a plain one (`is_open`).
    """

    def __init__(self, model: NextGPT, forbidden: Iterable[int]) -> None:
        self.model = model
        self.rows: list[Pending] = []
        self._device = model.new_input_rows.weight.device
        self._forbidden_V = torch.zeros(model.vocabulary.total_size, dtype=torch.bool, device=self._device)
        self._forbidden_V[list(forbidden)] = True
        self._openings_M = list(model.vocabulary.first_ids)
        self._closed_BM: list[tuple[bool, ...]] = []
        self._closed_BV = self._forbidden_V[None]
        self._memory = _Memory(torch.zeros(0, dtype=torch.long, device=self._device))

    @property
    def is_open(self) -> bool:
        """Whether new rows can join."""
        return not self.rows or self._memory.is_plain

    def join(self, rows: Sequence[Pending]) -> None:
        """Reads dialogues and chooses their first tokens; rows that are not complete then join the batch."""
        for row in rows:
            if not row.answer.room:
                row.answer.complete()
        joining = [row for row in rows if row.answer.room]
        if not joining:
            return
        embeds_BTH, padding_B = self._left_padded([row.example for row in joining])
        memory = _Memory(padding_B)
        hidden_BH = self._read(memory, embeds_BTH)
        self._choose(hidden_BH, joining)
        joining = _keep(memory, joining)
        if not joining:
            return
        if self.rows:
            self._memory.join(memory)
        else:
            self._memory = memory
        self.rows += joining

    def step(self) -> None:
        """Advances all rows: reads their unread tokens, and chooses the next ones."""
        hidden_BH = self._read(self._memory, self._next())
        # A row in the middle of a signal group has nothing to choose.
        choosing = [place for place, row in enumerate(self.rows) if not row.answer.unread]
        self._choose(hidden_BH[choosing], [self.rows[place] for place in choosing])
        self.rows = _keep(self._memory, self.rows)

    def drop(self, row: Pending) -> None:
        """Removes a row."""
        row.answer.unread = []
        self.rows = _keep(self._memory, self.rows)

    def _left_padded(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Left-padded embeddings of prompts (B, T, H), and the length of each row's padding (B)."""
        if not any(example.dialogue.input_positions for example in examples):
            return self._left_padded_words([example.dialogue.input_ids for example in examples])
        embeds_BTH = self.model.embed_batch(collate(examples).to(self._device))
        lengths_B = torch.tensor([len(example.dialogue.input_ids) for example in examples], device=self._device)
        padding_B = embeds_BTH.shape[1] - lengths_B
        places_T = torch.arange(embeds_BTH.shape[1], device=self._device)
        shifted_BT = (places_T - padding_B[:, None]) % len(places_T)
        return embeds_BTH.take_along_dim(shifted_BT[..., None], dim=1), padding_B

    def _left_padded_words(self, ids_B: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """As `_left_padded`, for prompts without media."""
        width = max(map(len, ids_B))
        padding_B = [width - len(ids) for ids in ids_B]
        ids_BT = [[0] * padding + [*ids] for padding, ids in zip(padding_B, ids_B, strict=True)]
        return self.model.embed(torch.tensor(ids_BT, device=self._device)), torch.tensor(padding_B, device=self._device)

    def _next(self) -> Tensor:
        """The embeddings of the next tokens to read: as many as every row has unread."""
        answers = [row.answer for row in self.rows]
        width = min(len(answer.unread) for answer in answers)
        ids_BT = [answer.unread[:width] for answer in answers]
        for answer in answers:
            answer.unread = answer.unread[width:]
        is_text = all(max(ids) < self.model.vocabulary.base_size for ids in ids_BT)
        return self.model.embed(torch.tensor(ids_BT, device=self._device), is_text=is_text)

    def _read(self, memory: _Memory, embeds_BTH: Tensor) -> Tensor:
        """Runs the LLM on embeddings; returns the last hidden states (B, H)."""
        options: dict[str, Any] = {"past_key_values": memory.cache, "use_cache": True}
        if memory.is_padded:
            places_T = torch.arange(memory.length + embeds_BTH.shape[1], device=self._device)
            options["position_ids"] = (places_T[memory.length :] - memory.padding_B[:, None]).clamp(min=0)
            options["attention_mask_BT"] = (places_T >= memory.padding_B[:, None]).long()
        output = self.model.run_llm(embeds_BTH, **options)
        memory.cache, memory.length = output.past_key_values, memory.length + embeds_BTH.shape[1]
        return output.last_hidden_state[:, -1]

    def _closed(self, rows: Sequence[Pending]) -> Tensor:
        """The mask of forbidden tokens (B, V), or (1, V) if the same for all rows; cached for the next token."""
        modalities = self.model.vocabulary.first_ids.values()
        closed_BM = [tuple(not row.answer.may_hold(modality) for modality in modalities) for row in rows]
        if len(set(closed_BM)) == 1:
            del closed_BM[1:]
        if closed_BM != self._closed_BM:
            self._closed_BM, self._closed_BV = closed_BM, self._forbidden_V.repeat(len(closed_BM), 1)
            self._closed_BV[:, self._openings_M] = torch.tensor(closed_BM, device=self._device)
        return self._closed_BV

    def _choose(self, hidden_BH: Tensor, rows: Sequence[Pending]) -> None:
        if not rows:
            return
        closed_BV = self._closed(rows)
        if any(row.answer.constraint for row in rows):
            closed_BV = closed_BV.repeat(len(rows) // len(closed_BV), 1)
            for place, row in enumerate(rows):
                if (allowed_V := row.answer.allowed) is not None:
                    closed_BV[place] = ~allowed_V.to(self._device)
        allowed_BV = self.model.logits(hidden_BH).float().masked_fill(closed_BV, -torch.inf)
        tokens_B = allowed_BV.argmax(dim=-1)
        if any(row.draw.temperature for row in rows):
            tokens_B = torch.where(*drawn(allowed_BV, [row.draw for row in rows]), tokens_B)
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            row.answer.take(token)


def drawn(logits_BV: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """Samples tokens: whether each row is sampled at all (B,), and its token (B,)."""
    numbers = [(draw.temperature, draw.top_p, draw.number()) for draw in draws]
    temperature_B, top_p_B, number_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device).unbind(1)
    drawn_B = temperature_B > 0
    probabilities_BV = torch.softmax(logits_BV.double() / temperature_B.where(drawn_B, 1)[:, None], dim=-1)
    if any(draw.top_p < 1 for draw in draws):
        sorted_BV = probabilities_BV.sort(dim=-1, descending=True).values
        last_B = (sorted_BV.cumsum(dim=-1) < top_p_B[:, None]).sum(dim=-1).clamp(max=sorted_BV.shape[1] - 1)
        least_B1 = sorted_BV.gather(1, last_B[:, None]).where(top_p_B[:, None] < 1, 0.0)
        probabilities_BV = probabilities_BV.where(probabilities_BV >= least_B1, 0.0)
    # Inverse transform sampling with one number per row: nothing of vocabulary size leaves the device.
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    found_B1 = torch.searchsorted(cumulative_BV, number_B[:, None] * cumulative_BV[:, -1:], right=True)
    return drawn_B, found_B1[:, 0]


def _keep(memory: _Memory, rows: list[Pending]) -> list[Pending]:
    """The rows that are not complete; the others are also removed from the cache."""
    stays = [bool(row.answer.unread) for row in rows]
    if all(stays) or not any(stays):
        return rows if all(stays) else []
    memory.keep(torch.tensor(stays, device=memory.padding_B.device).nonzero()[:, 0])
    return [row for row, stay in zip(rows, stays, strict=True) if stay]
