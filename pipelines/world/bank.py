"""Media of the synthetic world with captions, in memory: what its foundations are trained on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Image, Modality, Video
from pipelines.world.captions import caption
from pipelines.world.render import render
from pipelines.world.scenes import HARD_EVERY, Subject, draw

SEED = 1_000_003  # far from the seeds that people give their worlds


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Media of one modality stacked: uint8 (N, H, W, 3) or (N, T, H, W, 3), or float32 (N, T); and captions of each."""

    subjects: list[Subject]
    media: npt.NDArray[np.generic]
    captions: list[list[str]]


def bank(
    modality: Modality, count: int, *, num_captions: int = 12, held_out: bool = False, hard_every: int = HARD_EVERY
) -> Bank:
    """Draws `count` subjects of a modality with a medium each, and captions in different words.

    One in `hard_every` is harder. Few sounds are needed to name all training combinations, so few that a model learns
    them by heart; melodies, which lead through other notes, keep it from that.
    """
    hard = [index % hard_every == hard_every - 1 for index in range(count)]
    subjects = [draw(SEED, index, held_out=held_out, hard=hard[index])[modality] for index in range(count)]
    media = np.stack([_array(subject, index) for index, subject in enumerate(subjects)])
    # A prime step leads through all wordings.
    captions = [
        [caption(subject, 37 * index + 7 * number) for number in range(num_captions)]
        for index, subject in enumerate(subjects)
    ]
    return Bank(subjects=subjects, media=media, captions=captions)


def _array(subject: Subject, variant: int) -> npt.NDArray[np.generic]:
    match render(subject, variant):
        case Image(pixels=pixels):
            return pixels
        case Video(frames=frames):
            return frames
        case Audio(waveform=waveform):
            return waveform[0]
