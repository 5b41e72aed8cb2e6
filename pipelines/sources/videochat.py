"""VideoChat's questions: `[{"video" | "image": "dir/name.mp4", "QA": [{"i": instruction, "q", "a"}]}]`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sample import Item, Reject, Sample, Turn
from pipelines.sources import rows, turn_parts
from pipelines.sources.entry import Entry
from pipelines.sources.speakers import Speech
from pipelines.tables.keys import row_key, stem_of
from pipelines.tables.raw import Section


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each row as one dialogue: the medium, then its questions and answers in order."""
    return rows.read(entry, source, _key, _dialogue)


def _key(row: rows.Row, index: int) -> str:
    return row_key(index, stem_of(_medium(row).name))


def _dialogue(row: rows.Row) -> rows.Dialogue:
    answered = rows.field(row, "QA")
    if not isinstance(answered, list) or not answered or not all(isinstance(pair, dict) for pair in answered):
        raise ValueError("bad field: QA is no list of questions and answers")
    said = [turn for pair in answered for turn in _exchange(pair)]
    turns, meta = turn_parts.finished(said)
    first = Turn(role="user", parts=(_medium(row), *turns[0].parts))
    return rows.Dialogue((first, *turns[1:]), meta)


def _exchange(pair: dict[str, Any]) -> Iterator[Speech]:
    """An instruction may precede the question or replace it."""
    asked = [rows.prose(pair.get(name) or "", name) for name in ("i", "q")]
    yield "user", turn_parts.text_part("\n".join(filter(None, asked)))
    yield "assistant", turn_parts.text_part(rows.prose(rows.field(pair, "a"), "a"))


def _medium(row: rows.Row) -> Item:
    found = turn_parts.items(row, ["{}", "{}_name"])
    if len(found) != 1:
        raise ValueError(f"{'bad' if found else 'missing'} field: a row needs one video or image")
    return found[0]
