"""Captioned media of the synthetic world in memory, as training data for its foundations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Image, Modality, Video
from pipelines.world.captions import CAPTIONS, caption, choose, with_article
from pipelines.world.render import render, tone
from pipelines.world.scenes import HARD_EVERY, PITCHES, TIMBRES, Sound, Subject, draw

_APART = 0.2  # of the unit vectors of two timbres
SEED = 1_000_003  # far from the seeds that people give their worlds


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Media of one modality stacked: uint8 (N, H, W, 3) or (N, T, H, W, 3), or float32 (N, T); and captions of each."""

    subjects: list[Subject]
    media: npt.NDArray[np.generic]
    captions: list[list[str]]


def bank(modality: Modality, count: int, *, num_captions: int = 12, hard_every: int = HARD_EVERY) -> Bank:
    """Draws `count` subjects of a modality with a medium each, and captions in different words.

    One in `hard_every` is harder.
    """
    hard = [index % hard_every == hard_every - 1 for index in range(count)]
    subjects = [draw(SEED, index, hard=hard[index])[modality] for index in range(count)]
    media = np.stack([_array(subject, index) for index, subject in enumerate(subjects)])
    # A prime step leads through all wordings.
    captions = [
        [caption(subject, 37 * index + 7 * number) for number in range(num_captions)]
        for index, subject in enumerate(subjects)
    ]
    return Bank(subjects=subjects, media=media, captions=captions)


def half_named_sounds(count: int) -> Bank:
    """Notes on instruments that have no name, and notes between the named ones on instruments that have.

    There are so few pairs of a note and an instrument that a model learns them by heart; with these it has to hear the
    one without the other. What has no name is empty in the subjects, and their captions tell the other half.
    """
    subjects, media, captions = list[Subject](), [], []
    for index in range(count):
        rng = np.random.default_rng([SEED, index, 11])
        if index % 2:
            named = Sound(pitch=str(rng.choice(list(PITCHES))), timbre="")
            frequency, amplitudes = PITCHES[named.pitch], _unnamed_timbre(rng)
            what = f"{with_article(named.pitch)} on some instrument"
        else:
            named = Sound(pitch="", timbre=str(rng.choice(list(TIMBRES))))
            frequency, amplitudes = 25.0 * rng.integers(24, 73), TIMBRES[named.timbre]
            what = f"some note on the {named.timbre}"
        subjects.append(named)
        media.append(tone([frequency], amplitudes, rng).waveform[0])
        captions.append([choose(CAPTIONS[Modality.AUDIO], index + n).format(thing=what) for n in range(12)])
    return Bank(subjects=subjects, media=np.stack(media), captions=captions)


def _unnamed_timbre(rng: np.random.Generator) -> tuple[float, ...]:
    """Amplitudes of harmonics, some of them none, that no named instrument has, nor nearly."""

    def unit(amplitudes: Sequence[float]) -> npt.NDArray[np.float64]:
        return np.array(amplitudes) / np.linalg.norm(amplitudes)

    while True:
        amplitudes = (1.0, *(rng.uniform(0, 1, 3) * rng.integers(0, 2, 3)))
        if min(np.linalg.norm(unit(amplitudes) - unit(named)) for named in TIMBRES.values()) > _APART:
            return amplitudes


def joined(first: Bank, second: Bank) -> Bank:
    """Concatenates two banks."""
    return Bank(
        subjects=first.subjects + second.subjects,
        media=np.concatenate([first.media, second.media]),
        captions=first.captions + second.captions,
    )


def _array(subject: Subject, variant: int) -> npt.NDArray[np.generic]:
    match render(subject, variant):
        case Image(pixels=pixels):
            return pixels
        case Video(frames=frames):
            return frames
        case Audio(waveform=waveform):
            return waveform[0]
