"""Requests for media (T-T+X): text only, each answer with the caption of an item to generate."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.entry import Entry
from pipelines.readers import dialogue, rows
from pipelines.readers.keys import row_key
from pipelines.sample import Item, Modality, Reject, Sample


def read(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each conversation; items to generate stand where `<audio>` does, or at the end of the answer.

    Newer files list the captions in `audio_captions` and have placeholders in the text; older ones give `caption` and
    `output_modality` with each answer and have none. The media they name were never published.
    """
    return rows.read(entry, path, lambda row, index: row_key(index), _dialogue)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    listed = dialogue.captioned_items(row)
    if listed:
        return dialogue.turns(row, outputs=listed)
    speeches = dialogue.speeches(row)
    fields = rows.field(row, "conversations", "conversation")
    said = [
        (role, [*dialogue.text_part(text), *_items(turn)]) for (role, text), turn in zip(speeches, fields, strict=True)
    ]
    if not any(isinstance(part, Item) for _, parts in said for part in parts):
        raise ValueError("missing field: caption of an answer")
    return dialogue.finished(said)


def _items(turn: rows.Row) -> list[Item]:
    return [
        Item(modality=modality, caption=rows.caption(rows.field(turn, "caption")))
        for modality in Modality
        if turn.get("output_modality") == modality
    ]
