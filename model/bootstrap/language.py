"""Trains a small LLM on text dialogues, so that it can later read media from single vectors.

Shape suffixes: B rows, T tokens, H width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.bootstrap.loop import train
from model.core.dialogue import encode_dialogue
from model.core.tokenizer import encode_text
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Item, Modality, Part, Turn

_IN_ONE = 0.7  # share of items given as one vector, not in words
_NOISE = 0.1  # on such a vector, relative to its standard deviation
_BLANKS = {Modality.IMAGE: 4, Modality.VIDEO: 8, Modality.AUDIO: 4}
_IGNORE = -100
_USERS_WEIGHT = 0.1  # of a user's token relative to an answer's: questions cannot be predicted


@dataclass(frozen=True, slots=True)
class _Row:
    """A dialogue's ids, labels of its answers, labels of all its text, and items as positions and caption ids."""

    ids: list[int]
    answers: list[int]
    labels: list[int]
    items: list[tuple[int, list[int]]]


def train_llm(
    llm: Any, tokenizer: Any, dialogues: Sequence[Sequence[Turn]], *, steps: int, batch_size: int, state: Path
) -> None:
    """Trains a causal LM on dialogues whose items are given by their captions.

    A large LLM can read a projected vector in its embedding space; a small one must learn that such a vector can hold a
    whole caption: here an item is the sum of its caption's token embeddings, or the caption in words. Items in answers
    are placeholder tokens, later replaced by signal tokens. User turns have a small weight.
    """
    vocabulary = SignalVocabulary(llm.config.vocab_size, _BLANKS)
    rows = [_row(tokenizer, vocabulary, turns, number) for number, turns in enumerate(dialogues)]
    rows.sort(key=lambda row: len(row.ids))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows) - batch_size + 1, batch_size)]

    def loss(generator: torch.Generator) -> Tensor:
        batch = batches[int(torch.randint(len(batches), (), generator=generator))]
        ids_BT = _padded([row.ids for row in batch], 0)
        labels_BT = _padded([row.labels for row in batch], _IGNORE)[:, 1:]
        answers_BT = _padded([row.answers for row in batch], _IGNORE)[:, 1:]
        logits = llm(inputs_embeds=_embed(llm, ids_BT, [row.items for row in batch], generator)).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=_IGNORE, reduction="none")
        weights = (
            torch.where(answers_BT != _IGNORE, 1.0, _USERS_WEIGHT).masked_fill(labels_BT == _IGNORE, 0.0).flatten()
        )
        return (losses * weights).sum() / weights.sum()

    train(state.stem, llm, loss, steps=steps, learning_rate=3e-3, state=state)


@torch.no_grad()
def token_accuracy(llm: Any, tokenizer: Any, dialogues: Sequence[Sequence[Turn]]) -> float:
    """The next-token accuracy on answers."""
    vocabulary = SignalVocabulary(llm.config.vocab_size, _BLANKS)
    right = total = 0
    for number, turns in enumerate(dialogues):
        row = _row(tokenizer, vocabulary, turns, number)
        embeds_BTH = _embed(llm, torch.tensor([row.ids]), [row.items], torch.Generator().manual_seed(number))
        best = llm(inputs_embeds=embeds_BTH).logits[0, :-1].argmax(-1)
        wanted = torch.tensor(row.answers[1:])
        right += int((best == wanted).sum())
        total += int((wanted != _IGNORE).sum())
    return right / total


def _padded(rows: Sequence[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def _row(tokenizer: Any, vocabulary: SignalVocabulary, turns: Sequence[Turn], number: int) -> _Row:
    draws = torch.rand(64, generator=torch.Generator().manual_seed(number)).tolist()
    shown = [_shown(turn, draws) for turn in turns]
    dialogue = encode_dialogue(shown, tokenizer, vocabulary, 1, 1024)
    hidden = {place for _, place in dialogue.input_positions}

    def of_the_base(ids: list[int]) -> list[int]:
        return [
            _IGNORE if token >= vocabulary.base_size or place in hidden else token for place, token in enumerate(ids)
        ]

    items = [(place, encode_text(tokenizer, f" {item.caption}")) for item, place in dialogue.input_positions]
    return _Row(dialogue.input_ids, of_the_base(dialogue.labels), of_the_base(dialogue.input_ids), items)


def _shown(turn: Turn, draws: list[float]) -> Turn:
    """Randomly turns the user's items into captions, and drops the assistant's."""
    parts: list[Part] = []
    for part in turn.parts:
        if isinstance(part, Item) and draws.pop() >= _IN_ONE:
            if turn.role == "user":
                parts.append(Item(modality=part.modality, caption=part.caption))
            continue
        parts.append(part)
    return Turn(role=turn.role, parts=tuple(parts))


def _embed(llm: Any, ids_BT: Tensor, items: list[list[tuple[int, list[int]]]], generator: torch.Generator) -> Tensor:
    """Embeddings of base tokens, and their mean for new ones, around which the new rows are drawn later."""
    table = llm.get_input_embeddings().weight
    new_BT = ids_BT >= len(table)
    embeds_BTH = torch.where(new_BT[..., None], table.mean(0), table[ids_BT.masked_fill(new_BT, 0)])
    rows, places, vectors = [], [], []
    for row, found in enumerate(items):
        for place, caption in found:
            vector = table[caption].sum(0) / len(caption) ** 0.5
            noise = torch.randn(vector.shape, generator=generator) * vector.detach().std() * _NOISE
            rows.append(row)
            places.append(place)
            vectors.append(vector + noise)
    if not vectors:
        return embeds_BTH
    return embeds_BTH.index_put((torch.tensor(rows), torch.tensor(places)), torch.stack(vectors))
