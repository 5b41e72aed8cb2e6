"""Makes a subject of the synthetic world visible or audible."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Decoded, Image, Video
from pipelines.world.scenes import COLOURS, DIRECTIONS, PITCHES, PLACES, RHYTHMS, Motion, Scene, Sound, Subject

SIZE = 128  # pixels
NUM_FRAMES = 16
FPS = 8.0
SAMPLE_RATE = 16_000  # Hz
SECONDS = 2.0

_GROUND = (240, 240, 240)
_RADIUS = 0.16  # of the side
_SUPERSAMPLING = 4
_LOUDNESS = 0.5
_RAMP = 0.005  # seconds; an edge without a ramp would click

Floats = npt.NDArray[np.float64]
# Whether a point is inside, its coordinates in units of the radius, y downwards.
_INSIDE: dict[str, Callable[[Floats, Floats], npt.NDArray[np.bool_]]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "triangle": lambda x, y: (y <= 0.8) & (abs(x) <= 0.58 * (y + 1)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.25) & (np.maximum(abs(x), abs(y)) <= 1),
}


def render(subject: Subject) -> Decoded:
    """Renders an image (128, 128, 3), a video (16, 128, 128, 3) at 8 fps, or audio (1, 32000) at 16 kHz."""
    match subject:
        case Scene():
            return Image(pixels=_picture(subject.shape, subject.colour, *PLACES[subject.place]))
        case Motion():
            return _video(subject)
        case Sound():
            return _audio(subject)


def _picture(shape: str, colour: str, x: float, y: float) -> npt.NDArray[np.uint8]:
    """A shape centred at fractions (x, y) of a plain ground, its edges smoothed by averaging finer points."""
    fine = (np.arange(SIZE * _SUPERSAMPLING) + 0.5) / (SIZE * _SUPERSAMPLING)
    inside = _INSIDE[shape](((fine - x) / _RADIUS)[None, :], ((fine - y) / _RADIUS)[:, None])
    cover = inside.reshape(SIZE, _SUPERSAMPLING, SIZE, _SUPERSAMPLING).mean(axis=(1, 3))[..., None]
    return np.round(cover * COLOURS[colour] + (1 - cover) * _GROUND).astype(np.uint8)


def _video(motion: Motion) -> Video:
    start, end = (np.array(PLACES[place]) for place in DIRECTIONS[motion.direction])
    path = np.linspace(start, end, NUM_FRAMES)
    return Video(frames=np.stack([_picture(motion.shape, motion.colour, x, y) for x, y in path]), fps=FPS)


def _audio(sound: Sound) -> Audio:
    time = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    wave = _wave(sound.timbre, PITCHES[sound.pitch], time)
    waveform = _LOUDNESS * wave / abs(wave).max() * _envelope(RHYTHMS[sound.rhythm], time)
    return Audio(waveform=waveform[None].astype(np.float32), sample_rate=SAMPLE_RATE)


def _wave(timbre: str, pitch: float, time: Floats) -> Floats:
    """A sine, the sum of a square wave's harmonics below the Nyquist frequency, or noise of half an octave."""
    if timbre == "noise":
        frequencies = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
        band = abs(np.log2(frequencies.clip(1) / pitch)) < 1 / 4
        phases = np.random.default_rng(0).uniform(0, 2 * np.pi, len(band))
        return np.fft.irfft(band * np.exp(1j * phases), len(time))
    harmonics = np.arange(1, SAMPLE_RATE / 2 / pitch, 2) if timbre == "square" else np.ones(1)
    return (np.sin(2 * np.pi * pitch * harmonics[:, None] * time) / harmonics[:, None]).sum(axis=0)


def _envelope(beats: int, time: Floats) -> Floats:
    """1 while the sound is on: throughout, or in the first half of each beat; with short ramps."""
    period, on = (1 / beats, 0.5 / beats) if beats else (SECONDS, SECONDS)
    phase = time % period
    return np.minimum(phase, on - phase).clip(0, _RAMP) / _RAMP
