"""Alpaca's instructions: `[{"instruction", "input", "output"}]`, or the same as conversations; text only."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.entry import Entry
from pipelines.readers import dialogue, rows
from pipelines.readers.keys import row_key
from pipelines.sample import Reject, Sample


def read(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each instruction with its input as one exchange; tags such as `<video>` in it are HTML and stay text."""
    return rows.read(entry, path, lambda row, index: row_key(index), _dialogue)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    if "instruction" not in row:
        return dialogue.text_turns(row)
    asked = [rows.prose(rows.field(row, "instruction"), "instruction"), rows.prose(row.get("input") or "", "input")]
    answer = rows.prose(rows.field(row, "output"), "output")
    return dialogue.finished(
        [("user", dialogue.text_part("\n".join(filter(None, asked)))), ("assistant", dialogue.text_part(answer))]
    )
