"""The parts of a model as they are reached on Ray Serve, asked again where one was lost."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from jobs.serving.requests.events import Lost, Made, Progress
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
    async def making(self, wanted: Sequence[Wish]) -> AsyncIterator[AsyncIterator[Progress | Made]]:
        """Makes media side by side from now on; gives what is told of them, the number-th medium's by its number."""
        events: asyncio.Queue[Progress | Made | Exception] = asyncio.Queue()

        async def make(number: int, wish: Wish) -> None:
            try:
                async for event in self._one(number, wish):
                    events.put_nowait(event)
            except Exception as error:
                events.put_nowait(error)

        async def told() -> AsyncIterator[Progress | Made]:
            left = len(wanted)
            while left:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Made)
                yield event

        tasks = [asyncio.create_task(make(number, wish)) for number, wish in enumerate(wanted)]
        try:
            yield told()
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, number: int, wish: Wish) -> AsyncIterator[Progress | Made]:
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


def _cause(error: RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, ValueError) else error
