"""The two architectures behind one interface: dialogues with media in, replies in text and media out.

* `joint`: NExT-GPT's own. One LLM sees the media, and its signal tokens condition the decoders.
* `scheduler`: the LLM plans tool calls, and all that goes between it and the tools is text.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from model.query import Query
    from model.responder import Responder, Response

Architecture = Literal["joint", "scheduler"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


def respond_batch(
    architecture: Architecture, responder: "Responder", queries: "Sequence[Query]"
) -> "list[Response | ValueError]":
    """Answers dialogues side by side; one that cannot be answered gives its error, and the others are answered."""
    if architecture == "scheduler":
        from jobs import scheduler

        return scheduler.respond_batch(responder, queries)
    try:
        return list(responder.respond_batch(queries))
    except ValueError as error:
        return [error] if len(queries) == 1 else list(_one_by_one(responder, queries))


def _one_by_one(responder: "Responder", queries: "Sequence[Query]") -> "Iterator[Response | ValueError]":
    for query in queries:
        try:
            yield responder.respond(query)
        except ValueError as error:
            yield error
