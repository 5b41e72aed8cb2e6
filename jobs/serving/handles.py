"""The parts of a model as they are reached on Ray Serve, asked again where one was lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from jobs.replies.events import Lost, Made, Progress
from model.decoders.rendering import Wish
from model.inference.generation import Reply
from model.inference.painter import Step
from model.inference.query import Query
from pipelines.sample import Modality, Part

_TRIES = 3  # for a medium: whoever makes it anew makes the same


@dataclass(frozen=True, slots=True)
class Handles:
    """Streaming handles of `Language`, and of a `Renderer` a modality.

    All raise ValueError for what cannot be answered, Lost where a part of the model ended meanwhile.
    """

    language: Any
    renderers: Mapping[Modality, Any]

    async def speak(self, query: Query) -> AsyncIterator[Part | Reply]:
        """A reply in parts, at last the whole; one that is lost before its first word is asked for again."""
        said, tries = False, 0
        while True:
            tries += 1
            try:
                async for part in self.language.reply.remote(query):
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

    async def reply(self, query: Query) -> Reply:
        """A reply, its items not yet made; one that is lost is asked for again."""
        tries = 0
        while True:
            tries += 1
            try:
                # To the end of the stream, so that nothing of it is left with Ray.
                *_, reply = [part async for part in self.speak(query)]
            except Lost:
                if tries == _TRIES:
                    raise
                continue
            assert isinstance(reply, Reply)
            return reply

    @asynccontextmanager
    async def making(self) -> "AsyncIterator[Making]":
        """Within it, media are made side by side; those still in the making at its end are cancelled."""
        making = Making(self.make)
        try:
            yield making
        finally:
            making.cancel()

    async def make(self, number: int, wish: Wish) -> AsyncIterator[Progress | Made]:
        """Makes medium `number`; one whose decoder was lost is made again."""
        for rest in reversed(range(_TRIES)):
            try:
                async for event in self.renderers[wish.modality].make.remote(wish):
                    yield Progress(number, event.done, event.total) if isinstance(event, Step) else Made(number, event)
            except RayActorError:
                if not rest:
                    raise Lost(f"{wish.modality} decoder") from None
                await asyncio.sleep(1.0)
            except RayTaskError as error:
                raise _cause(error) from None
            else:
                return


class Making:
    """The media of one reply, made side by side from the moment they are known; `make` makes one of them."""

    def __init__(self, make: Callable[[int, Wish], AsyncIterator[Progress | Made]]) -> None:
        self._make = make
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[Progress | Made | Exception] = asyncio.Queue()

    def start(self, wanted: Sequence[Wish]) -> None:
        """Starts to make media; they are numbered on from those before."""
        first = len(self._tasks)
        self._tasks += [asyncio.create_task(self._run(number, wish)) for number, wish in enumerate(wanted, first)]

    async def events(self) -> AsyncIterator[Progress | Made]:
        """What happens until all media are made; raises the first error."""
        left = len(self._tasks)
        while left:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Made)
            yield event

    def cancel(self) -> None:
        """Stops what is still in the making."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, number: int, wish: Wish) -> None:
        try:
            async for event in self._make(number, wish):
                self._events.put_nowait(event)
        except Exception as error:
            self._events.put_nowait(error)


def _cause(error: RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, ValueError) else error
