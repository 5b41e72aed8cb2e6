"""The record that all steps exchange: a dialogue whose parts are text or media items."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


class Modality(StrEnum):
    """The three kinds of media besides text, as inputs and outputs."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """The place of one medium in a turn; in an assistant turn the medium is to be generated.

    `name` is the medium's path below the dataset's media folder as a reader yields it, and the tar member's
    suffix (`jpg`, or `0.jpg` where a sample holds several) once prepared; it is empty where no medium exists.
    `more_captions` are what else is said of the same medium; training sees one at a time, see `views.example`.
    """

    modality: Modality
    name: str = ""
    caption: str = ""
    more_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the item, possibly none."""
        return (self.caption, *self.more_captions) if self.caption else ()

    def each(self) -> "list[Item]":
        """One copy of the item per caption, each with only that caption; empty without captions."""
        return [replace(self, caption=caption, more_captions=()) for caption in self.captions]


Part = str | Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one speaker says: text and items in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Encoded bytes of one medium; `format` is the file suffix without a dot (`jpg`, `mp4`, `wav`).

    `note` is what its reader must be told: of a picture that was withheld, say.
    """

    modality: Modality
    data: bytes
    format: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A decoded image: uint8 (H, W, 3), RGB; `note` as of `Media`."""

    pixels: npt.NDArray[np.uint8]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """Decoded frames: uint8 (T, H, W, 3), RGB; `fps` is in frames per second."""

    frames: npt.NDArray[np.uint8]
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """A decoded sound: float32 (C, T) in [-1, 1]; `sample_rate` in Hz."""

    waveform: npt.NDArray[np.float32]
    sample_rate: int


Decoded = Image | Video | Audio


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One dialogue with its media. `key` matches `[a-z0-9_-]+`; `source` says which row of which file it was.

    Several rows that caption one medium are one sample; its `source` then has a line for each of them.
    """

    key: str
    source: str
    turns: tuple[Turn, ...]
    media: Mapping[str, Media] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> tuple[str, ...]:
        """The messages of the system within the users' turns, as the meta tells them."""
        found = self.meta.get("system")
        return tuple(part for part in found if isinstance(part, str)) if isinstance(found, list | tuple) else ()

    def items(self, role: Role | None = None) -> Iterator[Item]:
        """Yields the items of all turns, or of one role's turns, in order."""
        for turn in self.turns:
            if role is None or turn.role == role:
                yield from (part for part in turn.parts if isinstance(part, Item))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that was left out: where it stood, at which stage it failed, and why."""

    source: str
    key: str
    stage: str
    reason: str


def turns_document(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Turns as values that JSON can represent."""

    def part(value: Part) -> str | dict[str, Any]:
        if isinstance(value, str):
            return value
        more = {"more_captions": list(value.more_captions)} if value.more_captions else {}
        return {"modality": str(value.modality), "name": value.name, "caption": value.caption} | more

    return [{"role": turn.role, "parts": [part(p) for p in turn.parts]} for turn in turns]


def turns_to_json(turns: tuple[Turn, ...]) -> str:
    """Writes turns as compact JSON; equal turns give equal bytes."""
    return _COMPACT.encode(turns_document(turns))


def turns_from_json(text: str | bytes) -> tuple[Turn, ...]:
    """Parses the output of `turns_to_json`."""

    def part(value: str | dict[str, Any]) -> Part:
        if isinstance(value, str):
            return value
        return Item(
            modality=Modality(value["modality"]),
            name=value["name"],
            caption=value["caption"],
            more_captions=tuple(value.get("more_captions", ())),
        )

    return tuple(Turn(role=row["role"], parts=tuple(part(p) for p in row["parts"])) for row in json.loads(text))
