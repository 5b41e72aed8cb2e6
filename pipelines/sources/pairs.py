"""Caption pairs of any source: a medium with its captions, under the names of columns that are in use for them.

NExT-GPT's own files are `[{"caption", "id" | "audio_id", "image_name" | "video_name" | "audio_name"}]`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipelines.sample import Item, Modality, Reject, Sample, Turn
from pipelines.sources import rows
from pipelines.sources.entry import Entry
from pipelines.tables.keys import make_key, row_key, stem_of

_CAPTIONS = ("caption", "text", "txt", "captions", "sentences", "raw")
_IDS = ("id", "{}_id", "key", "__key__")
_NAMES = ("{}_name", "{}", "{}_path", "{}_file", "file_name")
# Columns of media as WebDatasets call them.
_SUFFIXES = {
    Modality.IMAGE: ("jpg", "jpeg", "png", "webp"),
    Modality.VIDEO: ("mp4", "webm"),
    Modality.AUDIO: ("wav", "flac", "mp3", "ogg"),
}


def read(entry: Entry, path: Path) -> Iterator[Sample | Reject]:
    """Yields each pair as one exchange, user: the item with its captions, assistant: the first of them.

    The entry's `fields` say which columns are `caption`, `name` and `id`, where they are none of the usual; a row
    that names no medium gets the entry's `media_name`.
    """
    return rows.read(entry, path, partial(_key, entry), partial(_dialogue, entry))


def _key(entry: Entry, row: rows.Row, index: int) -> str:
    value = rows.optional(row, *_spelled(entry, _IDS))
    if value is None:
        stem = stem_of(_name(entry, row))
        return make_key(stem) if stem else row_key(index)
    if not isinstance(value, str | int):
        raise ValueError("bad field: id is neither text nor a whole number")
    return make_key(str(value))


def _dialogue(entry: Entry, row: rows.Row) -> rows.Dialogue:
    assert entry.modality is not None
    caption, *more = rows.captions(row, *entry.fields.get("caption", _CAPTIONS))
    item = Item(modality=entry.modality, name=_name(entry, row), caption=caption, more_captions=tuple(more))
    return rows.Dialogue((Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(caption,))))


def _name(entry: Entry, row: rows.Row) -> str:
    assert entry.modality is not None
    mapped = "name" in entry.fields
    spellings = ("name",) if mapped else (*_spelled(entry, _NAMES), *_SUFFIXES[entry.modality])
    value = rows.optional(row, *spellings)
    if value is None and entry.media_name:
        value = entry.named(row)
    what = "name" if mapped else f"{entry.modality}_name"
    return rows.name(rows.field(row, what) if value is None else value, what)


def _spelled(entry: Entry, spellings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(spelling.format(entry.modality) for spelling in spellings)
