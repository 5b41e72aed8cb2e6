"""The architecture of NExT-GPT: one LLM says the text and, through its signal tokens, what the decoders make."""

from collections.abc import AsyncGenerator

from jobs.serving.handles import Handles
from jobs.serving.requests.events import Begun, Event, Finished, Made, Said
from model.inference.generation import Reply
from model.inference.query import Query
from model.inference.responder import wishes
from pipelines.sample import Item, Media


async def answer(handles: Handles, query: Query) -> AsyncGenerator[Event, None]:
    """Tells a reply as it comes: text at once, then the media, made side by side, each when it is ready.

    Raises as `Handles` does.
    """
    reply: Reply | None = None
    number = 0
    async for part in handles.speak(query):
        if isinstance(part, str):
            yield Said(part)
        elif isinstance(part, Item):
            yield Begun(number, part.modality)
            number += 1
        else:
            reply = part
    assert reply is not None
    media: dict[int, Media] = {}
    async with handles.making(wishes(query, reply)) as events:
        async for event in events:
            if isinstance(event, Made):
                media[event.number] = event.media
            yield event
    yield Finished(
        parts=reply.parts,
        media=tuple(media[place] for place in sorted(media)),
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        was_cut=reply.was_cut,
    )
