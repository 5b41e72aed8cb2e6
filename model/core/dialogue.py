"""Turns to token ids, labels and item positions: one function for training and inference."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from model.core.chat_template import ChatTemplate, Script, chat_template
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Item, Part, Turn

IGNORE = -100  # the label of a position without loss


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
    """Text, a special token's id, or an item with tokens of its own; `learned` if it is part of an answer."""

    content: Part | int
    learned: bool


def encode_dialogue(
    turns: Sequence[Turn],
    tokenizer: Any,
    vocabulary: SignalVocabulary,
    num_input_tokens: int,
    max_length: int,
    *,
    template: ChatTemplate | None = None,
    system: str = "",
    for_generation: bool = False,
) -> EncodedDialogue:
    """Encodes a dialogue as `template` writes it, by default in Vicuna v0's layout.

    That is `### Human: ... \\n### Assistant: ... \\n### Human: ...`. `system` holds the words of the system, for a
    template that takes them (`ChatTemplate.without_system`).
    A named input item becomes `<Img>`, `num_input_tokens` placeholders (whose embeddings are overwritten) and `</Img>`;
    an unnamed one becomes its caption as text. An output item becomes its modality's signal tokens. The labels cover
    the answers, their signal tokens and the template's end of an answer. A dialogue longer than `max_length` is
    truncated at the end, but never inside an item or a group of signal tokens. With `for_generation` the dialogue must
    end with a user turn and is not truncated; it begins every longer one with the same turns.

    Raises ValueError if turns do not alternate, an answer holds an item of a modality without signal tokens, or a
    dialogue for generation is too long.
    """
    _check(turns, vocabulary, for_generation)
    template = template or chat_template("vicuna_v0", tokenizer)
    dialogue = EncodedDialogue([], [], [], [])
    limit = None if for_generation else max_length
    for piece, ids in _encoded(_layout(turns, template, system), template, tokenizer, vocabulary, num_input_tokens):
        if not _append(dialogue, piece, ids, limit):
            break
    if len(dialogue.input_ids) > max_length:
        raise ValueError(f"the dialogue takes {len(dialogue.input_ids)} tokens, at most {max_length} fit; shorten it")
    return dialogue


def dialogue_lengths(
    turns: Sequence[Turn],
    tokenizer: Any,
    vocabulary: SignalVocabulary,
    num_input_tokens: int,
    max_length: int,
    *,
    template: ChatTemplate | None = None,
    system: str = "",
) -> tuple[int, int]:
    """A dialogue's length in tokens, truncated to `max_length` and in full; raises as `encode_dialogue`."""

    def length(most: int) -> int:
        dialogue = encode_dialogue(
            turns, tokenizer, vocabulary, num_input_tokens, most, template=template, system=system
        )
        return len(dialogue.input_ids)

    full = length(sys.maxsize)
    return (full if full <= max_length else length(max_length)), full


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


def _layout(turns: Sequence[Turn], template: ChatTemplate, system: str) -> Iterator[_Piece]:
    for number, turn in enumerate(turns):
        learned = turn.role == "assistant"
        contents = list[Part | int](_spoken(turn, template.lead if learned else ""))
        if learned:
            contents += template.end
        elif number:
            contents = [*template.between, *contents, *template.opening]
        else:
            contents = [*_head(template, system), *contents, *template.opening]
        yield from _merged(contents, learned)
        if learned:
            yield from _merged(template.tail, False)


def _head(template: ChatTemplate, system: str) -> Script:
    if template.system is None or not system:
        return template.head
    before, after = template.system
    return (*before, system.strip(), *after)


def _spoken(turn: Turn, lead: str) -> Iterator[Part]:
    """A turn's parts: texts stripped, the first behind `lead` and others behind a space; items with their own tokens.

    An item without a medium is its caption.
    """
    space = lead
    for part in turn.parts:
        if isinstance(part, Item) and (part.name or turn.role == "assistant"):
            yield part
        elif text := (part.caption if isinstance(part, Item) else part).strip():
            yield f"{space}{text}"
        else:
            continue
        space = " "


def _merged(contents: Sequence[Part | int], learned: bool) -> Iterator[_Piece]:
    """The pieces of a turn; texts that follow each other are one."""
    for is_text, group in groupby(contents, key=lambda content: isinstance(content, str)):
        if is_text:
            yield _Piece("".join(map(str, group)), learned)
        else:
            yield from (_Piece(content, learned) for content in group)


def _encoded(
    pieces: Iterable[_Piece],
    template: ChatTemplate,
    tokenizer: Any,
    vocabulary: SignalVocabulary,
    num_input_tokens: int,
) -> Iterator[tuple[_Piece, list[int]]]:
    """Pieces with their tokens; texts that follow each other are encoded together."""
    before: Part | int | None = None
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece.content, str)):
        run = list(group)
        if is_text:
            yield from zip(run, template.encode([str(piece.content) for piece in run], before), strict=True)
        for piece in run:
            if isinstance(piece.content, int):
                yield piece, [piece.content]
            elif isinstance(piece.content, Item) and piece.learned:
                yield piece, list(vocabulary.group(piece.content.modality))
            elif isinstance(piece.content, Item):
                placeholders = [_placeholder(tokenizer)] * num_input_tokens
                yield piece, [vocabulary.begin_item, *placeholders, vocabulary.end_item]
        before = run[-1].content


def _append(dialogue: EncodedDialogue, piece: _Piece, ids: list[int], limit: int | None) -> bool:
    """Appends a piece, or as much of it as fits within `limit`; returns False if anything was left out."""
    start = len(dialogue.input_ids)
    room = len(ids) if limit is None else limit - start
    whole, item = len(ids) <= room, piece.content
    if not isinstance(item, Item):
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
