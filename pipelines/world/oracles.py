"""Recognises subjects of the synthetic world in media and text, independently of how they were rendered.

Tolerant of what small decoders do (blur, hiss, uneven colours), and silent about noise.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from pipelines.sample import Audio, Decoded, Image, Video
from pipelines.world.render import FPS, NUM_FRAMES, render
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

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MIN_LOUDNESS = 0.003  # root mean square
_MIN_TONALITY = 0.5  # share of the energy that is in the harmonics
_MAX_CENTS_OFF = 50
_LOWEST = 300.0  # Hz; no note is below, and rumble is not heard
_ZERO_PADDED = 1 << 15  # samples; a third has 6,827
_CONTRAST = 55  # RGB distance from the ground, about half of pink's, the palest colour
_MAX_UNEVENNESS = 16  # of the ground, the median RGB distance from its own colour
_MAX_FIGURE = 0.5  # share of the picture; two big squares cover 0.27
_MIN_AREA = 16  # pixels of 32x32; a small cross has 31
_MIN_LIKENESS = 0.9  # cosine between a silhouette and the likest shape's
_MAX_COLOUR_DISTANCE = 50  # RGB; grey is 59 from what blur could make of green
_MIN_SHARE = 0.6  # of the colour, where blur has mixed in some of the ground
_MAX_BLUR = 3  # times the least smoothing; small squares become circles if no template is as blurred as they are


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One coloured shape; `radius` and `centre` (x, y) are fractions of the sides, `area` is in pixels."""

    colour: str
    shape: str
    radius: float
    centre: Floats
    area: float


@dataclass(frozen=True, slots=True)
class _Silhouette:
    """How much of each pixel (H, W) something covers, its RGB and the ground's."""

    cover: Floats
    colour: Floats
    ground: Floats


def find_objects(pixels: npt.NDArray[np.uint8]) -> list[Object]:
    """The shapes in a picture (H, W, 3), uint8; empty if it contains anything else or the background is uneven."""
    objects = [_recognise(silhouette) for silhouette in _silhouettes(_smoothed(pixels.astype(float)))]
    return [found for found in objects if found] if all(objects) else []


def _recognise(seen: _Silhouette) -> Object | None:
    """Matches each template, scaled and centred, against the silhouette; returns the most similar."""
    names, templates = _templates()
    areas, centroids = _moments(templates)
    area, centroid = _moments(seen.cover)
    scales = np.sqrt(area / areas)
    rows, columns = (
        _resampling(templates.shape[-1], centroids[:, axis], seen.cover.shape[axis], centroid[axis], scales)
        for axis in (0, 1)
    )
    laid = rows @ templates @ columns.transpose(0, 2, 1)
    likeness = (laid * seen.cover).sum(axis=(1, 2)) / np.linalg.norm(laid, axis=(1, 2)) / np.linalg.norm(seen.cover)
    best = int(likeness.argmax())
    distances = {name: _distance_to_mixture(seen, np.array(rgb)) for name, rgb in COLOURS.items()}
    colour = min(distances, key=lambda name: distances[name])
    if likeness[best] < _MIN_LIKENESS or distances[colour] > _MAX_COLOUR_DISTANCE:
        return None
    shape, size = names[best]
    # A shape's own centre is that of its template's picture, and not always its centroid.
    row, column = centroid + scales[best] * ((templates.shape[-1] - 1) / 2 - centroids[best])
    centre = np.array([column + 0.5, row + 0.5]) / seen.cover.shape[::-1]
    return Object(colour=colour, shape=shape, radius=SIZES[size] * scales[best], centre=centre, area=float(area))


@cache
def _templates() -> tuple[list[tuple[str, str]], Floats]:
    """Names (shape, size) and covers (N, 32, 32) of every shape in both sizes, more and less blurred."""
    names, covers = [], []
    for shape, size in product(SHAPES, SIZES):
        picture = render(Scene(colour="blue", shape=shape, size=size, place="centre"))
        assert isinstance(picture, Image)
        pixels = picture.pixels.astype(float)
        for _ in range(_MAX_BLUR):
            pixels = _smoothed(pixels)
            (silhouette,) = _silhouettes(pixels)
            names.append((shape, size))
            covers.append(silhouette.cover)
    return names, np.stack(covers)


def _moments(cover: Floats) -> tuple[Floats, Floats]:
    """Areas (...) and centroids (..., 2) as row and column, in pixels, of covers (..., H, W)."""
    area = cover.sum(axis=(-2, -1))
    row, column = (cover.sum(axis=axis) @ np.arange(cover.shape[-3 - axis]) / area for axis in (-1, -2))
    return area, np.stack([row, column], axis=-1)


def _resampling(source: int, origins: Floats, target: int, centre: float, scales: Floats) -> Floats:
    """Matrices (N, target, source) that interpolate templates linearly along one axis, centre on centre."""
    positions = (np.arange(target) - centre) / scales[:, None] + origins[:, None]
    return np.clip(1 - abs(positions[..., None] - np.arange(source)), 0, None)


def _distance_to_mixture(seen: _Silhouette, colour: Floats) -> float:
    """RGB distance to the colour, or to what is left of it where blur has mixed in some of the ground."""
    whole, part = colour - seen.ground, seen.colour - seen.ground
    share = np.clip(part @ whole / (whole @ whole), _MIN_SHARE, 1.1)
    return float(np.linalg.norm(part - share * whole))


def _silhouettes(picture: Floats) -> list[_Silhouette]:
    """The connected parts of the foreground; empty if the background is uneven or hardly visible."""
    border = np.ones(picture.shape[:2], bool)
    border[2:-2, 2:-2] = False
    ground = np.median(picture[border], axis=0)
    contrast = np.linalg.norm(picture - ground, axis=2)
    mask = contrast > _CONTRAST
    if mask.mean() > _MAX_FIGURE or np.median(contrast[~mask]) > _MAX_UNEVENNESS:
        return []
    found = []
    for piece in _pieces(mask):
        core = piece & (contrast >= 0.8 * np.quantile(contrast[piece], 0.9))
        colour = np.median(picture[core], axis=0)
        offset = colour - ground
        around = _grown(_grown(piece)) & (piece | ~mask)  # with its soft edge
        found.append(_Silhouette(((picture - ground) @ offset / (offset @ offset)).clip(0, 1) * around, colour, ground))
    return found


def _smoothed(picture: Floats) -> Floats:
    """The weighted mean of each pixel and its neighbours, to reduce noise."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _pieces(mask: Mask) -> Iterator[Mask]:
    """The connected parts of a mask that are large enough to be an object."""
    left = mask.copy()
    while left.any():
        piece = np.zeros_like(mask)
        piece.flat[left.argmax()] = True
        while (grown := _grown(piece) & left).sum() > piece.sum():
            piece = grown
        left &= ~piece
        if piece.sum() >= _MIN_AREA:
            yield piece


def _grown(mask: Mask) -> Mask:
    """The mask, dilated by one pixel."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
