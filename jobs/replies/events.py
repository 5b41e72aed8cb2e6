"""The events of a reply while it is made, and the errors that end one."""

from dataclasses import dataclass

from model.inference.query import Response
from pipelines.sample import Media, Modality


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of the reply, in the JSON of `tool_plans`; only from the scheduler."""

    plan: str


@dataclass(frozen=True, slots=True)
class Said:
    """The next piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """Item `number` of the reply, counted from 0, comes here; it is not made yet."""

    number: int
    modality: Modality


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """Progress of item `number`: `done` of `total` steps."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Made:
    """Item `number` is ready."""

    number: int
    media: Media


# The whole reply is always the last event.
Event = Planned | Said | Begun | ItemProgress | Made | Response[Media]


class Full(Exception):
    """All places are taken; try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"all places are taken; try again in {retry_after} s")
        self.retry_after = retry_after


class Lost(Exception):
    """A part of the model died while it answered; a retry reaches its replacement."""

    retry_after = 5

    def __init__(self, what: str) -> None:
        super().__init__(f"the {what} was lost while it answered; try again")
