"""Requests for media (T-T+X): text only, each answer with the caption of an item to generate."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources import rows, speakers, turn_parts
from pipelines.sources.entry import Entry
from pipelines.tables.keys import row_key
from pipelines.tables.raw import Section


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each conversation; items to generate replace `<audio>`, or come at the end of the answer.

    Newer files list the captions in `audio_captions` and have placeholders in the text; older ones give `caption` and
    `output_modality` with each answer and have none. The media they name were never published.
    """
    return rows.read(entry, source, lambda row, index: row_key(index), _dialogue)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    listed = turn_parts.captioned_items(row)
    if listed:
        return turn_parts.turns(row, outputs=listed)
    speeches = speakers.speeches(row)
    fields = rows.field(row, *speakers.MESSAGES)
    said = [
        (role, [*turn_parts.text_part(text), *_items(turn)])
        for (role, text), turn in zip(speeches, fields, strict=True)
    ]
    if not any(isinstance(part, Item) for _, parts in said for part in parts):
        raise ValueError("missing field: caption of an answer")
    return turn_parts.finished(said)


def _items(turn: rows.Row) -> list[Item]:
    return [
        Item(modality=modality, caption=rows.caption(rows.field(turn, "caption")))
        for modality in Modality
        if turn.get("output_modality") == modality
    ]
