"""Turns to token ids, labels and item positions: one function for training and inference."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.core.tokenizer import encode_text
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Item, Part, Turn

IGNORE = -100  # the label of a position without loss
STOP = "###"  # ends an answer


@dataclass(frozen=True, slots=True)
class EncodedDialogue:
    """A tokenized dialogue; positions count from the first token.

    `input_positions` holds the position of each input item's first projected embedding, `output_groups` that of each
    output item's first signal token and the number of its signal tokens; both in dialogue order.
    """

    input_ids: list[int]
    labels: list[int]
    input_positions: list[tuple[Item, int]]
    output_groups: list[tuple[Item, int, int]]


@dataclass(slots=True)
class _Piece:
    """Text, or an item with tokens of its own; `learned` if it is part of an answer."""

    content: Part
    learned: bool


def encode_dialogue(
    turns: Sequence[Turn],
    tokenizer: Any,
    vocabulary: SignalVocabulary,
    num_input_tokens: int,
    max_length: int,
    *,
    for_generation: bool = False,
) -> EncodedDialogue:
    """Encodes a dialogue in Vicuna v0's layout: `### Human: ... \\n### Assistant: ... \\n### Human: ...`.

    The layout has no system turn; readers and the API put a system message into the user's turn
    (`speakers.with_system`).
    A named input item becomes `<Img>`, `num_input_tokens` placeholders (whose embeddings are overwritten) and `</Img>`;
    an unnamed one becomes its caption as text. An output item becomes its modality's signal tokens. The labels cover
    the answers, their signal tokens and the closing `\\n###`. A dialogue longer than `max_length` is truncated at the
    end, but never inside an item or a group of signal tokens. With `for_generation` the dialogue must end with a user
    turn and is not truncated.

    Raises ValueError if turns do not alternate, an answer holds an item of a modality without signal tokens, or a
    dialogue for generation is too long.
    """
    _check(turns, vocabulary, for_generation)
    bos = tokenizer.bos_token_id
    dialogue = EncodedDialogue([] if bos is None else [bos], [] if bos is None else [IGNORE], [], [])
    limit = None if for_generation else max_length
    for piece in _merged(_layout(turns)):
        if not _append(dialogue, piece, tokenizer, vocabulary, num_input_tokens, limit):
            break
    if len(dialogue.input_ids) > max_length:
        raise ValueError(f"the dialogue takes {len(dialogue.input_ids)} tokens, at most {max_length} fit; shorten it")
    return dialogue


def dialogue_lengths(
    turns: Sequence[Turn], tokenizer: Any, vocabulary: SignalVocabulary, num_input_tokens: int, max_length: int
) -> tuple[int, int]:
    """A dialogue's length in tokens, truncated to `max_length` and in full; raises as `encode_dialogue`."""
    full = len(encode_dialogue(turns, tokenizer, vocabulary, num_input_tokens, sys.maxsize).input_ids)
    if full <= max_length:
        return full, full
    return len(encode_dialogue(turns, tokenizer, vocabulary, num_input_tokens, max_length).input_ids), full


def _check(turns: Sequence[Turn], vocabulary: SignalVocabulary, for_generation: bool) -> None:
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise ValueError(f"turn {number + 1} is the {turn.role}'s; turns must alternate, starting with the user")
        for part in turn.parts:
            if turn.role == "assistant" and isinstance(part, Item) and part.modality not in vocabulary.groups:
                raise ValueError(f"turn {number + 1}: the model has no signal tokens for {part.modality.value}")
    last = "user" if for_generation else "assistant"
    if not turns or turns[-1].role != last:
        raise ValueError(f"the last turn must be the {last}'s")


def _layout(turns: Sequence[Turn]) -> Iterator[_Piece]:
    for number, turn in enumerate(turns):
        learned = turn.role == "assistant"
        if not learned:
            yield _Piece(f"{STOP} Human:" if number == 0 else " Human:", learned)
        parts = list(_spoken(turn))
        if not learned and (not parts or isinstance(parts[0], Item)):
            yield _Piece(" ", learned)
        for part in parts:
            yield _Piece(part, learned)
        yield _Piece(f"\n{STOP}" if learned else f"\n{STOP} Assistant:", learned)


def _spoken(turn: Turn) -> Iterator[Part]:
    """A turn's parts: texts stripped and prefixed with one space, items only where they have tokens of their own."""
    for part in turn.parts:
        if isinstance(part, Item) and (part.name or turn.role == "assistant"):
            yield part
            continue
        text = (part.caption if isinstance(part, Item) else part).strip()
        if text:
            yield f" {text}"


def _merged(pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """Joins adjacent texts, so that they are tokenized as one; never across the boundary of an answer."""
    pending: _Piece | None = None
    for piece in pieces:
        if (
            pending is not None
            and isinstance(pending.content, str)
            and isinstance(piece.content, str)
            and pending.learned == piece.learned
        ):
            pending = _Piece(pending.content + piece.content, piece.learned)
            continue
        if pending is not None:
            yield pending
        pending = piece
    if pending is not None:
        yield pending


def _append(
    dialogue: EncodedDialogue,
    piece: _Piece,
    tokenizer: Any,
    vocabulary: SignalVocabulary,
    num_input_tokens: int,
    limit: int | None,
) -> bool:
    """Appends a piece, or as much of it as fits within `limit`; returns False if anything was left out."""
    start = len(dialogue.input_ids)
    item = piece.content
    if isinstance(item, str):
        ids = encode_text(tokenizer, item)
    elif piece.learned:
        ids = list(vocabulary.group(item.modality))
    else:
        ids = [vocabulary.begin_item, *[_placeholder(tokenizer)] * num_input_tokens, vocabulary.end_item]
    room = len(ids) if limit is None else limit - start
    whole = len(ids) <= room
    if isinstance(item, str):
        ids = ids[:room]
    elif not whole:
        return False
    elif piece.learned:
        dialogue.output_groups.append((item, start, len(ids)))
    else:
        dialogue.input_positions.append((item, start + 1))
    dialogue.input_ids.extend(ids)
    dialogue.labels.extend(ids if piece.learned else [IGNORE] * len(ids))
    return whole


def _placeholder(tokenizer: Any) -> int:
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(i) for i in ids if i is not None)
