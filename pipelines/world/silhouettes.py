"""Finds the shapes of the synthetic world in a picture by template matching on the foreground."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from pipelines.sample import Image
from pipelines.world.render import render
from pipelines.world.scenes import COLOURS, SHAPES, SIZES, Scene

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_CONTRAST = 55  # RGB distance from the ground, about half of pink's, the palest colour
_MAX_UNEVENNESS = 16  # of the ground, the median RGB distance from its own colour
_MAX_FIGURE = 0.5  # share of the picture; two big squares cover 0.27
_MIN_AREA = 16  # pixels of 32x32; a small cross has 31
_MIN_LIKENESS = 0.9  # cosine between a silhouette and the likest shape's
_MAX_COLOUR_DISTANCE = 50  # RGB; grey is 59 from what blur could make of green
_MIN_SHARE = 0.6  # of the colour, where blur has mixed in some of the ground
_MAX_BLUR = 3  # times the least smoothing; small squares become circles if no template is as blurred as they are


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
