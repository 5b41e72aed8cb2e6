"""Groups of rows that are equal or nearly equal, at a cost of n log n: by sorting, and comparing neighbours.

Rows come in the order of their names, and the first of a group is the one that stays; so nothing depends on who read
what, or when. Near rows are looked for among neighbours under several orders, see `near_prints` and `near_words`: each
row is compared with at most `WINDOW` behind it in each.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.curate.prints import BANDS, PERMUTATIONS
from pipelines.sample import Modality

Rows = npt.NDArray[np.int64]
Pairs = tuple[Rows, Rows]

WINDOW = 32
# Of 64 bits, and of the mean change of the coarsest values, relative to how much these differ among themselves. The
# spectrum of a sound keeps more of what it was than a picture that is cropped.
MOST_BITS = 12
_MOST_CHANGE = np.array([0.12 if modality is Modality.AUDIO else 0.25 for modality in Modality], np.float32)
_LEAST_SPREAD = 4.0
# Of the greys of a picture, relative to their spread: how much they change (root mean square), and any of them.
_MOST_GREY, _MOST_ONE = 0.4, 1.5
_MOST_SECONDS = 0.05  # of the longer one
_ROTATIONS = range(0, 64, 8)
# The share of lowest hashes that agree, which estimates the share of pieces that two texts have in common.
LEAST_SHARED = 0.8
_PAIRS_AT_ONCE = 1 << 16


def first_of_group(count: int, pairs: Sequence[Pairs]) -> Rows:
    """The first row of each row's group (count,), where each pair is in one group; of a row alone it is its own."""
    first = np.arange(count)
    left, right = (np.concatenate([np.zeros(0, np.int64), *(pair[side] for pair in pairs)]) for side in (0, 1))
    while len(left):
        a, b = first[left], first[right]
        lowest = np.minimum(a, b)
        np.minimum.at(first, a, lowest)
        np.minimum.at(first, b, lowest)
        while not np.array_equal(first, shorter := first[first]):
            first = shorter
        is_open = first[left] != first[right]
        left, right = left[is_open], right[is_open]
    return first


def equal(values: npt.NDArray[np.void] | npt.NDArray[np.bytes_], rows: Rows) -> Pairs:
    """Pairs that join rows of equal values: each with the one before it."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    return rows[order[:-1][same]], rows[order[1:][same]]


def near_prints(prints: npt.NDArray[np.void], rows: Rows) -> Pairs:
    """Pairs of rows whose prints, of `prints.PRINT` and as many for each (n, k), are all near.

    Two are compared where their first hashes are neighbours when sorted with one of eight bytes in front.
    """
    found, first = list[Pairs](), prints["hash"][:, 0]
    lightest = prints["thumb"][:, 0, :4].copy().view("<u4")[:, 0]
    for rotation in _ROTATIONS:
        turned = first if not rotation else (first << np.uint64(rotation)) | (first >> np.uint64(64 - rotation))
        order = np.lexsort((lightest, turned))  # and then as they stand: the sort is stable
        hashes = first[order]
        for distance in _distances(order):
            bits = np.bitwise_count(hashes[:-distance] ^ hashes[distance:])
            for places in _portions(np.flatnonzero(bits <= MOST_BITS)):
                left, right = order[places], order[places + distance]
                near = _are_near(prints[left], prints[right])
                found.append((rows[left[near]], rows[right[near]]))
    return _joined(found)


def _are_near(left: npt.NDArray[np.void], right: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Whether all prints (n, k) of each row are near: in bits, in values, and in seconds."""
    bits = np.bitwise_count(left["hash"] ^ right["hash"])
    change = _changes(left, right, "thumb").mean(axis=-1)
    greys = _changes(left, right, "greys")
    alike = (np.sqrt((greys**2).mean(axis=-1)) <= _MOST_GREY) & (greys.max(axis=-1) <= _MOST_ONE)
    longer = np.maximum(left["seconds"], right["seconds"])
    lasts = np.abs(left["seconds"] - right["seconds"]) <= _MOST_SECONDS * longer
    return ((bits <= MOST_BITS) & (change <= _MOST_CHANGE[left["kind"]]) & alike & lasts).all(axis=1)


def _changes(left: npt.NDArray[np.void], right: npt.NDArray[np.void], field: str) -> npt.NDArray[np.float32]:
    """How much each value differs, relative to how much these differ among themselves."""
    a, b = left[field].astype(np.float32), right[field].astype(np.float32)
    spread = np.maximum(_LEAST_SPREAD, np.minimum(a.std(axis=-1), b.std(axis=-1)))
    return np.asarray(np.abs(a - b) / spread[..., None], np.float32)


def near_vectors(vectors: npt.NDArray[np.void], rows: Rows, least_cosine: float) -> Pairs:
    """Pairs of rows whose vectors, as records of `hash` and `parts` (n,), have at least this cosine.

    Two are compared where their hashes are neighbours when sorted with one of eight bytes in front.
    """
    found, hashes = list[Pairs](), vectors["hash"]
    for rotation in _ROTATIONS:
        turned = hashes if not rotation else (hashes << np.uint64(rotation)) | (hashes >> np.uint64(64 - rotation))
        order = np.argsort(turned, kind="stable")
        for distance in _distances(order):
            bits = np.bitwise_count(hashes[order[:-distance]] ^ hashes[order[distance:]])
            for places in _portions(np.flatnonzero(bits <= _most_bits(least_cosine))):
                left, right = order[places], order[places + distance]
                a, b = (vectors["parts"][side].astype(np.float32) for side in (left, right))
                norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                near = (a * b).sum(axis=1) >= least_cosine * np.maximum(norms, 1e-9)
                found.append((rows[left[near]], rows[right[near]]))
    return _joined(found)


def _most_bits(least_cosine: float) -> float:
    """So few signs of 64 differ at this cosine, but for four standard deviations (Charikar 2002)."""
    share = float(np.arccos(np.clip(least_cosine, -1, 1)) / np.pi)
    return 64 * share + 4 * float(np.sqrt(64 * share * (1 - share))) + 1


def near_words(words: npt.NDArray[np.void], rows: Rows) -> Pairs:
    """Pairs of rows whose texts, by their records of `prints.WORDS` (n,), have most pieces in common.

    Two are compared where a band is equal, and they are neighbours among those.
    """
    found, lowest = list[Pairs](), words["lowest"]
    lightest = lowest[:, :4].copy().view("<u4")[:, 0]
    for band in range(BANDS):
        order = np.lexsort((lightest, words["bands"][:, band]))
        keys = words["bands"][order, band]
        for distance in _distances(order):
            same = np.flatnonzero(keys[:-distance] == keys[distance:])
            if not len(same):
                break
            for places in _portions(same):
                left, right = order[places], order[places + distance]
                near = (lowest[left] == lowest[right]).sum(axis=1) >= LEAST_SHARED * PERMUTATIONS
                found.append((rows[left[near]], rows[right[near]]))
    return _joined(found)


def _distances(order: Rows) -> range:
    return range(1, min(WINDOW, len(order) - 1) + 1)


def _portions(places: Rows) -> Iterator[Rows]:
    for start in range(0, len(places), _PAIRS_AT_ONCE):
        yield places[start : start + _PAIRS_AT_ONCE]


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    left, right = (np.concatenate([np.zeros(0, np.int64), *(pair[side] for pair in pairs)]) for side in (0, 1))
    return left, right
