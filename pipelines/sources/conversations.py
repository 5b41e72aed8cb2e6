"""Conversations about given media, or that ask for media: NExT-GPT's newer files, LLaVA's, ShareGPT's, and chats.

`{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}`
`{"messages": [{"role": "user", "content": [{"type": "text", "text": "..."}, {"type": "image", "image": "a.jpg"}]}]}`
"""

from collections.abc import Iterator
from pathlib import Path

from pipelines.sample import Item, Reject, Sample
from pipelines.sources import rows, speakers, turn_parts
from pipelines.sources.entry import Entry
from pipelines.tables.keys import make_key, row_key, stem_of
from pipelines.tables.raw import Section


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each conversation; placeholders such as `<image>` become the items the row names.

    A row's input media are in `input_image` (newer files), `images`, `image` (LLaVA) or `image_name` (LLaVA as
    NExT-GPT's older code spells it); its outputs in `output_image` and `image_captions`; video and audio likewise.
    For their places, see `turn_parts.turns`.
    """
    return rows.read(entry, source, _key, lambda row: _dialogue(row, speakers.CONVERSATIONS))


def read_chats(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each chat as `read` does; the key is the row's number, since media may be in any part.

    A medium in an assistant's turn is to be generated and needs a `caption`, but no file.
    """
    return rows.read(entry, source, lambda row, index: row_key(index), lambda row: _dialogue(row, speakers.MESSAGES))


def read_prompts(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each chat as `read_chats` does, but chats that end in a user's turn and are still to be answered."""
    return rows.read(entry, source, lambda row, index: row_key(index), _prompt)


def _key(row: rows.Row, index: int) -> str:
    inputs = _inputs(row)
    if inputs:  # Many rows may speak about one medium.
        return row_key(index, stem_of(inputs[0].name))
    outputs = turn_parts.items(row, ["output_{}"])
    stem = stem_of(outputs[0].name) if outputs else ""
    return make_key(stem) if stem else row_key(index)


def _dialogue(row: rows.Row, spellings: speakers.Spellings) -> rows.Dialogue:
    return turn_parts.turns(row, _inputs(row), turn_parts.captioned_items(row), spellings=spellings)


def _prompt(row: rows.Row) -> rows.Dialogue:
    return turn_parts.turns(
        row, _inputs(row), turn_parts.captioned_items(row), spellings=speakers.MESSAGES, is_prompt=True
    )


def _inputs(row: rows.Row) -> list[Item]:
    return turn_parts.items(row, ["input_{}", "{}s", "{}", "{}_name"])
