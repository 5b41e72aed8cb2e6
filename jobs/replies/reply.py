"""One reply, made on a worker: input media are decoded, the model answers, and its media are encoded."""

from collections.abc import Callable, Iterator, Sequence

import ray

from jobs.replies.respond import ReplySettings, stream
from model.inference.query import Response
from pipelines.embed.shard_embedder import VIDEO_FPS
from pipelines.media import codecs
from pipelines.sample import Item, Media, Turn


def answer(
    settings: ReplySettings, prompt: str, inputs: Sequence[Media], say: Callable[[str], None]
) -> Response[Media]:
    """Answers a prompt with its input media on a worker; `say` receives the text in pieces as they come."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    on_worker = ray.remote(num_gpus=gpus, num_cpus=1, num_returns="streaming")(respond)
    for reference in on_worker.remote(settings, prompt, inputs):
        part = ray.get(reference)
        if isinstance(part, str):
            say(part)
    assert isinstance(part, Response)
    return part


def respond(settings: ReplySettings, prompt: str, inputs: Sequence[Media]) -> Iterator[str | Response[Media]]:
    """Yields the reply's text in pieces, and the whole reply last."""
    responder = settings.load()
    items = [Item(modality=medium.modality, name=str(place)) for place, medium in enumerate(inputs)]
    media = {item.name: codecs.decode(medium, fps=VIDEO_FPS) for item, medium in zip(items, inputs, strict=True)}
    query = settings.query([Turn(role="user", parts=(*items, prompt))], media)
    for part in stream(settings.architecture, responder, query):
        if isinstance(part, str):
            yield part
        elif not isinstance(part, Item):
            yield Response(
                parts=part.parts,
                media=tuple(codecs.encode(medium) for medium in part.media),
                prompt_tokens=part.prompt_tokens,
                tokens=part.tokens,
                was_cut=part.was_cut,
                plan=part.plan,
                untrained=part.untrained,
            )
