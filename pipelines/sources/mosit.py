"""Modality-switching dialogues (MosIT), as JSON of both generations or as its authors' text files."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from pipelines.sample import Item, Modality, Part, Reject, Sample
from pipelines.sources import rows, speakers, turn_parts
from pipelines.sources.entry import Entry
from pipelines.tables.decompression import open_text
from pipelines.tables.keys import row_key
from pipelines.tables.lines import text_lines
from pipelines.tables.raw import Raw, Section

_TAG = re.compile(r"<(image|video|audio)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_LOOSE_TAG = re.compile(r"</?(image|video|audio)>", re.IGNORECASE)
_FILE_NAME = re.compile(r"\S+\.(jpe?g|png|webp|gif|mp4|webm|wav|mp3|flac)", re.IGNORECASE)
_SPEAKER = re.compile(r"(Human|GPT)[:\uff1a]\s*(.*)", re.DOTALL)  # Some colons in the public files are full-width.


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each dialogue: `<Image>...</Image>` is an input in a user's turn and to be generated in an assistant's.

    A tag holds the caption of its item, or (older JSON) the name of a medium in `image_list`; newer JSON has
    `image_captions` and placeholders instead. A `.txt` file holds turns `Human: ...` and `GPT: ...`, dialogues
    between lines of dashes. Named media lie in `images/`, `videos/` and `audios/`.
    """
    return rows.read(entry, source, _key, _dialogue, {".txt": _written})


def _key(row: rows.Row, index: int) -> str:
    return row_key(index)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    if any(f"{modality}_captions" in row for modality in Modality):
        return turn_parts.turns(row, outputs=turn_parts.captioned_items(row), has_media=True)
    media = _listed(row)

    def parts(text: str) -> list[Part]:
        return turn_parts.split(text, _TAG, lambda match: _item(match, media))

    said = [
        (speaker, turn_parts.text_part(text) if speaker == "system" else parts(text))
        for speaker, text in speakers.speeches(row)
    ]
    spoken = (part for speaker, turn in said if speaker != "system" for part in turn)
    loose = (_LOOSE_TAG.search(part) for part in spoken if isinstance(part, str))
    if tag := next(filter(None, loose), None):
        raise ValueError(f"bad tag: {tag[0]} has no partner")
    return turn_parts.finished(said)


def _listed(row: rows.Row) -> dict[str, Item]:
    """The media in a row's lists, by the names used in tags."""
    media = {}
    for modality in Modality:
        for entry in rows.listed(row, f"{modality}_list"):
            if not isinstance(entry, dict):
                raise ValueError(f"bad field: {modality}_list is no list of media")
            name = rows.name(rows.field(entry, f"{modality}_name"), f"{modality} name")
            caption = rows.caption(rows.field(entry, "caption"))
            media[name] = Item(modality=modality, name=f"{modality}s/{name}", caption=caption)
    return media


def _item(match: re.Match[str], media: Mapping[str, Item]) -> Item | None:
    content = match[2].strip()
    if content in media:
        return media[content]
    if _FILE_NAME.fullmatch(content):
        raise ValueError(f"missing field: caption of {content}")
    if media and match[1].islower():  # There it describes in words the medium that the next tag names.
        return None
    return Item(modality=Modality(match[1].lower()), caption=rows.caption(content))


def _written(path: Path, name: str) -> Iterator[Raw]:
    """The dialogues of a text file as rows of JSON."""
    with open_text(path) as file:
        for index, said in enumerate(_dialogues(text_lines(file))):
            conversation = [{"from": who, "value": "".join(words)} for who, words in said]
            yield Raw(source=f"{name}#{index}", value={"conversation": conversation})


def _dialogues(lines: Iterable[str]) -> Iterator[list[tuple[str, list[str]]]]:
    """Who says which lines, a list for each stretch between lines of dashes in which anyone speaks."""
    said: list[tuple[str, list[str]]] = []
    for line in chain(lines, ["---"]):
        if line.startswith("---"):
            if said:
                yield said
            said = []
        elif speaker := _SPEAKER.match(line):
            said.append(({"Human": "human", "GPT": "gpt"}[speaker[1]], [speaker[2]]))
        elif said:
            said[-1][1].append(line)
