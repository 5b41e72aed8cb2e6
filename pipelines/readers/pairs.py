"""Caption pairs of CC3M, WebVid and AudioCaps: `[{"caption", "id" | "audio_id", "image_name" | ...}]`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.readers import rows
from pipelines.readers.keys import make_key, stem_of
from pipelines.sample import Item, Modality, Reject, Sample, Turn

if TYPE_CHECKING:
    from pipelines.catalog import Entry


def read(entry: "Entry", path: Path) -> Iterator[Sample | Reject]:
    """Yields each pair as one exchange, user: the item with its caption, assistant: the caption."""
    assert entry.modality is not None
    return rows.read(path, partial(_key, entry.modality), partial(_turns, entry.modality))


def _key(modality: Modality, row: rows.Row, index: int) -> str:
    value = rows.optional(row, "id", f"{modality}_id")
    if value is None:
        return make_key(stem_of(_name(modality, row)))
    if not isinstance(value, str | int):
        raise ValueError("bad field: id is neither text nor a whole number")
    return make_key(str(value))


def _turns(modality: Modality, row: rows.Row) -> tuple[Turn, ...]:
    caption = rows.caption(rows.field(row, "caption"))
    item = Item(modality=modality, name=_name(modality, row), caption=caption)
    return Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(caption,))


def _name(modality: Modality, row: rows.Row) -> str:
    return rows.name(rows.field(row, f"{modality}_name"), f"{modality}_name")
