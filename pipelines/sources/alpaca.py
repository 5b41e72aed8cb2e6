"""Alpaca's instructions: `[{"instruction", "input", "output"}]`, or the same as conversations; text only."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.sample import Reject, Sample
from pipelines.sources import rows, turn_parts
from pipelines.sources.entry import Entry
from pipelines.tables.keys import row_key
from pipelines.tables.raw import Section


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each instruction with its input as one exchange; tags such as `<video>` in it are HTML and stay text."""
    return rows.read(entry, source, lambda row, index: row_key(index), _dialogue)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    if "instruction" not in row:
        return turn_parts.text_turns(row)
    asked = [rows.prose(rows.field(row, "instruction"), "instruction"), rows.prose(row.get("input") or "", "input")]
    answer = rows.prose(rows.field(row, "output"), "output")
    return turn_parts.finished(
        [("user", turn_parts.text_part("\n".join(filter(None, asked)))), ("assistant", turn_parts.text_part(answer))]
    )
