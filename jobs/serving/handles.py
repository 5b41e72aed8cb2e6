"""Access to the deployments of a model, with retries when a replica is lost."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from jobs.replies.events import ItemProgress, Lost, Made
from model.decoders.wish import RenderStep, Wish
from model.inference.query import Query, Reply
from pipelines.sample import Modality, Part

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Handles:
    """Streaming handles of `Language`, and of one `Renderer` per modality.

    All methods raise ValueError for what cannot be answered, and Lost if a part of the model died meanwhile.
    """

    language: Any
    renderers: Mapping[Modality, Any]

    def speak(self, query: Query) -> AsyncIterator[Part | Reply]:
        """Yields a reply in parts, and finally the whole; retries if it is lost before its first part."""
        return _stream(lambda: self.language.reply.remote(query), "language model", can_repeat=False)

    async def reply(self, query: Query) -> Reply:
        """A reply without its media; retries if it is lost."""
        tries = 0
        while True:
            tries += 1
            try:
                # Consume the whole stream, so that Ray keeps nothing of it.
                *_, reply = [part async for part in self.speak(query)]
            except Lost:
                if tries == _TRIES:
                    raise
                continue
            assert isinstance(reply, Reply)
            return reply

    @asynccontextmanager
    async def making(self) -> "AsyncIterator[Making]":
        """A context for the media of one reply; on exit, unfinished ones are cancelled."""
        making = Making(self.make)
        try:
            yield making
        finally:
            making.cancel()

    async def make(self, number: int, wish: Wish) -> AsyncIterator[ItemProgress | Made]:
        """Makes medium `number`; retries if its decoder is lost."""
        handle, decoder = self.renderers[wish.modality], f"{wish.modality} decoder"
        async with aclosing(_stream(lambda: handle.make.remote(wish), decoder, can_repeat=True)) as events:
            async for event in events:
                yield (
                    ItemProgress(number, event.done, event.total)
                    if isinstance(event, RenderStep)
                    else Made(number, event)
                )


class Making:
    """The media of one reply, made concurrently from the moment they are known; `make` makes one."""

    def __init__(self, make: Callable[[int, Wish], AsyncIterator[ItemProgress | Made]]) -> None:
        self._make = make
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[ItemProgress | Made | Exception] = asyncio.Queue()

    def start(self, wanted: Sequence[Wish]) -> None:
        """Starts to make media, numbered after those already started."""
        first = len(self._tasks)
        self._tasks += [asyncio.create_task(self._run(number, wish)) for number, wish in enumerate(wanted, first)]

    async def events(self) -> AsyncIterator[ItemProgress | Made]:
        """Yields events until all media are made; raises the first error."""
        left = len(self._tasks)
        while left:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Made)
            yield event

    def cancel(self) -> None:
        """Cancels unfinished media."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, number: int, wish: Wish) -> None:
        try:
            async for event in self._make(number, wish):
                self._events.put_nowait(event)
        except Exception as error:
            self._events.put_nowait(error)


async def _stream(call: Callable[[], Any], part: str, *, can_repeat: bool) -> AsyncGenerator[Any, None]:
    """Yields what a replica streams; calls another one if it is lost, after the first event only if `can_repeat`."""
    begun = False
    for rest in reversed(range(_TRIES)):
        try:
            async for event in call():
                if isinstance(event, ValueError):
                    raise event
                begun = True
                yield event
        except RayActorError:
            if not rest or (begun and not can_repeat):
                raise Lost(part) from None
            await asyncio.sleep(1.0)
        except RayTaskError as error:
            raise _cause(error) from None
        else:
            return


def _cause(error: RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, ValueError) else error
