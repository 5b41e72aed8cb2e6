"""A model with its encoder and decoders, kept in memory: dialogues with media in, text and media out."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import torch

from model.checkpoints.checkpoint import from_pretrained
from model.core.nextgpt import NextGPT
from model.decoders.rendering import DecoderPool
from model.decoders.wish import Wish
from model.encoders.media_encoders import MediaEncoders
from model.inference.generation import OnPart, generate_batch
from model.inference.query import Query, Reply, Response, wishes
from model.parts.builtin import is_untrained
from model.parts.config import ModelConfig
from model.parts.features import ItemFeatures, input_items
from pipelines.sample import Decoded, Modality, Part


class Responder:
    """Answers in text and media; not thread-safe.

    The encoder and decoders are loaded on first use and kept. The modalities of a reply are rendered in parallel:
    spread over the GPUs, or sharing one device; with `decoders.on_device: one` they take turns.
    """

    def __init__(self, model: NextGPT, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._device = model.new_input_rows.weight.device
        self._decoders = DecoderPool(model.config, self._device_of)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, *, device: torch.device | str = "cpu", config: ModelConfig | None = None
    ) -> Self:
        """Loads a checkpoint (a folder or a hub id), with parts as configured; see `checkpoint.from_pretrained`."""
        return cls(*from_pretrained(checkpoint, device=device, config=config))

    @cached_property
    def encoder(self) -> MediaEncoders:
        """The encoders of input media."""
        return MediaEncoders(self.model.config.encoder, device=str(self._device))

    def respond(self, query: Query, *, on_part: Callable[[Part], None] | None = None) -> Response[Decoded]:
        """Answers one dialogue: `respond_batch` with a batch of one."""
        [response] = self.respond_batch([query], on_part=on_part and (lambda _, part: on_part(part)))
        return response

    def stream(self, query: Query) -> Iterator[Part | Response[Decoded]]:
        """Yields the parts of a reply as they become final, as for `on_part`, and then the response itself."""
        parts: SimpleQueue[Part | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(self.respond, query, on_part=parts.put)
            response.add_done_callback(lambda _: parts.put(None))
            while (part := parts.get()) is not None:
                yield part
            yield response.result()

    def respond_batch(self, queries: Sequence[Query], *, on_part: OnPart | None = None) -> list[Response[Decoded]]:
        """Answers dialogues as a batch; on one machine equal calls give equal bytes.

        Item k of a reply is rendered with seed + k. Otherwise as `generate_batch`. Raises ValueError as that does, and
        for an input item without a medium.
        """
        replies = self.reply_batch(queries, on_part=on_part)
        wanted = [wishes(query, reply) for query, reply in zip(queries, replies, strict=True)]
        media = iter(self.render([wish for of_reply in wanted for wish in of_reply]))
        return [
            Response(
                parts=reply.parts,
                media=tuple(next(media) for _ in of_reply),
                prompt_tokens=reply.prompt_tokens,
                tokens=reply.tokens,
                was_cut=reply.was_cut,
                untrained=self.untrained(bool(_inputs(query)), [wish.modality for wish in of_reply]),
            )
            for query, reply, of_reply in zip(queries, replies, wanted, strict=True)
        ]

    def reply_batch(self, queries: Sequence[Query], *, on_part: OnPart | None = None) -> list[Reply]:
        """The LLM's replies, before their items are rendered; raises as `respond_batch`."""
        return generate_batch(self.model, self.tokenizer, self.embedded(queries), on_part=on_part)

    def embedded(self, queries: Sequence[Query]) -> list[Query]:
        """Queries with the features of their media; raises ValueError for an item without a medium."""
        return [replace(query, features=rows) for query, rows in zip(queries, self._features(queries), strict=True)]

    def _features(self, queries: Sequence[Query]) -> list[ItemFeatures]:
        """The embeddings of each dialogue's input items."""
        inputs = [_inputs(query) for query in queries]
        return self.encoder(inputs) if any(inputs) else [{} for _ in queries]

    def render(self, wanted: Sequence[Wish]) -> list[Decoded]:
        """Renders wishes, in order."""
        return self._decoders.render(wanted)

    def untrained(self, has_inputs: bool, made: Sequence[Modality]) -> tuple[str, ...]:
        """The parts with random weights that a reply involves."""
        config = self.model.config
        decoders = [config.outputs[modality].decoder for modality in made]
        used = [config.llm.name, *(config.encoder.names if has_inputs else []), *decoders]
        return tuple(name for name in dict.fromkeys(used) if is_untrained(name))

    def _device_of(self, modality: Modality) -> torch.device:
        """A decoder's device: modalities are assigned round-robin to the GPUs after the LLM's."""
        if self._device.type != "cuda":
            return self._device
        place = (self._device.index or 0) + 1 + list(Modality).index(modality)
        return torch.device("cuda", place % torch.cuda.device_count())


def _inputs(query: Query) -> list[Decoded]:
    """The media of the user's named items, in order."""
    names = [item.name for item in input_items(query.turns)]
    if missing := [name for name in names if name not in query.media]:
        raise ValueError(f"{missing[0]}: a turn refers to this item, but it is missing from media; add it")
    return [query.media[name] for name in names]
