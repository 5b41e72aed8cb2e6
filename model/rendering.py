"""Many media at once: those of a modality in batches, the modalities side by side."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.decoders import Decoder
from model.families import latent_shape
from pipelines.sample import Decoded, Modality

# Numbers of latents that a decoder denoises at once: 16 pictures of Stable Diffusion, one video of ZeroScope.
_LATENTS_AT_ONCE = 1 << 18
_MOST_AT_ONCE = 50  # of small media, so that progress is seen


class Wish(NamedTuple):
    """A medium to be rendered from a decoder's condition (L, D), and the seed of its noise."""

    modality: Modality
    condition: npt.NDArray[np.float32]
    seed: int


def render(
    decoders: Mapping[Modality, Decoder],
    wishes: Sequence[Wish],
    *,
    steps: int | None = None,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Decoded]:
    """Renders wishes in `steps` denoising steps, or as many as their decoders want; media in the wishes' order.

    `on_done` hears of each batch's number of media.
    """
    media: dict[int, Decoded] = {}
    with _lanes(dict.fromkeys(wish.modality for wish in wishes)) as lanes:
        jobs = {}
        for modality, lane in lanes.items():
            decoder = decoders[modality]
            of_one = [place for place, wish in enumerate(wishes) if wish.modality is modality]
            for places in _batches(of_one, decoder):
                conditions = np.stack([wishes[place].condition for place in places])
                seeds = [wishes[place].seed for place in places]
                jobs[lane.submit(decoder.generate_batch, conditions, seeds, steps)] = places
        for job in as_completed(jobs):
            media |= dict(zip(jobs[job], job.result(), strict=True))
            on_done(len(jobs[job]))
    return [media[place] for place in range(len(wishes))]


def _batches(places: Sequence[int], decoder: Decoder) -> Iterator[Sequence[int]]:
    latents = prod(latent_shape(decoder.modality, decoder.name))
    at_once = max(1, min(_MOST_AT_ONCE, _LATENTS_AT_ONCE // latents))
    for start in range(0, len(places), at_once):
        yield places[start : start + at_once]


@contextmanager
def _lanes(modalities: Iterable[Modality]) -> Iterator[dict[Modality, ThreadPoolExecutor]]:
    """A thread for each modality, which has its share of the cores: small layers gain nothing from several."""
    lanes = {modality: ThreadPoolExecutor(1) for modality in modalities}
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // max(1, len(lanes))))
    try:
        yield lanes
    finally:
        for lane in lanes.values():
            lane.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
