"""Judges that know a subject of the synthetic world from what they see and hear, not from how it was made."""

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Decoded, Image, Video
from pipelines.world.scenes import COLOURS, PITCHES, PLACES, RHYTHMS, Motion, Scene, Sound, Subject

Mask = npt.NDArray[np.bool_]


def perceive(decoded: Decoded) -> Subject:
    match decoded:
        case Image():
            return see(decoded.pixels)
        case Video():
            return watch(decoded.frames)
        case Audio():
            return listen(decoded.waveform[0], decoded.sample_rate)


def see(pixels: npt.NDArray[np.uint8]) -> Scene:
    mask = _figure(pixels)
    place = min(PLACES, key=lambda name: np.linalg.norm(_centre(mask) - PLACES[name]))
    return Scene(colour=_colour(pixels, mask), shape=_shape(mask), place=place)


def watch(frames: npt.NDArray[np.uint8]) -> Motion:
    """The colour and shape of the middle frame, and where the centre of the figure went."""
    path = np.array([_centre(_figure(frame)) for frame in frames])
    x, y = path[-1] - path[0]
    # It keeps going: no frame is a step back on the way.
    assert (np.diff(path @ (x, y)) > 0).all()
    direction = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    middle = frames[len(frames) // 2]
    return Motion(colour=_colour(middle, _figure(middle)), shape=_shape(_figure(middle)), direction=direction)


def listen(wave: npt.NDArray[np.float32], sample_rate: int) -> Sound:
    power = abs(np.fft.rfft(wave)) ** 2
    frequencies = np.fft.rfftfreq(len(wave), 1 / sample_rate)
    peak = frequencies[power.argmax()]

    def energy(low: float, high: float) -> float:
        return float(power[(frequencies > low) & (frequencies < high)].sum())

    pitch = min(PITCHES, key=lambda name: abs(np.log(peak / PITCHES[name])))
    at_peak = energy(peak - 2, peak + 2) / energy(0.8 * peak, 1.25 * peak)
    third_harmonic = energy(2.9 * peak, 3.1 * peak) / energy(0.9 * peak, 1.1 * peak)
    timbre = "noise" if at_peak < 0.25 else "square" if third_harmonic > 0.05 else "sine"
    beats = abs(np.fft.rfft(abs(wave)))  # of the loudness; half on, half off gives 1 / pi of the mean
    strength = {name: beats[round(rate * len(wave) / sample_rate)] / beats[0] for name, rate in RHYTHMS.items() if rate}
    rhythm = max(strength, key=lambda name: strength[name]) if max(strength.values()) > 0.2 else "steady"
    return Sound(pitch=pitch, timbre=timbre, rhythm=rhythm)


def _figure(pixels: npt.NDArray[np.uint8]) -> Mask:
    """Where the picture differs from its corners."""
    corner = pixels[:3, :3].reshape(-1, 3).mean(axis=0)
    return np.linalg.norm(pixels - corner, axis=2) > 60


def _colour(pixels: npt.NDArray[np.uint8], mask: Mask) -> str:
    seen = np.median(pixels[mask], axis=0)
    return min(COLOURS, key=lambda name: np.linalg.norm(seen - COLOURS[name]))


def _box(mask: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _centre(mask: Mask) -> npt.NDArray[np.float64]:
    """Centre (x, y) of the figure's box, as fractions of the sides."""
    rows, columns = _box(mask)
    return np.array([columns.start + columns.stop, rows.start + rows.stop]) / 2 / mask.shape[::-1]


def _shape(mask: Mask) -> str:
    """A square fills its box, a circle most of it; a triangle is heavier below, a cross is not."""
    figure = mask[_box(mask)]
    if figure.mean() > 0.9:
        return "square"
    if figure.mean() > 0.65:
        return "circle"
    half = len(figure) // 2
    return "triangle" if figure[:half].sum() < 0.6 * figure[-half:].sum() else "cross"
