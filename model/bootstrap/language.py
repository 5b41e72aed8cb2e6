"""Trains a small LLM on dialogues in words alone, so that it can later be told of media in one vector.

Shape suffixes: B rows, T tokens, H width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.bootstrap.loop import train
from model.dialogue import encode_dialogue
from model.tokenizer import encode_text
from model.vocabulary import SignalVocabulary
from pipelines.sample import Item, Modality, Part, Turn

_IN_ONE = 0.7  # share of items that stand in one vector, not in words
_NOISE = 0.1  # on such a vector, in its own deviations
_BLANKS = {Modality.IMAGE: 4, Modality.VIDEO: 8, Modality.AUDIO: 4}
_IGNORE = -100

Row = tuple[list[int], list[int], list[tuple[int, list[int]]]]


def train_llm(
    llm: Any, tokenizer: Any, dialogues: Sequence[Sequence[Turn]], *, steps: int, batch_size: int, state: Path
) -> None:
    """Trains a causal LM on dialogues whose items are given by their captions.

    A large LLM reads what it is shown in a vector of its embedding space; a small one has to be taught that such a
    vector can hold a whole caption: here an item stands as the sum of the embeddings of its caption's tokens, or as
    the caption in words. Where an answer holds an item, tokens without a meaning stand, in which signal tokens will.
    """
    vocabulary = SignalVocabulary(llm.config.vocab_size, _BLANKS)
    rows = sorted((_row(tokenizer, vocabulary, turns, number) for number, turns in enumerate(dialogues)), key=_length)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows) - batch_size + 1, batch_size)]

    def loss(generator: torch.Generator) -> Tensor:
        batch = batches[int(torch.randint(len(batches), (), generator=generator))]
        width = max(len(ids) for ids, _, _ in batch)
        ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in batch])
        labels_BT = torch.tensor([labels + [_IGNORE] * (width - len(labels)) for _, labels, _ in batch])
        embeds_BTH = _embed(llm, ids_BT, [items for _, _, items in batch], generator)
        logits = llm(inputs_embeds=embeds_BTH).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=_IGNORE)

    train(state.stem, llm, loss, steps=steps, learning_rate=2e-3, state=state)


@torch.no_grad()
def token_accuracy(llm: Any, tokenizer: Any, dialogues: Sequence[Sequence[Turn]]) -> float:
    """The share of the tokens of answers that get the highest logit, given those before."""
    vocabulary = SignalVocabulary(llm.config.vocab_size, _BLANKS)
    right = total = 0
    for number, turns in enumerate(dialogues):
        ids, labels, items = _row(tokenizer, vocabulary, turns, number, answers=True)
        embeds_BTH = _embed(llm, torch.tensor([ids]), [items], torch.Generator().manual_seed(number))
        best = llm(inputs_embeds=embeds_BTH).logits[0, :-1].argmax(-1)
        wanted = torch.tensor(labels[1:])
        right += int((best == wanted).sum())
        total += int((wanted != _IGNORE).sum())
    return right / total


def _length(row: Row) -> int:
    return len(row[0])


def _row(
    tokenizer: Any, vocabulary: SignalVocabulary, turns: Sequence[Turn], number: int, *, answers: bool = False
) -> Row:
    """Ids, labels (all tokens of the base, or those of answers), and the places of items with their captions' ids."""
    draws = torch.rand(64, generator=torch.Generator().manual_seed(number)).tolist()
    shown = [_shown(turn, draws) for turn in turns]
    dialogue = encode_dialogue(shown, tokenizer, vocabulary, 1, 1024)
    hidden = {place for _, place in dialogue.input_positions}
    labels = [
        _IGNORE if token >= vocabulary.base_size or place in hidden else token
        for place, token in enumerate(dialogue.labels if answers else dialogue.input_ids)
    ]
    items = [(place, encode_text(tokenizer, f" {item.caption}")) for item, place in dialogue.input_positions]
    return dialogue.input_ids, labels, items


def _shown(turn: Turn, draws: list[float]) -> Turn:
    """An item of the user's without a name is shown by its caption; one of the assistant's may be left out."""
    parts: list[Part] = []
    for part in turn.parts:
        if isinstance(part, Item) and draws.pop() >= _IN_ONE:
            if turn.role == "user":
                parts.append(Item(modality=part.modality, caption=part.caption))
            continue
        parts.append(part)
    return Turn(role=turn.role, parts=tuple(parts))


def _embed(llm: Any, ids_BT: Tensor, items: list[list[tuple[int, list[int]]]], generator: torch.Generator) -> Tensor:
    """Embeddings of the base tokens; their mean for every new one, about which the new rows will be drawn."""
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
