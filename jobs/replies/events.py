"""What is told of a reply while it comes, and why one may not come."""

from dataclasses import dataclass

from pipelines.sample import Media, Modality, Part


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of the reply, in JSON as `tool_plans` has it; told by an LLM that schedules tools."""

    plan: str


@dataclass(frozen=True, slots=True)
class Said:
    """The next piece of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """Item `number` of the reply, counted from 0, stands here; it is yet to be made."""

    number: int
    modality: Modality


@dataclass(frozen=True, slots=True)
class Progress:
    """How far item `number` is: `done` steps of `total`."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Made:
    """Item `number` is there."""

    number: int
    media: Media


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The whole reply, told last: its parts in order, the media of its items, and the LLM's tokens in and out.

    `plan` is the one that was carried out, if there was one.
    """

    parts: tuple[Part, ...]
    media: tuple[Media, ...]
    prompt_tokens: int
    tokens: int
    was_cut: bool
    plan: str = ""


Event = Planned | Said | Begun | Progress | Made | Finished


class Full(Exception):
    """As many conversations are being answered as may be; try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"all places are taken; try again in {retry_after} s")
        self.retry_after = retry_after


class Lost(Exception):
    """A part of the model ended while it answered; the next try finds a new one."""

    retry_after = 5

    def __init__(self, what: str) -> None:
        super().__init__(f"the {what} was lost while it answered; try again")
