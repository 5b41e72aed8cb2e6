"""What exists in the synthetic world: still shapes, moving shapes and sounds, drawn by seed and index.

Some combinations of attributes are held out: they are in no training data, and models are examined on them. Each single
value is in both. One subject in eight is harder: two objects in a scene, a melody, an unusual speed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipelines.sample import Modality

SHAPES = ("circle", "square", "triangle", "cross")
# RGB, far enough apart to be told from each other after an MP4 has halved the chroma.
COLOURS = {
    "red": (215, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 30),
    "green": (30, 150, 55),
    "cyan": (40, 205, 215),
    "blue": (35, 60, 215),
    "purple": (130, 45, 175),
    "pink": (250, 130, 195),
}
SIZES = {"small": 0.13, "big": 0.21}  # radius, as a fraction of the side
# Centre of the shape as fractions of width and height, from the top left.
PLACES = {
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
    "centre": (0.5, 0.5),
}
# Where a motion leads to, as a step of columns and rows.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
# How far a shape gets, as a fraction of the side; a motion without a speed is between the two.
SPEEDS = {"slowly": 0.26, "": 0.46, "quickly": 0.66}
# Hz. Just intonation on 600: the notes lie at least 112 cents apart, and whole numbers of periods fit into 40 ms.
PITCHES = {
    "low do": 600.0,
    "low re": 675.0,
    "low mi": 750.0,
    "low fa": 800.0,
    "low sol": 900.0,
    "low la": 1000.0,
    "low ti": 1125.0,
    "high do": 1200.0,
    "high re": 1350.0,
    "high mi": 1500.0,
    "high fa": 1600.0,
    "high sol": 1800.0,
}
# Amplitudes of the harmonics, the first to the fourth.
TIMBRES = {
    "flute": (1.0, 0.0, 0.0, 0.0),
    "clarinet": (1.0, 0.0, 0.6, 0.0),
    "violin": (1.0, 0.6, 0.4, 0.3),
    "organ": (1.0, 0.7, 0.0, 0.5),
}
# Steps on the scale from the named note to the next two; a sound without a melody stays on its note.
MELODIES = {"": (0, 0, 0), "rising": (0, 1, 2), "falling": (0, -1, -2)}
HARD_EVERY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One shape at one place, and in harder scenes a second one (which has no further one)."""

    colour: str
    shape: str
    size: str
    place: str
    other: "Scene | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """One shape that crosses the picture; `speed` is empty for the usual one."""

    colour: str
    shape: str
    direction: str
    speed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """One note on one instrument, or a `melody` of three that begins with it."""

    pitch: str
    timbre: str
    melody: str = ""


Subject = Scene | Motion | Sound
Subjects = dict[Modality, Subject]
# The attributes that name a subject, and their values. Those of the harder ones are not among them.
ATTRIBUTES: Mapping[Modality, Mapping[str, tuple[str, ...]]] = {
    Modality.IMAGE: {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "place": tuple(PLACES)},
    Modality.VIDEO: {"colour": tuple(COLOURS), "shape": SHAPES, "direction": tuple(DIRECTIONS)},
    Modality.AUDIO: {"pitch": tuple(PITCHES), "timbre": tuple(TIMBRES)},
}
# A combination is held out where the weighted sum of its values' numbers leaves this rest.
_HELD_OUT = {
    Modality.IMAGE: ((1, 3, 5, 2), 10, 7),
    Modality.VIDEO: ((1, 3, 2), 8, 3),
    Modality.AUDIO: ((1, 1), 4, 3),
}
_TYPES: Mapping[type, Modality] = {Scene: Modality.IMAGE, Motion: Modality.VIDEO, Sound: Modality.AUDIO}


def modality_of(subject: Subject) -> Modality:
    """The modality of a subject."""
    return _TYPES[type(subject)]


def attributes(subject: Subject) -> dict[str, str]:
    """The subject's attributes by name, as in `ATTRIBUTES`."""
    return {name: getattr(subject, name) for name in ATTRIBUTES[modality_of(subject)]}


def is_held_out(subject: Subject) -> bool:
    """Whether the combination of attributes is kept from training data; of two objects, either one's."""
    modality = modality_of(subject)
    weights, modulus, rest = _HELD_OUT[modality]
    numbers = (values.index(getattr(subject, name)) for name, values in ATTRIBUTES[modality].items())
    held_out = sum(weight * number for weight, number in zip(weights, numbers, strict=True)) % modulus == rest
    other = getattr(subject, "other", None)
    return held_out or (other is not None and is_held_out(other))


def draw(seed: int, index: int, *, held_out: bool = False, hard: bool | None = None) -> Subjects:
    """Draws a subject of each modality; they depend only on the arguments, not on the number drawn.

    All are of training combinations, or all are `held_out`. `hard` subjects come once in eight unless it is given.
    """
    rng = np.random.default_rng([seed, index, held_out])
    harder = index % HARD_EVERY == HARD_EVERY - 1 if hard is None else hard
    makers: dict[Modality, Callable[[np.random.Generator, bool], Subject]] = {
        Modality.IMAGE: _scene,
        Modality.VIDEO: _motion,
        Modality.AUDIO: _sound,
    }
    return {modality: _until(held_out, partial(make, rng, harder)) for modality, make in makers.items()}


def sound_of(colour: str, shape: str) -> Sound:
    """How a coloured shape sounds: by the rule of the world, each colour has its note and each shape its instrument."""
    pitches, timbres = tuple(PITCHES), tuple(TIMBRES)
    return Sound(pitch=pitches[tuple(COLOURS).index(colour)], timbre=timbres[SHAPES.index(shape)])


def notes(sound: Sound) -> tuple[str, ...]:
    """The three notes of a sound: its own, and where the melody leads from there."""
    pitches = tuple(PITCHES)
    return tuple(pitches[pitches.index(sound.pitch) + step] for step in MELODIES[sound.melody])


def _until(held_out: bool, make: Callable[[], Subject]) -> Subject:
    while is_held_out(subject := make()) != held_out:
        pass
    return subject


def _scene(rng: np.random.Generator, hard: bool) -> Scene:
    def one(size: str, place: str) -> Scene:
        return Scene(colour=_pick(rng, COLOURS), shape=_pick(rng, SHAPES), size=size, place=place)

    if not hard:
        return one(_pick(rng, SIZES), _pick(rng, PLACES))
    # Two objects that cannot touch: at opposite sides, and not both of them big.
    first, second = (("left", "right"), ("top", "bottom"))[rng.integers(2)]
    sizes = (("small", "small"), ("small", "big"), ("big", "small"))[rng.integers(3)]
    scene, other = one(sizes[0], first), one(sizes[1], second)
    return Scene(**attributes(scene), other=other)


def _motion(rng: np.random.Generator, hard: bool) -> Motion:
    speed = ("slowly", "quickly")[rng.integers(2)] if hard else ""
    return Motion(colour=_pick(rng, COLOURS), shape=_pick(rng, SHAPES), direction=_pick(rng, DIRECTIONS), speed=speed)


def _sound(rng: np.random.Generator, hard: bool) -> Sound:
    pitches = tuple(PITCHES)
    if not hard:
        return Sound(pitch=_pick(rng, pitches), timbre=_pick(rng, TIMBRES))
    melody = ("rising", "falling")[rng.integers(2)]
    within = pitches[:-2] if melody == "rising" else pitches[2:]
    return Sound(pitch=_pick(rng, within), timbre=_pick(rng, TIMBRES), melody=melody)


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    choices = tuple(names)
    return choices[rng.integers(len(choices))]
