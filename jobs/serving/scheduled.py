"""An LLM that schedules tools, on Ray Serve: `jobs.replies.scheduler` with all parts side by side."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from jobs.replies.scheduler import Prepared, prepare
from jobs.serving.handles import Handles
from jobs.serving.requests.events import Begun, Event, Finished, Made, Planned, Said
from model.inference.generation import Reply
from model.inference.query import Query
from pipelines.sample import Media


async def answer(handles: Handles, query: Query, *, guides: bool) -> AsyncGenerator[Event, None]:
    """Tells a reply as it comes: its plan, its text while the media are being made, then these.

    Raises as `Handles` does, and NoPlan.
    """
    prepared = await _prepared(handles, query, guides)
    yield Planned(prepared.plan)
    reply: Reply | None = None
    media: dict[int, Media] = {}
    async with handles.making(prepared.wishes) as events:
        async for part in handles.speak(prepared.query):
            if isinstance(part, str):
                yield Said(part)
            elif isinstance(part, Reply):
                reply = part
        assert reply is not None
        for number, wish in enumerate(prepared.wishes):
            yield Begun(number, wish.modality)
        async for event in events:
            if isinstance(event, Made):
                media[event.number] = event.media
            yield event
    yield Finished(
        parts=prepared.parts(reply.text),
        media=tuple(media[place] for place in sorted(media)),
        prompt_tokens=prepared.prompt_tokens + reply.prompt_tokens,
        tokens=prepared.tokens + reply.tokens,
        was_cut=reply.was_cut,
        plan=prepared.plan,
    )


async def _prepared(handles: Handles, query: Query, guides: bool) -> Prepared:
    asks = prepare(query, guides=guides)
    go_on: Callable[[], Sequence[Query]] = partial(next, asks)
    while True:
        try:
            queries = go_on()
        except StopIteration as stop:
            prepared: Prepared = stop.value
            return prepared
        try:
            replies = await asyncio.gather(*(handles.reply(one) for one in queries))
            go_on = partial(asks.send, replies)
        except ValueError as error:
            go_on = partial(asks.throw, error)
