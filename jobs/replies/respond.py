"""The two architectures behind one interface: dialogues with media in, replies in text and media out.

* `joint`: NExT-GPT's own. One LLM sees the media, and its signal tokens condition the decoders.
* `scheduler`: the LLM plans tool calls, and all that goes between it and the tools is text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from model.inference.query import Query, side_by_side

if TYPE_CHECKING:
    from model.inference.responder import Responder, Response

Architecture = Literal["joint", "scheduler"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


def respond_batch(
    architecture: Architecture, responder: "Responder", queries: Sequence[Query]
) -> "list[Response | ValueError]":
    """Answers dialogues side by side; one that cannot be answered gives its error, and the others are answered."""
    if architecture == "scheduler":
        from jobs.replies import scheduler

        return scheduler.respond_batch(responder, queries)
    return side_by_side(responder.respond_batch, queries)
