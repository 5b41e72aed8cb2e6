"""Both architectures on one interface, and the synchronous driver that answers batches with either.

* `joint` is NExT-GPT's own: one LLM sees the media, and its signal tokens condition the decoders.
* `scheduler` plans tool calls first (`scheduler.py`); only text passes between the LLM and its tools.

An architecture is a generator: it yields the queries that it needs answered first, and returns how to ask for the reply
itself. The asynchronous driver of the chat server is in `jobs.serving.service`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.replies.options import Architecture, decoder_settings
from jobs.replies.scheduler import Asks, Preparation, needs_guides, prepare
from model.inference.query import Query, Reply, Response, Sampling, side_by_side
from model.parts.config import ModelConfig
from pipelines.sample import Decoded, Item, Modality, Part, Turn

if TYPE_CHECKING:
    from model.inference.responder import Responder


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplySettings:
    """The model that answers, and how it is asked. `config` is the checkpoint's, with its frozen parts located."""

    checkpoint: str | Path
    config: ModelConfig
    architecture: Architecture
    require: Sequence[Modality]
    sampling: Sampling
    steps: int | None

    def query(self, turns: Sequence[Turn], media: Mapping[str, Decoded], number: int = 0) -> Query:
        """A dialogue as a query; dialogue `number` of a file is sampled with the seed + number."""
        return Query(
            turns=turns,
            media=media,
            require=self.require,
            sampling=replace(self.sampling, seed=self.sampling.seed + number),
            settings=decoder_settings(self.steps),
        )

    def load(self) -> "Responder":
        """Loads the model on the best device of this process, with the libraries' logs silenced."""
        from jobs.common.cli import quiet
        from model.parts.devices import best_device

        quiet()
        device = best_device()  # before transformers is imported
        from model.inference.responder import Responder

        return Responder.from_pretrained(self.checkpoint, device=device, config=self.config)


def asks(architecture: Architecture, query: Query, *, guides: bool) -> Asks:
    """What an architecture asks the LLM for a reply; raises NoPlan. `guides` is as in `scheduler.prepare`."""
    if architecture == "joint":
        return Preparation(query=query)
    return (yield from prepare(query, guides=guides))


def respond_batch(
    architecture: Architecture, responder: "Responder", queries: Sequence[Query]
) -> list[Response[Decoded] | ValueError]:
    """Answers dialogues side by side; one that cannot be answered gets its error, the others their replies."""
    prepared = _prepare(architecture, responder, queries)
    good = [found for found in prepared if isinstance(found, Preparation)]
    last = iter(side_by_side(responder.respond_batch, [found.query for found in good]))
    media = iter(responder.render([wish for found in good for wish in found.wishes]))
    responses: list[Response[Decoded] | ValueError] = []
    for query, found in zip(queries, prepared, strict=True):
        if isinstance(found, ValueError):
            responses.append(found)
            continue
        response, made = next(last), tuple(next(media) for _ in found.wishes)
        responses.append(
            response if isinstance(response, ValueError) else _whole(responder, query, found, response, made)
        )
    return responses


def stream(architecture: Architecture, responder: "Responder", query: Query) -> Iterator[Part | Response[Decoded]]:
    """Yields the parts of one reply as they come, and at last the whole; raises ValueError where there is none."""
    [prepared] = _prepare(architecture, responder, [query])
    if isinstance(prepared, ValueError):
        raise prepared
    for part in responder.stream(prepared.query):
        if isinstance(part, str | Item):
            yield part
        else:
            yield _whole(responder, query, prepared, part, tuple(responder.render(prepared.wishes)))


def _whole(
    responder: "Responder", query: Query, prepared: Preparation, last: Response[Decoded], made: tuple[Decoded, ...]
) -> Response[Decoded]:
    """The last answer of the LLM together with what was asked and made before it."""
    parts = prepared.parts(last.parts)
    return replace(
        last,
        parts=parts,
        media=(*last.media, *made),
        prompt_tokens=prepared.prompt_tokens + last.prompt_tokens,
        tokens=prepared.tokens + last.tokens,
        plan=prepared.plan,
        untrained=responder.untrained(bool(query.media), [part.modality for part in parts if isinstance(part, Item)]),
    )


def _prepare(
    architecture: Architecture, responder: "Responder", queries: Sequence[Query]
) -> list[Preparation | ValueError]:
    """Drives all dialogues side by side until each is prepared or has failed."""
    guides = needs_guides(responder.model.stages)
    generators = [asks(architecture, query, guides=guides) for query in queries]
    done: dict[int, Preparation | ValueError] = {}
    waiting: dict[int, Sequence[Query]] = {}

    def go_on(number: int, replies: Sequence[Reply | ValueError]) -> None:
        generator = generators[number]
        failed = next((reply for reply in replies if isinstance(reply, ValueError)), None)
        try:
            waiting[number] = generator.throw(failed) if failed else generator.send(replies or None)  # type: ignore[arg-type]
        except StopIteration as stop:
            done[number] = stop.value
        except ValueError as error:
            done[number] = error

    for number in range(len(generators)):
        go_on(number, ())
    while waiting:
        asked, waiting = waiting, {}
        replies = iter(side_by_side(responder.reply_batch, [query for queries in asked.values() for query in queries]))
        for number, queries in asked.items():
            go_on(number, [next(replies) for _ in queries])
    return [done[number] for number in range(len(generators))]
