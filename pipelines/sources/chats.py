"""Chats in content parts, as most of today's data sets and APIs write them, with media in any turn.

`{"messages": [{"role": "user", "content": [{"type": "text", "text": "..."}, {"type": "image", "image": "a.jpg"}]}]}`
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sample import Item, Modality, Part, Reject, Role, Sample
from pipelines.sources import rows, turn_parts
from pipelines.sources.entry import Entry
from pipelines.sources.turn_parts import Pool
from pipelines.tables.keys import row_key


def read(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each chat. Content is text or a list of parts; a medium is a file name under any usual spelling.

    Parts and placeholders such as `<image>` that name no file take the row's `images`, `videos` and `audios` in order;
    what nothing takes stands at the beginning. A medium in an assistant's turn is to be generated and needs a
    `caption`, but no file. NExT-GPT has no system turn: a system message becomes the beginning of the user turn behind
    it.
    """
    return rows.read(entry, path, lambda row, index: row_key(index), _dialogue)


def read_prompts(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each chat as `read` does, but of those that end in a user's turn: they wait for their answer."""
    return rows.read(entry, path, lambda row, index: row_key(index), _prompt)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    said = _said(row)
    turn_parts.check_order([role for role, _ in said])
    return turn_parts.finished(said)


def _prompt(row: rows.Row) -> rows.Dialogue:
    said = _said(row)
    if said and said[-1][0] == "assistant":
        raise ValueError("bad conversation: the last turn is the assistant's, so that nothing is left to answer")
    # As if it were answered: the question itself may be the whole chat.
    turn_parts.check_order([*(role for role, _ in said), "assistant"])
    return turn_parts.finished(said, is_prompt=True)


def _said(row: rows.Row) -> list[tuple[Role, list[Part]]]:
    listed = turn_parts.items(row, ["{}s", "{}", "{}_name"])
    pool = Pool(listed, repeat=False)
    said: list[tuple[Role, list[Part]]] = []
    system: list[Part] = []
    for role, parts in _spoken(row, pool, bool(listed)):
        if role == "system":
            system += parts
        else:
            said.append((role, _joined([*system, *parts])))
            system = []
    if system:
        raise ValueError("bad conversation: a system message is followed by no user")
    if said:
        said[0][1][:0] = pool.rest()
    return said


def _spoken(row: rows.Row, pool: Pool, offered: bool) -> Iterator[tuple[Any, list[Part]]]:
    messages = rows.field(row, "messages", "conversations", "conversation")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("bad field: messages is no list of turns")
    for message in messages:
        speaker = rows.field(message, "role", "from")
        role = "system" if speaker == "system" else turn_parts.role_of(speaker)
        content = rows.optional(message, "content", "value")
        parts = content if isinstance(content, list) else [rows.field(message, "content", "value")]
        yield role, [found for part in parts for found in _parts(part, role, pool, offered)]


def _parts(part: Any, role: str, pool: Pool, offered: bool) -> list[Part]:
    """What a part of a message says: text, split where a placeholder stands for a medium of the row, or an item."""
    if isinstance(part, str):
        text = rows.prose(part, "text")
        if not offered:  # Then what looks like a placeholder is HTML.
            return turn_parts.text_part(text)

        def take(match: re.Match[str]) -> Item:
            return _checked(pool.take(Modality(match[1])), role)

        return turn_parts.split(text, turn_parts.PLACEHOLDER, take)
    if not isinstance(part, dict):
        raise ValueError("bad field: content is neither text nor a list of parts")
    kind = _kind(part)
    if kind == "text":
        return _parts(rows.field(part, "text", "value", "content"), role, pool, offered)
    if kind not in list(Modality):
        raise ValueError(f"bad field: a part of type {kind[:20]!r}; it may be text, image, video or audio")
    modality = Modality(kind)
    name = _name(part, modality)
    caption = rows.optional(part, "caption")
    # What is to be generated may have no file yet.
    is_taken = not name and (offered or caption is None or role != "assistant")
    item = pool.take(modality) if is_taken else Item(modality=modality, name=name)
    if caption is not None:
        item = Item(modality=modality, name=item.name, caption=rows.caption(caption, f"{modality} caption"))
    return [_checked(item, role)]


def _kind(part: dict[str, Any]) -> str:
    """`text`, `image` ..., also where it is spelled `image_url` or `input_audio`, or no type is given."""
    kind = rows.optional(part, "type")
    if kind is None:
        kind = next((name for name in ("text", *Modality) if part.get(name) is not None), "")
    if not isinstance(kind, str):
        raise ValueError("bad field: the type of a part must be a string")
    return kind.removeprefix("input_").removeprefix("output_").removesuffix("_url")


def _name(part: dict[str, Any], modality: Modality) -> str:
    """The file a part names, at once or one level deeper (`{"image_url": {"url": ...}}`); empty where it names none."""
    spellings = ("url", "path", "file", "file_name")
    value = rows.optional(part, modality, f"{modality}_url", f"input_{modality}", f"{modality}_path", *spellings)
    if isinstance(value, dict):
        value = rows.optional(value, *spellings)
        if value is None:
            raise ValueError(f"missing field: the file of {'a' if modality == 'video' else 'an'} {modality}")
    return "" if value is None else rows.name(value, f"{modality} name")


def _checked(item: Item, role: str) -> Item:
    if role == "assistant" and not item.caption:
        raise ValueError(f"missing field: caption of the {item.modality} to generate")
    if role == "system":
        raise ValueError("bad conversation: a system message holds a medium")
    return item


def _joined(parts: list[Part]) -> list[Part]:
    """Texts that follow each other, in lines of one text."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] = f"{result[-1]}\n{part}"
        else:
            result.append(part)
    return result
