"""Renders subjects of the synthetic world as media, with slight variations."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Decoded, Image, Video
from pipelines.world.scenes import (
    COLOURS,
    DIRECTIONS,
    PITCHES,
    PLACES,
    SIZES,
    SPEEDS,
    TIMBRES,
    Motion,
    Scene,
    Sound,
    Subject,
    notes,
)

SIZE = 32  # pixels
NUM_FRAMES = 8
FPS = 8.0
SAMPLE_RATE = 16_000  # Hz
SECONDS = 1.28

_GROUND = 240  # grey of the ground, about which it varies
_MOVING_RADIUS = 0.18  # of the side
_SUPERSAMPLING = 4
_RAMP = 0.01  # seconds; an edge without a ramp would click

Floats = npt.NDArray[np.float64]
# Whether a point is inside, its coordinates in units of the radius, y downwards.
_INSIDE: dict[str, Callable[[Floats, Floats], npt.NDArray[np.bool_]]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= 0.58 * (y + 1)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1.05),
}


def render(subject: Subject, variant: int | None = None) -> Decoded:
    """Renders an image (32, 32, 3), a video (8, 32, 32, 3) at 8 fps, or audio (1, 20480) at 16 kHz.

    Variants differ slightly in position, size, shade or loudness; None is the plain one. Equal arguments give
    equal samples.
    """
    rng = None if variant is None else np.random.default_rng([variant, 7])
    match subject:
        case Scene():
            return Image(pixels=_picture(_objects(subject, rng), _ground(rng)))
        case Motion():
            return _video(subject, rng)
        case Sound():
            return _audio(subject, rng)


Object = tuple[str, str, float, float, float]  # shape, colour, x, y, radius


def _vary(rng: np.random.Generator | None, spread: float) -> float:
    return 0.0 if rng is None else float(rng.uniform(-spread, spread))


def _ground(rng: np.random.Generator | None) -> float:
    return _GROUND + _vary(rng, 10)


def _objects(scene: Scene, rng: np.random.Generator | None) -> list[Object]:
    (x, y), radius = PLACES[scene.place], SIZES[scene.size] * (1 + _vary(rng, 0.08))
    own = (scene.shape, scene.colour, x + _vary(rng, 0.035), y + _vary(rng, 0.035), radius)
    return [own, *(_objects(scene.other, rng) if scene.other else [])]


def _picture(objects: list[Object], ground: float) -> npt.NDArray[np.uint8]:
    """Shapes centred at fractions (x, y) of a plain ground, their edges smoothed by averaging finer points."""
    fine = (np.arange(SIZE * _SUPERSAMPLING) + 0.5) / (SIZE * _SUPERSAMPLING)
    picture = np.full((SIZE, SIZE, 3), ground)
    for shape, colour, x, y, radius in objects:
        inside = _INSIDE[shape](((fine - x) / radius)[None, :], ((fine - y) / radius)[:, None])
        cover = inside.reshape(SIZE, _SUPERSAMPLING, SIZE, _SUPERSAMPLING).mean(axis=(1, 3))[..., None]
        picture = cover * COLOURS[colour] + (1 - cover) * picture
    return np.round(picture).clip(0, 255).astype(np.uint8)


def _video(motion: Motion, rng: np.random.Generator | None) -> Video:
    """A shape that moves evenly through the middle of the picture."""
    step, way = np.array(DIRECTIONS[motion.direction], float), SPEEDS[motion.speed] * (1 + _vary(rng, 0.08))
    middle = 0.5 + np.array([_vary(rng, 0.05), _vary(rng, 0.05)])
    radius, ground = _MOVING_RADIUS * (1 + _vary(rng, 0.08)), _ground(rng)
    path = [middle + step * way * (place - 0.5) for place in np.linspace(0, 1, NUM_FRAMES)]
    frames = [_picture([(motion.shape, motion.colour, x, y, radius)], ground) for x, y in path]
    return Video(frames=np.stack(frames), fps=FPS)


def _audio(sound: Sound, rng: np.random.Generator | None) -> Audio:
    return tone([PITCHES[note] for note in notes(sound)], TIMBRES[sound.timbre], rng)


def tone(frequencies: Sequence[float], amplitudes: Sequence[float], rng: np.random.Generator | None) -> Audio:
    """Stretches of equal length, one a frequency in Hz; where it stays the same, one that goes on.

    `amplitudes` are the harmonics'.
    """
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    stretch = np.minimum((time / SECONDS * len(frequencies)).astype(int), len(frequencies) - 1)
    frequency, weights = np.array(frequencies)[stretch], np.array(amplitudes)
    harmonics = np.arange(1, len(weights) + 1)
    # The phase is that of the time itself: with a whole number of periods in 40 ms, it fits at each frame's edge.
    wave = (weights[:, None] * np.sin(2 * np.pi * frequency * harmonics[:, None] * time)).sum(axis=0)
    loudness = 0.3 * (1 + _vary(rng, 0.3))
    waveform = loudness * wave / np.sqrt((weights**2).sum()) * _envelope(time, 0.06 + _vary(rng, 0.04))
    return Audio(waveform=waveform[None].astype(np.float32), sample_rate=SAMPLE_RATE)


def _envelope(time: Floats, release: float) -> Floats:
    """Fades in quickly and out over `release` seconds, to avoid clicks."""
    return np.minimum(time / _RAMP, (SECONDS - time) / release).clip(0, 1)
