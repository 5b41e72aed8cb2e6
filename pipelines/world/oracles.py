"""Recognises subjects of the synthetic world in media and text, independently of how they were rendered.

Tolerant of what small decoders do (blur, hiss, uneven colours), and silent about noise.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Decoded, Image, Video
from pipelines.world.render import FPS, NUM_FRAMES
from pipelines.world.scenes import (
    COLOURS,
    DIRECTIONS,
    MELODIES,
    PITCHES,
    PLACES,
    SHAPES,
    SIZES,
    SPEEDS,
    TIMBRES,
    Motion,
    Scene,
    Sound,
    Subject,
    attributes,
)
from pipelines.world.silhouettes import find_objects

Floats = npt.NDArray[np.float64]

_MIN_LOUDNESS = 0.003  # root mean square
_MIN_TONALITY = 0.5  # share of the energy that is in the harmonics
_MAX_CENTS_OFF = 50
_LOWEST = 300.0  # Hz; no note is below, and rumble is not heard
_ZERO_PADDED = 1 << 15  # samples; a third has 6,827


def read(decoded: Decoded) -> Subject | None:
    """Finds the subject in an image, a video or a sound; None where nothing of the world is clearly there.

    Also reads the harder ones: a second object in a scene, the speed of a motion, the melody of a sound. None also for
    three objects, for a video in which nothing moves, and for a sound more than 50 cents off every note.
    """
    match decoded:
        case Image():
            return _scene(decoded)
        case Video():
            return _motion(decoded)
        case Audio():
            return _sound(decoded)


def grade(wanted: Subject, found: Subject | None) -> dict[str, bool]:
    """Says of each attribute of `wanted` whether it was found; of a scene with two objects, whether of both."""
    expected, seen = _values(wanted), {} if found is None else _values(found)
    return {name: seen.get(name) == values for name, values in expected.items()}


def fundamental(audio: Audio) -> float | None:
    """The frequency of a tone in Hz, the channels mixed; None for silence, noise and sounds of no clear pitch."""
    tone = _tone(audio.waveform.mean(axis=0), audio.sample_rate)
    return tone[0] if tone else None


def _values(subject: Subject) -> dict[str, list[str]]:
    values = {name: [value] for name, value in attributes(subject).items()}
    other = _values(subject.other) if isinstance(subject, Scene) and subject.other else {}
    return {name: own + other.get(name, []) for name, own in values.items()}


def _scene(image: Image) -> Scene | None:
    # As scenes are drawn: the left one or the upper one comes first.
    objects = sorted(find_objects(image.pixels), key=lambda found: float(found.centre.sum()))
    scene = None
    for found in reversed(objects):
        size = min(SIZES, key=lambda name: abs(found.radius - SIZES[name]))
        place = min(PLACES, key=lambda name: float(np.linalg.norm(found.centre - PLACES[name])))
        scene = Scene(colour=found.colour, shape=found.shape, size=size, place=place, other=scene)
    return scene if len(objects) <= 2 else None


def _motion(video: Video) -> Motion | None:
    """The colour and shape of most frames, and the median of the ways between any two of them."""
    seen = [max(find_objects(frame), key=lambda found: found.area, default=None) for frame in video.frames]
    path = [(time, found) for time, found in enumerate(seen) if found]
    if len(path) < max(3, len(seen) / 2):
        return None
    steps = [(after.centre - before.centre) / (end - start) for (start, before), (end, after) in combinations(path, 2)]
    way = np.median(steps, axis=0) * (NUM_FRAMES - 1) * video.fps / FPS
    direction = max(DIRECTIONS, key=lambda name: float(way @ DIRECTIONS[name]))
    distance = float(way @ DIRECTIONS[direction])
    if distance < min(SPEEDS.values()) / 2:
        return None
    return Motion(
        colour=_most_common([found.colour for _, found in path]),
        shape=_most_common([found.shape for _, found in path]),
        direction=direction,
        speed=min(SPEEDS, key=lambda name: abs(distance - SPEEDS[name])),
    )


def _most_common(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _sound(audio: Audio) -> Sound | None:
    """Analyses each third separately: a melody has a note in each; for a steady sound, one may fail."""
    thirds = np.array_split(audio.waveform.mean(axis=0), 3)
    tones = [tone for tone in (_tone(third, audio.sample_rate) for third in thirds) if tone]
    if len(tones) < 2:
        return None
    names = [_note(frequency) for frequency, _ in tones]
    pitches = tuple(PITCHES)
    steps = tuple(pitches.index(name) - pitches.index(names[0]) if name and names[0] else None for name in names)
    melody = next((name for name, expected in MELODIES.items() if name and steps == expected), "")
    pitch = names[0] if melody else _note(float(np.median([frequency for frequency, _ in tones])))
    harmonics = np.median([amplitudes for _, amplitudes in tones], axis=0)
    timbre = min(TIMBRES, key=lambda name: float(np.linalg.norm(harmonics - TIMBRES[name])))
    return Sound(pitch=pitch, timbre=timbre, melody=melody) if pitch else None


def _note(frequency: float) -> str | None:
    cents = {name: abs(1200 * np.log2(frequency / note)) for name, note in PITCHES.items()}
    nearest = min(cents, key=lambda name: cents[name])
    return nearest if cents[nearest] <= _MAX_CENTS_OFF else None


def _tone(wave: npt.NDArray[np.float32], sample_rate: int) -> tuple[float, Floats] | None:
    """The fundamental in Hz, and the first four harmonics' amplitudes over the first's; None for no clear tone."""
    if not len(wave) or np.sqrt((wave.astype(float) ** 2).mean()) < _MIN_LOUDNESS:
        return None
    length = max(_ZERO_PADDED, len(wave))
    strength = abs(np.fft.rfft(wave * np.hanning(len(wave)), length))
    strength[: round(_LOWEST * length / sample_rate)] = 0
    # No timbre's harmonic is louder than its first: the note is the lowest peak that is about as loud as any.
    peaks = (strength[1:-1] > strength[:-2]) & (strength[1:-1] >= strength[2:]) & (strength[1:-1] > strength.max() / 2)
    if not peaks.any():
        return None
    peak = int(peaks.argmax()) + 1
    before, at, after = np.log(strength[peak - 1 : peak + 2] + 1e-12)
    position = peak + (before - after) / (before - 2 * at + after) / 2  # of the parabola's top
    edges = np.round(np.outer(range(1, 5), (0.975, 1.025)) * position).astype(int)
    harmonics = [strength[start : stop + 1] for start, stop in edges]
    if sum((band**2).sum() for band in harmonics) < _MIN_TONALITY * (strength**2).sum():
        return None
    amplitudes = np.array([band.max(initial=0) for band in harmonics])
    return float(position * sample_rate / length), amplitudes / amplitudes[0]


_NAMES: Mapping[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "pitch": tuple(PITCHES),
    "timbre": tuple(TIMBRES),
}
_MOVING = (
    r"\b(?:mov(?:e|es|ed|ing)|sli(?:de|des|d|ding)|travel\w*|go|goes|going|drift\w*|wander\w*|glid(?:e|es|ed|ing)|"
    r"fl(?:y|ies|ying)|way|head(?:s|ing)|run(?:s|ning)?)\b"
)
_SIDE = r"\bto the (left|right)\b"
_PLACE = r"\b(?:at|on|near|in) the (?:very )?(left|right|top|bottom|centre)\b"
_DIRECTION = r"\b(left|right|up|down)wards?\b|\btowards the (left|right)\b|\b(up|down)\b"


def read_text(text: str) -> dict[str, str]:
    """The value of each attribute (of any modality) of which the text names exactly one.

    `to the left` is a direction where something moves there, and a place where nothing does.
    """
    text = " ".join(text.lower().split())
    named = {name: set(re.findall(rf"\b(?:{'|'.join(values)})\b", text)) for name, values in _NAMES.items()}
    named["place"] = set(re.findall(_PLACE, text))
    named["direction"] = {way for match in re.findall(_DIRECTION, text) for way in match if way}
    # What moves in one part of a sentence does not move in the next.
    for part in re.split(r"[.,:;!?]| and ", text):
        for side in re.finditer(_SIDE, part):
            before, after = part[: side.start()], part[side.end() :]
            moves = re.search(_MOVING, before) or re.match(rf" {_MOVING} (?:a|an|the)\b", after)
            named["direction" if moves else "place"].add(side[1])
    return {name: value for name, values in named.items() if len(values) == 1 for value in values}
