"""The architecture of NExT-GPT: one LLM says the text and, through its signal tokens, what the decoders make."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from jobs.serving.events import Begun, Event, Finished, Lost, Made, Progress, Said
from model.generation import Reply
from model.painter import Step
from model.query import Query
from model.rendering import Wish
from model.responder import wishes
from pipelines.sample import Item, Media, Modality

_TRIES = 3  # for a medium: whoever makes it anew makes the same


@dataclass(frozen=True, slots=True)
class Handles:
    """Where the parts of a model are reached: streaming handles of `Language` and of a `Renderer` a modality."""

    language: Any
    renderers: Mapping[Modality, Any]


async def answer(handles: Handles, query: Query) -> AsyncGenerator[Event, None]:
    """Tells a reply as it comes: text at once, then the media, made side by side, each when it is ready.

    Raises ValueError for what cannot be answered, Lost where a part of the model ended meanwhile.
    """
    reply: Reply | None = None
    number = 0
    async for part in _speak(handles, query):
        if isinstance(part, str):
            yield Said(part)
        elif isinstance(part, Item):
            yield Begun(number, part.modality)
            number += 1
        else:
            reply = part
    assert reply is not None
    media: dict[int, Media] = {}
    async for event in _make(handles, wishes(query, reply)):
        if isinstance(event, Made):
            media[event.number] = event.media
        yield event
    yield Finished(
        parts=reply.parts,
        media=tuple(media[place] for place in range(len(reply.conditions))),
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        was_cut=reply.was_cut,
    )


async def _speak(handles: Handles, query: Query) -> AsyncIterator[Any]:
    """A reply in parts; one that is lost before its first word is asked for again."""
    said, tries = False, 0
    while True:
        tries += 1
        try:
            async for part in handles.language.reply.remote(query):
                said = True
                yield part
        except RayActorError:
            if said or tries == _TRIES:
                raise Lost("language model") from None
            await asyncio.sleep(1.0)
        except RayTaskError as error:
            raise _cause(error) from None
        else:
            return


async def _make(handles: Handles, wanted: list[Wish]) -> AsyncIterator[Progress | Made]:
    """Makes media side by side."""
    events: asyncio.Queue[Progress | Made | BaseException] = asyncio.Queue()

    async def make(number: int, wish: Wish) -> None:
        try:
            async for event in _one(handles, number, wish):
                events.put_nowait(event)
        except Exception as error:
            events.put_nowait(error)

    tasks = [asyncio.create_task(make(number, wish)) for number, wish in enumerate(wanted)]
    left = len(tasks)
    try:
        while left:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Made)
            yield event
    finally:
        for task in tasks:
            task.cancel()


async def _one(handles: Handles, number: int, wish: Wish) -> AsyncIterator[Progress | Made]:
    for rest in reversed(range(_TRIES)):
        try:
            async for event in handles.renderers[wish.modality].make.remote(wish):
                yield Progress(number, event.done, event.total) if isinstance(event, Step) else Made(number, event)
        except RayActorError:
            if not rest:
                raise Lost(f"{wish.modality} decoder") from None
            await asyncio.sleep(1.0)
        except RayTaskError as error:
            raise _cause(error) from None
        else:
            return


def _cause(error: RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, ValueError) else error
