"""The two architectures behind one interface: dialogues with media in, replies in text and media out.

* `joint`: NExT-GPT's own. One LLM sees the media, and its signal tokens condition the decoders.
* `scheduler`: the LLM plans tool calls, and all that goes between it and the tools is text.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from model.query import Query
    from model.responder import Responder, Response

T = TypeVar("T")
Architecture = Literal["joint", "scheduler"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


def respond_batch(
    architecture: Architecture, responder: "Responder", queries: "Sequence[Query]"
) -> "list[Response | ValueError]":
    """Answers dialogues side by side; one that cannot be answered gives its error, and the others are answered."""
    if architecture == "scheduler":
        from jobs import scheduler

        return scheduler.respond_batch(responder, queries)
    return side_by_side(responder.respond_batch, queries)


def side_by_side(
    answer: "Callable[[Sequence[Query]], Sequence[T]]", queries: "Sequence[Query]"
) -> "list[T | ValueError]":
    """What `answer` gives for all at once; where one of them cannot be answered, one by one, to tell which."""
    try:
        return list(answer(queries))
    except ValueError as error:
        if len(queries) == 1:
            return [error]
    return [found for query in queries for found in side_by_side(answer, [query])]
