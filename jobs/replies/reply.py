"""Runs a request on a worker that has what the model needs: read the inputs, respond, write the media."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from jobs.replies.respond import Architecture, respond_batch
from model.inference.query import Query, Sampling
from model.parts.config import ModelConfig
from pipelines.sample import Item, Media, Modality, Part, Turn

if TYPE_CHECKING:
    from model.inference.responder import Responder, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt with its input media, the media the reply must hold, and how to sample.

    `config` is the checkpoint's model with its parts found.
    """

    checkpoint: str | Path
    config: ModelConfig
    architecture: Architecture
    prompt: str
    inputs: Sequence[Media]
    require: Sequence[Modality]
    sampling: Sampling
    steps: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole reply: its text, its media in the order they stand, and the untrained parts it came through."""

    text: str
    media: tuple[Media, ...]
    untrained: tuple[str, ...]


def answer(request: Request, say: Callable[[str], None]) -> Result:
    """Responds on a worker; `say` is told the reply's text in pieces as they come."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    on_worker = ray.remote(num_gpus=gpus, num_cpus=1, num_returns="streaming")(respond)
    for reference in on_worker.remote(request):
        part = ray.get(reference)
        if isinstance(part, str):
            say(part)
    assert isinstance(part, Result)
    return part


def respond(request: Request) -> Iterator[str | Result]:
    """Yields the reply's text in pieces, and at last the whole."""
    from jobs.common.cli import quiet
    from model.parts.devices import best_device

    quiet()
    device = best_device()
    from model.inference.responder import Responder, Response
    from pipelines.embed.shard_embedder import VIDEO_FPS
    from pipelines.media import codecs

    responder = Responder.from_pretrained(request.checkpoint, device=device, config=request.config)
    items = [Item(modality=medium.modality, name=str(place)) for place, medium in enumerate(request.inputs)]
    inputs = [codecs.decode(medium, fps=VIDEO_FPS) for medium in request.inputs]
    query = Query(
        turns=[Turn(role="user", parts=(*items, request.prompt))],
        media={item.name: medium for item, medium in zip(items, inputs, strict=True)},
        require=request.require,
        sampling=request.sampling,
        settings={modality: {"steps": request.steps} for modality in Modality} if request.steps else {},
    )
    for part in _parts(request.architecture, responder, query):
        if isinstance(part, Response):
            media = tuple(codecs.encode(medium) for medium in part.media)
            yield Result(text=part.text, media=media, untrained=part.untrained)
        elif isinstance(part, str):
            yield part


def _parts(architecture: Architecture, responder: "Responder", query: Query) -> "Iterator[Part | Response]":
    """A reply in parts as they come, at last the whole; an LLM that schedules tools says its text all at once."""
    if architecture == "joint":
        yield from responder.stream(query)
        return
    [response] = respond_batch(architecture, responder, [query])
    if isinstance(response, ValueError):
        raise response
    if response.text:
        yield response.text
    yield response
