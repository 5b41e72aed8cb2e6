"""Caption pairs of any source: a medium with its captions, under the names of columns that are in use for them.

NExT-GPT's own files are `[{"caption", "id" | "audio_id", "image_name" | "video_name" | "audio_name"}]`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from glob import escape
from pathlib import Path, PurePosixPath

from pipelines.sample import Item, Modality, Reject, Sample, Turn
from pipelines.sources import rows
from pipelines.sources.entry import Entry, filled
from pipelines.tables.keys import make_key, row_key, stem_of
from pipelines.tables.media_formats import SUFFIXES, modalities_of
from pipelines.tables.raw import Section, identifier
from pipelines.tables.tars import MEMBERS

OTHER_NAMES = "other_names"  # in the meta of a row that was read: patterns of what its medium may be called
_CAPTIONS = ("caption", "text", "txt", "captions", "sentences", "raw")
_IDS = ("id", "{}_id", "key", "__key__")
_NAMES = ("{}_name", "{}", "{}_path", "{}_file", "file_name")
# A clip of a YouTube video, in the columns of AudioCaps, MusicCaps and AudioSet, and what people call its file.
_CLIP = {
    "youtube_id": ("youtube_id", "ytid", "YTID"),
    "start_time": ("start_time", "start_s", "start_seconds"),
}
_CLIP_NAMES = (
    "{youtube_id}_{start_time}",
    "{youtube_id}_{start_time}_*",  # with its end
    "{youtube_id}_{start_time}.0*",  # 30.000_40.000
    "{youtube_id}_{start_time}000_*",  # in milliseconds
    "{youtube_id}_{start_time:06}",
    "{youtube_id}_{start_time:06}_*",
    "{youtube_id}",
    "Y{youtube_id}_{start_time}",
    "Y{youtube_id}_{start_time}_*",
    "Y{youtube_id}_{start_time}000_*",
    "Y{youtube_id}",
    "[[]{youtube_id}]-[[]{start_time}-*",
)
_COMMON = 8  # formats that clips are looked for in


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each pair as one exchange, user: the item with its captions, assistant: the first of them.

    The entry's `fields` say which columns are `caption`, `name` and `id`, where they are none of the usual; a row
    that names no medium gets the entry's `media_name`, or a name that people give to clips of YouTube, and in its meta
    the other names to look for.
    """
    return rows.read(entry, source, partial(_key, entry), partial(_findable, entry))


def _key(entry: Entry, row: rows.Row, index: int) -> str:
    value = identifier(rows.optional(row, *_spelled(entry.modality, _IDS)))
    if value is None:
        stem = stem_of(_names(entry, row)[0])
        return make_key(stem) if stem else row_key(index)
    if not isinstance(value, str | int):
        raise ValueError("bad field: id is neither text nor a whole number")
    return make_key(str(value))


def _dialogue(entry: Entry, row: rows.Row) -> rows.Dialogue:
    assert entry.modality is not None
    caption, *more = rows.captions(row, *entry.fields.get("caption", _CAPTIONS))
    items = tuple(
        Item(modality=entry.modality, name=name, caption=caption, more_captions=tuple(more))
        for name in _names(entry, row)
    )
    return rows.Dialogue((Turn(role="user", parts=items), Turn(role="assistant", parts=(caption,))))


def _findable(entry: Entry, row: rows.Row) -> rows.Dialogue:
    """The pair, with the other names that the medium may have if the row names none."""
    turns, meta = _dialogue(entry, row)
    names = _possible_names(entry, row)
    if not names or any(isinstance(part, Item) and part.name != names[0] for part in turns[0].parts):
        return rows.Dialogue(turns, meta)
    assert entry.modality is not None
    stems = [(name, name.removesuffix(PurePosixPath(name).suffix)) for name in _possible_names(entry, row, escape)]
    spelled = (
        other for name, stem in stems for other in (name, *(f"{stem}.{s}" for s in SUFFIXES[entry.modality][:_COMMON]))
    )
    return rows.Dialogue(turns, {**meta, OTHER_NAMES: list(dict.fromkeys(spelled))})


def _possible_names(entry: Entry, row: rows.Row, spelled: Callable[[str], str] = str) -> list[str]:
    """What the medium of a row that names none may be called: by the entry's `media_name`, or as a clip of YouTube."""
    assert entry.modality is not None
    if rows.optional(row, *_CLIP["youtube_id"]) is None:  # as of nearly every row; all names of clips hold it
        return filled(entry.media_name, row, spelled) if entry.media_name else []
    clip = {column: rows.optional(row, *spellings) for column, spellings in _CLIP.items()}
    names = (f"{name}.{SUFFIXES[entry.modality][0]}" for name in _CLIP_NAMES)
    return [*filled(entry.media_name, row, spelled), *filled(names, clip, spelled)]


def _names(entry: Entry, row: rows.Row) -> list[str]:
    """The media of a pair: one, but for the several of a sample in a tar, which its caption tells of together."""
    assert entry.modality is not None
    mapped = "name" in entry.fields
    spellings = ("name",) if mapped else (*_spelled(entry.modality, _NAMES), *SUFFIXES[entry.modality])
    value = rows.optional(row, *spellings)
    if value is None:
        value = next(iter(_possible_names(entry, row)), None)
    if value is None and entry.media_name:
        value = entry.named(row)
    if value is None and not mapped:
        value = _other_medium(row, entry.modality)
    what = "name" if mapped else f"{entry.modality}_name"
    if value is None:
        raise ValueError(f"missing field: {what}")
    return [rows.name(name, what) for name in (value if isinstance(value, list) and MEMBERS in row else [value])]


def _other_medium(row: rows.Row, modality: Modality) -> str | None:
    """A file that a tar's reader took for another medium, and that may be this one: a GIF, the sound of an mp4."""
    names = (row.get(f"{other}_name") for other in Modality)
    return next((name for name in names if isinstance(name, str) and modality in _may_hold(name)), None)


def _may_hold(name: str) -> Iterable[Modality]:
    return modalities_of(name) or Modality


@cache
def _spelled(modality: Modality | None, spellings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(spelling.format(modality) for spelling in spellings)
