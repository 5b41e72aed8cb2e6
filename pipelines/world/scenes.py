"""What exists in the synthetic world: still shapes, moving shapes and sounds, drawn by seed and index."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipelines.sample import Modality

SHAPES = ("circle", "square", "triangle", "cross")
# RGB, far enough apart to be told from each other after an MP4 has halved the chroma.
COLOURS = {
    "red": (215, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (240, 215, 30),
    "green": (30, 150, 55),
    "cyan": (40, 200, 215),
    "blue": (35, 60, 215),
    "purple": (130, 45, 175),
    "pink": (245, 125, 190),
}
# Centre of the shape as fractions of width and height, from the top left.
PLACES = {
    "top left": (0.22, 0.22),
    "top": (0.5, 0.22),
    "top right": (0.78, 0.22),
    "left": (0.22, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.78, 0.5),
    "bottom left": (0.22, 0.78),
    "bottom": (0.5, 0.78),
    "bottom right": (0.78, 0.78),
}
# Where a motion begins and ends, both among the places.
DIRECTIONS = {
    "right": ("left", "right"),
    "left": ("right", "left"),
    "down": ("top", "bottom"),
    "up": ("bottom", "top"),
}
# Hz; no pitch lies on another one's odd harmonics, and the highest one's third is below 8 kHz.
PITCHES = {"low": 220.0, "middle": 780.0, "high": 2200.0}
TIMBRES = ("sine", "square", "noise")
# Beats a second; 0 is a sound without pauses.
RHYTHMS = {"steady": 0, "slow": 2, "fast": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One shape at one place: a key of `COLOURS`, one of `SHAPES`, a key of `PLACES`."""

    colour: str
    shape: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """One shape that crosses the picture: a key of `COLOURS`, one of `SHAPES`, a key of `DIRECTIONS`."""

    colour: str
    shape: str
    direction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """One sound: a key of `PITCHES`, one of `TIMBRES`, a key of `RHYTHMS`."""

    pitch: str
    timbre: str
    rhythm: str


Subject = Scene | Motion | Sound


def draw(seed: int, index: int) -> dict[Modality, Subject]:
    """Draws a subject for each modality; they depend on `seed` and `index` alone, not on how many are drawn."""
    rng = np.random.default_rng([seed, index])

    def pick(names: Iterable[str]) -> str:
        choices = tuple(names)
        return choices[rng.integers(len(choices))]

    return {
        Modality.IMAGE: Scene(colour=pick(COLOURS), shape=pick(SHAPES), place=pick(PLACES)),
        Modality.VIDEO: Motion(colour=pick(COLOURS), shape=pick(SHAPES), direction=pick(DIRECTIONS)),
        Modality.AUDIO: Sound(pitch=pick(PITCHES), timbre=pick(TIMBRES), rhythm=pick(RHYTHMS)),
    }
