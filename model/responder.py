"""A model with its encoder and its decoders, kept loaded: dialogues with media in, text and media out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import from_pretrained
from model.decoders import Decoder
from model.generation import OnPart, Prompt, Reply, generate_batch
from model.imagebind_inputs import ImageBindEncoder
from model.nextgpt import NextGPT
from model.parts import is_untrained
from model.rendering import Wish, render
from pipelines.sample import Decoded, Item, Modality, Part, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A dialogue that ends in a user's turn, the media that its user's items name, and those the reply must hold."""

    turns: Sequence[Turn]
    media: Mapping[str, Decoded] = field(default_factory=dict)
    require: Sequence[Modality] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A reply: its text, its parts in order, and the medium of each item among them.

    `untrained` names the parts with random weights that it came through.
    """

    text: str
    parts: tuple[Part, ...]
    media: tuple[Decoded, ...]
    untrained: tuple[str, ...]


class Responder:
    """Answers in text and media; serves one thread at a time.

    The encoder and each decoder are loaded when first needed, and kept. The modalities of a reply are rendered side by
    side: on several GPUs each has one of its own as far as they go round, on one device they share it.
    """

    def __init__(self, model: NextGPT, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._device = model.new_input_rows.weight.device
        self._decoders: dict[Modality, Decoder] = {}

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Loads a checkpoint (a folder or a hub id); raises as `model.checkpoint.from_pretrained`."""
        return cls(*from_pretrained(checkpoint, device=device))

    @cached_property
    def encoder(self) -> ImageBindEncoder:
        """What embeds the media that are shown."""
        return ImageBindEncoder(self.model.config.encoder.name, device=str(self._device))

    def respond(
        self,
        turns: Sequence[Turn],
        media: Mapping[str, Decoded],
        *,
        require: Sequence[Modality] = (),
        on_part: Callable[[Part], None] | None = None,
        **options: Any,
    ) -> Response:
        """Answers one dialogue: `respond_batch` of it alone, with its options."""
        query = Query(turns=turns, media=media, require=require)
        [response] = self.respond_batch([query], on_part=on_part and (lambda _, part: on_part(part)), **options)
        return response

    def stream(self, turns: Sequence[Turn], media: Mapping[str, Decoded], **options: Any) -> Iterator[Part | Response]:
        """Yields the parts of a reply as they come, as `on_part` is told them, and at last what `respond` returns."""
        parts: SimpleQueue[Part | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(self.respond, turns, media, on_part=parts.put, **options)
            response.add_done_callback(lambda _: parts.put(None))
            while (part := parts.get()) is not None:
                yield part
            yield response.result()

    def respond_batch(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int = 256,
        max_items: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        steps: int | None = None,
        on_part: OnPart | None = None,
    ) -> list[Response]:
        """Answers dialogues side by side; on one machine equal calls give equal bytes.

        Reply r is drawn from seed + r, its item k rendered from seed + r + k, in `steps` steps or as many as its
        decoder wants. The rest is as in `generate_batch`. Raises ValueError as it does, and for an item without a
        medium.
        """
        features = self._features(queries)
        replies = generate_batch(
            self.model,
            self.tokenizer,
            [
                Prompt(turns=query.turns, features=rows, require=query.require)
                for query, rows in zip(queries, features, strict=True)
            ],
            max_new_tokens=max_new_tokens,
            max_items=max_items,
            temperature=temperature,
            seed=seed,
            on_part=on_part,
        )
        media = self._render(replies, seed, steps)
        return [
            Response(text=reply.text, parts=reply.parts, media=items, untrained=self._untrained(len(rows) > 0, reply))
            for reply, items, rows in zip(replies, media, features, strict=True)
        ]

    def _features(self, queries: Sequence[Query]) -> list[npt.NDArray[np.float32]]:
        """The embeddings (N, E) of each dialogue's input items."""
        inputs = [_inputs(query) for query in queries]
        if not any(inputs):
            return [np.zeros((0, self.model.config.encoder.dim), np.float32) for _ in queries]
        rows_NE = self.encoder([medium for media in inputs for medium in media])
        return np.split(rows_NE, np.cumsum([len(media) for media in inputs])[:-1])

    def _render(self, replies: Sequence[Reply], seed: int, steps: int | None) -> list[tuple[Decoded, ...]]:
        """The media of all replies."""
        wishes = [
            Wish(modality, condition, seed + row + number)
            for row, reply in enumerate(replies)
            for number, (modality, condition) in enumerate(reply.conditions)
        ]
        # In turn: loading is not safe in threads.
        decoders = {modality: self._decoder(modality) for modality in dict.fromkeys(wish.modality for wish in wishes)}
        media = iter(render(decoders, wishes, steps=steps))
        return [tuple(next(media) for _ in reply.conditions) for reply in replies]

    def _decoder(self, modality: Modality) -> Decoder:
        if modality not in self._decoders:
            device = self._device
            if device.type == "cuda":  # from the LLM's own on, one GPU further for each modality
                place = (device.index or 0) + 1 + list(Modality).index(modality)
                device = torch.device("cuda", place % torch.cuda.device_count())
            self._decoders[modality] = Decoder(modality, self.model.config.outputs[modality].decoder, device=device)
        return self._decoders[modality]

    def _untrained(self, has_inputs: bool, reply: Reply) -> tuple[str, ...]:
        config = self.model.config
        decoders = [config.outputs[modality].decoder for modality, _ in reply.conditions]
        used = [config.llm.name, *([config.encoder.name] if has_inputs else []), *decoders]
        return tuple(name for name in dict.fromkeys(used) if is_untrained(name))


def _inputs(query: Query) -> list[Decoded]:
    """The media of the user's named items in the order they stand."""
    parts = [part for turn in query.turns if turn.role == "user" for part in turn.parts]
    names = [part.name for part in parts if isinstance(part, Item) and part.name]
    if missing := [name for name in names if name not in query.media]:
        raise ValueError(f"{missing[0]}: an item of a turn is named so, but media has no such name; add it")
    return [query.media[name] for name in names]
