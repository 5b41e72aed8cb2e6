"""What the page and the API share: the asynchronous driver of both architectures, and a limit on concurrent replies."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from jobs.replies.events import Begun, Event, Full, Made, Planned, Said
from jobs.replies.options import Architecture
from jobs.replies.scheduler import Asks, Preparation
from jobs.serving.deployments import About
from jobs.serving.handles import Handles
from model.inference.query import Query, Reply, Response, wishes
from pipelines.sample import Item, Media

AnswerAll = Callable[[Query], AsyncGenerator[Event, None]]
_LEAST_WAIT = 1


@dataclass(slots=True)
class Service:
    """A model that answers up to `places` conversations at a time.

    When all places are taken, `answer` and `choices` raise Full at once, with the seconds after which to try again.
    """

    about: About
    answer_all: AnswerAll
    places: int
    architecture: Architecture = "joint"
    taken: int = 0
    seconds: float = 5.0  # moving average of the time a reply takes

    async def answer(self, query: Query) -> AsyncGenerator[Event, None]:
        """Yields the events of a reply as `answer` below does; raises Full as well."""
        async with aclosing(self.choices([query])) as events:
            async for _, event in events:
                yield event

    async def choices(self, queries: Sequence[Query]) -> AsyncGenerator[tuple[int, Event], None]:
        """Yields the events of several replies to one conversation, each with the reply's number.

        They are made side by side, and take one place. Raises as `answer`.
        """
        if self.taken >= self.places:
            raise Full(max(_LEAST_WAIT, round(self.seconds)))
        self.taken += 1
        started = time.monotonic()
        try:
            async with aclosing(_side_by_side([self.answer_all(query) for query in queries])) as events:
                async for numbered in events:
                    yield numbered
            self.seconds += 0.1 * (time.monotonic() - started - self.seconds)
        finally:
            self.taken -= 1


async def _side_by_side(
    replies: Sequence[AsyncGenerator[Event, None]],
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yields the events of all replies with their numbers; raises the first error, and ends the others then."""
    told: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue()

    async def follow(number: int, reply: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(reply):
                async for event in reply:
                    told.put_nowait((number, event))
            told.put_nowait((number, None))
        except Exception as error:
            told.put_nowait((number, error))

    tasks = [asyncio.create_task(follow(number, reply)) for number, reply in enumerate(replies)]
    left = len(tasks)
    try:
        while left:
            number, event = await told.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield number, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(handles: Handles, asks: Asks) -> AsyncGenerator[Event, None]:
    """Yields the events of a reply as they happen: its plan if it has one, its text, then its media as they are ready.

    Media are made side by side, those of a plan while the text is written. Raises as `Handles` does, and NoPlan.
    """
    prepared = await _prepared(handles, asks)
    reply: Reply | None = None
    begun, media = 0, dict[int, Media]()
    if prepared.plan:
        yield Planned(prepared.plan)
    async with handles.making() as making:
        making.start(prepared.wishes)
        async for part in handles.speak(prepared.query):
            if isinstance(part, str):
                yield Said(part)
            elif isinstance(part, Item):
                yield Begun(begun, part.modality)
                begun += 1
            else:
                reply = part
        assert reply is not None
        for number, wish in enumerate(prepared.wishes):
            yield Begun(number, wish.modality)
        making.start(wishes(prepared.query, reply))
        async for event in making.events():
            if isinstance(event, Made):
                media[event.number] = event.media
            yield event
    yield Response(
        parts=prepared.parts(reply.parts),
        media=tuple(media[place] for place in sorted(media)),
        prompt_tokens=prepared.prompt_tokens + reply.prompt_tokens,
        tokens=prepared.tokens + reply.tokens,
        was_cut=reply.was_cut,
        plan=prepared.plan,
    )


async def _prepared(handles: Handles, asks: Asks) -> Preparation:
    """Drives what an architecture asks before the reply itself."""
    go_on: Callable[[], Sequence[Query]] = partial(next, asks)
    while True:
        try:
            queries = go_on()
        except StopIteration as stop:
            prepared: Preparation = stop.value
            return prepared
        try:
            replies: list[Reply] = await asyncio.gather(*(handles.reply(one) for one in queries))
            go_on = partial(asks.send, replies)
        except ValueError as error:
            go_on = partial(asks.throw, error)
