"""Conversations about given media, or that ask for media: the newer files of NExT-GPT, and LLaVA-Instruct."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.sample import Item, Reject, Sample
from pipelines.sources import rows, turn_parts
from pipelines.sources.entry import Entry
from pipelines.tables.keys import make_key, row_key, stem_of


def read(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each conversation; placeholders such as `<image>` become the items the row names.

    A row's input media are in `input_image` (newer files), `image` (LLaVA) or `image_name` (LLaVA as NExT-GPT's older
    code spells it); its outputs in `output_image` and `image_captions`; video and audio likewise.
    """
    return rows.read(entry, path, _key, _dialogue)


def _key(row: rows.Row, index: int) -> str:
    inputs = _inputs(row)
    if inputs:  # Many rows may speak about one medium.
        return row_key(index, stem_of(inputs[0].name))
    outputs = turn_parts.items(row, ["output_{}"])
    stem = stem_of(outputs[0].name) if outputs else ""
    return make_key(stem) if stem else row_key(index)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    return turn_parts.turns(row, _inputs(row), turn_parts.captioned_items(row))


def _inputs(row: rows.Row) -> list[Item]:
    return turn_parts.items(row, ["input_{}", "{}", "{}_name"])
