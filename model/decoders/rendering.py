"""Renders many media: in batches, in parallel if devices allow, with decoders loaded on first use."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from model.decoders.decoder import Decoder
from model.decoders.wish import Wish
from model.parts.config import ModelConfig
from model.parts.families import latent_shape
from pipelines.sample import Decoded, Modality

# Latent values per batch: 16 images of Stable Diffusion, one video of ZeroScope.
_LATENTS_AT_ONCE = 1 << 18
_MOST_AT_ONCE = 50  # of small media, so that progress shows


class _Batch(NamedTuple):
    """Wishes of one kind, by index, and the size of their latents."""

    modality: Modality
    places: Sequence[int]
    latents: int


def render(
    decoders: Mapping[Modality, Decoder],
    wishes: Sequence[Wish],
    *,
    on_done: Callable[[Sequence[int], Sequence[Decoded]], None] = lambda places, media: None,
) -> list[Decoded]:
    """Renders wishes, in order. `on_done` receives the indices and media of each finished batch."""
    media: dict[int, Decoded] = {}
    # Longest first, so that short batches fill the gaps at the end.
    batches = sorted(_batches(decoders, wishes), key=lambda batch: -batch.latents)
    own = _OwnDecoders(decoders)
    with _lanes(decoders, batches) as lanes:
        jobs = {}
        for batch in batches:
            of_batch = [wishes[place] for place in batch.places]
            jobs[lanes[batch.modality].submit(own.render, of_batch)] = batch
        for job in as_completed(jobs):
            places = jobs[job].places
            media |= dict(zip(places, job.result(), strict=True))
            on_done(places, job.result())
    return [media[place] for place in range(len(wishes))]


def render_batch(
    decoder: Decoder, wishes: Sequence[Wish], on_step: Callable[[int, int], None] | None = None
) -> list[Decoded]:
    """Renders wishes of one kind as one batch; raises ValueError as `Decoder.generate_batch` does."""
    said = [wish.condition for wish in wishes if isinstance(wish.condition, str)]
    embedded = iter(decoder.embed(said)) if said else iter(())
    conditions = [next(embedded) if isinstance(wish.condition, str) else wish.condition for wish in wishes]
    seeds = [wish.seed for wish in wishes]
    first = wishes[0]
    return decoder.generate_batch(
        np.stack(conditions), seeds, on_step=on_step, negative=first.negative, **first.settings
    )


def _batches(decoders: Mapping[Modality, Decoder], wishes: Sequence[Wish]) -> Iterator[_Batch]:
    kinds: dict[Hashable, list[int]] = {}
    for place, wish in enumerate(wishes):
        kinds.setdefault(wish.kind, []).append(place)
    for places in kinds.values():
        modality, settings = wishes[places[0]].modality, wishes[places[0]].settings
        latents = _latents(decoders[modality], settings)
        at_once = most_at_once(decoders[modality], settings)
        for start in range(0, len(places), at_once):
            chosen = places[start : start + at_once]
            yield _Batch(modality, chosen, latents * len(chosen))


def most_at_once(decoder: Decoder, settings: Mapping[str, Any]) -> int:
    """The largest batch size for a decoder."""
    return max(1, min(_MOST_AT_ONCE, _LATENTS_AT_ONCE // _latents(decoder, settings)))


def _latents(decoder: Decoder, settings: Mapping[str, Any]) -> int:
    return prod(latent_shape(decoder.modality, decoder.name, dict(settings)))


class _OwnDecoders(threading.local):
    """Thread-local decoders, created on first use."""

    def __init__(self, decoders: Mapping[Modality, Decoder]) -> None:
        self._shared, self._own = decoders, dict[Modality, Decoder]()

    def render(self, wishes: Sequence[Wish]) -> list[Decoded]:
        """Renders wishes of one kind as one batch."""
        modality = wishes[0].modality
        if modality not in self._own:
            self._own[modality] = self._shared[modality].for_another_thread()
        return render_batch(self._own[modality], wishes)


@contextmanager
def _lanes(
    decoders: Mapping[Modality, Decoder], batches: Sequence[_Batch]
) -> Iterator[dict[Modality, ThreadPoolExecutor]]:
    """The thread pools that render the batches of each modality.

    An accelerator renders one batch per modality at a time. On the CPU, small batches run in parallel with one thread
    each: small layers gain nothing from more.
    """
    modalities = dict.fromkeys(batch.modality for batch in batches)
    threads = torch.get_num_threads()
    if all(decoders[modality].pipe.device.type == "cpu" for modality in modalities):
        at_once = _LATENTS_AT_ONCE // max((batch.latents for batch in batches), default=1)
        count = min(len(batches), max(len(modalities), min(threads, at_once)))
        lanes = dict.fromkeys(modalities, ThreadPoolExecutor(max(1, count)))
    else:
        count = len(modalities)
        lanes = {modality: ThreadPoolExecutor(1) for modality in modalities}
    torch.set_num_threads(max(1, threads // max(1, count)))
    try:
        yield lanes
    finally:
        for lane in lanes.values():
            lane.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


OnDone = Callable[[Sequence[int], Sequence[Decoded]], None]


class DecoderPool:
    """Renders media of all modalities as configured by `config.decoders`; decoders are loaded on first use and kept.

    `device_of` gives each decoder's device. With `on_device: one`, modalities are rendered in turn and only the active
    decoder is on its device; otherwise in parallel. Loading raises as `Decoder` does.
    """

    def __init__(self, config: ModelConfig, device_of: Callable[[Modality], torch.device | str]) -> None:
        self._config, self._device_of = config, device_of
        self._decoders: dict[Modality, Decoder] = {}

    @property
    def loaded(self) -> set[Modality]:
        """The modalities whose decoders are loaded."""
        return set(self._decoders)

    def render(self, wishes: Sequence[Wish], *, on_done: OnDone = lambda places, media: None) -> list[Decoded]:
        """Renders wishes as the function `render` does."""
        modalities = list(dict.fromkeys(wish.modality for wish in wishes))
        if self._config.decoders.on_device == "all":
            # Loaded one by one: loading is not thread-safe.
            return render({modality: self.decoder(modality) for modality in modalities}, wishes, on_done=on_done)
        media: dict[int, Decoded] = {}
        for modality in modalities:
            places = [place for place, wish in enumerate(wishes) if wish.modality is modality]
            media |= zip(places, self._render_alone(modality, wishes, places, on_done), strict=True)
        return [media[place] for place in range(len(wishes))]

    def decoder(self, modality: Modality) -> Decoder:
        """A decoder, moved to its device; with `on_device: one` the others are offloaded."""
        if self._config.decoders.on_device == "one":
            self.offload(other for other in self._decoders if other is not modality)
        device = self._device_of(modality)
        if modality not in self._decoders:
            name = self._config.outputs[modality].decoder
            self._decoders[modality] = Decoder(modality, name, device, self._config.decoders)
        self._decoders[modality].to(device)
        return self._decoders[modality]

    def offload(self, modalities: Iterable[Modality] | None = None) -> None:
        """Moves decoders (by default all) to host memory, and frees their device memory."""
        for modality in list(self._decoders if modalities is None else modalities):
            self._decoders[modality].to("cpu")

    def _render_alone(
        self, modality: Modality, wishes: Sequence[Wish], places: Sequence[int], on_done: OnDone
    ) -> list[Decoded]:
        return render(
            {modality: self.decoder(modality)},
            [wishes[place] for place in places],
            on_done=lambda done, media: on_done([places[place] for place in done], media),
        )
