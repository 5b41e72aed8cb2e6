"""The deployments of a model on Ray Serve: the LLM with its encoder, and one decoder per modality; or all in one.

The front end and the command import this module too, so what loads torch is imported where it is used.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.replies.scheduler import needs_guides
from model.decoders.wish import RenderStep, Wish
from model.inference.query import Query, Reply
from model.parts.config import DecoderSettings, ModelConfig
from pipelines.media import codecs
from pipelines.sample import Media, Modality, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a model can do: its name, the modalities it makes with their settings, and its untrained parts.

    With `needs_guides`, prompts must explain how to plan.
    """

    name: str
    settings: dict[Modality, dict[str, Any]]
    untrained: tuple[str, ...]
    needs_guides: bool


class Language:
    """The LLM of a checkpoint with its encoder: queries in, streamed replies out."""

    def __init__(self, checkpoint: str, config: ModelConfig, at_once: int) -> None:
        from jobs.common.cli import quiet
        from model.inference.responder import Responder
        from model.inference.speaker import Speaker
        from model.parts.devices import best_device

        quiet()
        responder = Responder.from_pretrained(checkpoint, device=best_device(), config=config)
        responder.model.merge_adapter()
        responder.encoder  # noqa: B018  loaded now, so that the first request with media does not wait
        self._speaker = Speaker(responder, at_once=at_once)

    async def reply(self, query: Query) -> AsyncGenerator[Part | Reply | ValueError, None]:
        """Yields the parts that `model.inference.generation.generate_batch` reports, and finally the reply.

        For a query that cannot be answered, the last is a ValueError: Serve would log one that is raised, with a
        traceback, as if the server were at fault.
        """
        told, tell = _told()
        ticket, is_done = self._speaker.ask(query, tell), False
        try:
            while not is_done:
                event = await told.get()
                is_done = isinstance(event, Reply)
                yield event
        except ValueError as error:
            is_done = True
            yield error
        finally:
            if not is_done:  # The client is gone.
                self._speaker.drop(ticket)

    async def is_loaded(self) -> bool:
        """True: a replica that answers has its weights."""
        return True

    def check_health(self) -> None:
        """Raises if the model's thread has ended; Serve then replaces the replica."""
        if not self._speaker.is_alive:
            raise RuntimeError("the speaker has ended")


class Renderer:
    """One decoder of a model: wishes in, encoded media out."""

    def __init__(self, name: str, modality: Modality, settings: DecoderSettings, at_once: int | None) -> None:
        import torch

        from jobs.common.cli import quiet
        from model.decoders.decoder import Decoder
        from model.inference.painter import Painter
        from model.parts.devices import best_device

        quiet()
        if best_device() == "cpu":
            torch.set_num_threads(1)  # Decoders share the cores, and small layers do not scale over several.
        decoder = Decoder(modality, name, best_device(), settings)
        # Other processes may hold the other decoders; this one can only leave the GPU when it is idle.
        self._painter = Painter(decoder, at_once=at_once, rests_on="cpu" if settings.on_device == "one" else None)

    async def make(self, wish: Wish) -> AsyncGenerator[RenderStep | Media | ValueError, None]:
        """Yields the denoising steps and finally the file; for unknown settings a ValueError, as `Language.reply`."""
        told, tell = _told()
        self._painter.ask(wish, tell)
        try:
            event = await told.get()
            while isinstance(event, RenderStep):
                yield event
                event = await told.get()
            yield await asyncio.to_thread(codecs.encode, event)
        except ValueError as error:
            yield error

    async def is_loaded(self) -> bool:
        """True: a replica that answers has its weights."""
        return True

    def check_health(self) -> None:
        """Raises if the decoder's thread has ended; Serve then replaces the replica."""
        if not self._painter.is_alive:
            raise RuntimeError("the painter has ended")


class Together:
    """A model whose parts are all in one process, for machines without a GPU; it takes the place of each of them.

    Most of what a small model takes to load is torch, which every process loads anew.
    """

    def __init__(self, checkpoint: str, config: ModelConfig, at_once: int, made_at_once: int | None) -> None:
        self._language = Language(checkpoint, config, at_once)
        self._renderers = {
            modality: Renderer(output.decoder, modality, config.decoders, made_at_once)
            for modality, output in config.outputs.items()
        }

    async def reply(self, query: Query) -> AsyncIterator[Part | Reply | ValueError]:
        """As `Language.reply`."""
        async with aclosing(self._language.reply(query)) as events:
            async for event in events:
                yield event

    async def make(self, wish: Wish) -> AsyncIterator[RenderStep | Media | ValueError]:
        """As `Renderer.make`, by the decoder of the wish."""
        async with aclosing(self._renderers[wish.modality].make(wish)) as events:
            async for event in events:
                yield event

    async def is_loaded(self) -> bool:
        """True: a replica that answers has its weights."""
        return True

    def check_health(self) -> None:
        """Raises if the thread of a part has ended; Serve then replaces the replica."""
        self._language.check_health()
        for renderer in self._renderers.values():
            renderer.check_health()


def about(checkpoint: str, config: ModelConfig) -> About:
    """What the model of a checkpoint can do, read without loading it."""
    from model.checkpoints.description import read_config
    from model.checkpoints.hub import local_checkpoint
    from model.parts.builtin import is_untrained
    from model.parts.families import default_settings

    with local_checkpoint(checkpoint) as folder:
        stages = read_config(folder)["stages"]
    names = [config.llm.name, *config.encoder.names, *(output.decoder for output in config.outputs.values())]
    return About(
        name=Path(checkpoint).name,
        settings={modality: default_settings(modality, output.decoder) for modality, output in config.outputs.items()},
        untrained=tuple(name for name in dict.fromkeys(names) if is_untrained(name)),
        needs_guides=needs_guides(stages),
    )


class _Told:
    """Events from another thread, awaited in the event loop; errors among them are raised."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    async def get(self) -> Any:
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    def put(self, event: Any) -> None:
        self._queue.put_nowait(event)


def _told() -> tuple[_Told, Callable[[Any], None]]:
    told, loop = _Told(), asyncio.get_running_loop()

    def tell(event: Any) -> None:
        loop.call_soon_threadsafe(told.put, event)

    return told, tell
