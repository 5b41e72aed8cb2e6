"""What the page and the API share: the asynchronous driver of both architectures, and a limit on concurrent replies."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
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

    When all places are taken, `answer` raises Full at once, with the seconds after which to try again.
    """

    about: About
    answer_all: AnswerAll
    places: int
    architecture: Architecture = "joint"
    taken: int = 0
    seconds: float = 5.0  # moving average of the time a reply takes

    async def answer(self, query: Query) -> AsyncGenerator[Event, None]:
        """Yields the events of a reply as `answer` below does; raises Full as well."""
        if self.taken >= self.places:
            raise Full(max(_LEAST_WAIT, round(self.seconds)))
        self.taken += 1
        started = time.monotonic()
        try:
            async for event in self.answer_all(query):
                yield event
            self.seconds += 0.1 * (time.monotonic() - started - self.seconds)
        finally:
            self.taken -= 1


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
