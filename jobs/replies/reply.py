"""One reply, made on a worker: input media are decoded, the model answers, and its media are encoded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray

from jobs.replies.respond import ReplySettings, stream
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.sample import Item, Media, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole reply as files: its text, its media in order, and the untrained parts that took part in it."""

    text: str
    media: tuple[Media, ...]
    untrained: tuple[str, ...]


def answer(settings: ReplySettings, prompt: str, inputs: Sequence[Media], say: Callable[[str], None]) -> Result:
    """Answers a prompt with its input media on a worker; `say` receives the text in pieces as they come."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    on_worker = ray.remote(num_gpus=gpus, num_cpus=1, num_returns="streaming")(respond)
    for reference in on_worker.remote(settings, prompt, inputs):
        part = ray.get(reference)
        if isinstance(part, str):
            say(part)
    assert isinstance(part, Result)
    return part


def respond(settings: ReplySettings, prompt: str, inputs: Sequence[Media]) -> Iterator[str | Result]:
    """Yields the reply's text in pieces, and the whole reply last."""
    responder = settings.load()
    items = [Item(modality=medium.modality, name=str(place)) for place, medium in enumerate(inputs)]
    media = {item.name: codecs.decode(medium, fps=VIDEO_FPS) for item, medium in zip(items, inputs, strict=True)}
    query = settings.query([Turn(role="user", parts=(*items, prompt))], media)
    for part in stream(settings.architecture, responder, query):
        if isinstance(part, str):
            yield part
        elif not isinstance(part, Item):
            encoded = tuple(codecs.encode(medium) for medium in part.media)
            yield Result(text=part.text, media=encoded, untrained=part.untrained)
