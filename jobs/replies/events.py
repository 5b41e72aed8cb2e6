"""The events of a reply while it is made, and the errors that end one."""

from dataclasses import dataclass

from pipelines.sample import Media, Modality, Part


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
class Progress:
    """Progress of item `number`: `done` of `total` steps."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Made:
    """Item `number` is ready."""

    number: int
    media: Media


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The whole reply, always the last event: its parts in order, the media of its items, and token counts.

    `plan` is the plan that was carried out, or empty.
    """

    parts: tuple[Part, ...]
    media: tuple[Media, ...]
    prompt_tokens: int
    tokens: int
    was_cut: bool
    plan: str = ""


Event = Planned | Said | Begun | Progress | Made | Finished


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
