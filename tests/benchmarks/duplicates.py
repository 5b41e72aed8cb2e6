"""Fingerprints and near duplicates, against the libraries that people use for them, on the same files and texts."""

import io
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image

from pipelines.curate.groups import LEAST_SHARED, first_of_group, near_prints, near_words
from pipelines.curate.prints import PERMUTATIONS, PRINT, normalised, pieces, print_picture, print_words
from pipelines.media.codecs import decode, load
from pipelines.sample import Image, Modality
from tests.benchmarks import Row, compare, host_bytes, not_measured, say, timed

PICTURES, SIDE = 400, 256
TEXTS = 20_000
ROWS = 10_000_000
REPEATS = 3
_WORDS: Sequence[str] = (
    *("a", "the", "red", "blue", "small", "big", "dog", "cat", "house", "tree", "runs"),
    *("sits", "near", "under", "over", "city", "street", "man", "woman", "child", "park"),
)


def run(scale: float) -> list[Row]:
    """Pictures and texts a second, and the memory that a sample takes where there are many."""
    return [
        *_of_pictures(max(4, round(PICTURES * scale))),
        *_of_texts(max(40, round(TEXTS * scale))),
        _of_many(max(2000, round(ROWS * scale))),
    ]


def _of_pictures(count: int) -> list[Row]:
    try:
        import imagehash
    except ImportError:
        return [not_measured("prints of pictures / imagehash", 1.0, "pictures/s", "needs pip install imagehash")]
    with TemporaryDirectory() as folder:
        files = [_write_picture(Path(folder) / f"{number}.jpg", number) for number in range(count)]

        def ours() -> float:
            with timed() as watch:
                for file in files:
                    picture = decode(load(file, Modality.IMAGE))
                    assert isinstance(picture, Image)
                    print_picture(picture)
            return count / watch.seconds

        def peer() -> float:
            with timed() as watch:
                for file in files:
                    with PIL.Image.open(file) as picture:
                        imagehash.phash(picture)
                        imagehash.colorhash(picture)
            return count / watch.seconds

        rate, other = compare(ours, peer, REPEATS)
    note = f"{count} JPEG files of {SIDE} pixels, read and decoded; imagehash's phash and colorhash of each"
    return [_faster("prints of pictures / imagehash", rate, other, "pictures/s", note)]


def _faster(name: str, ours: float, peer: float, unit: str, note: str) -> Row:
    return Row(name=name, ours=ours, peer=peer, ratio=ours / peer, target=1.0, unit=unit, note=note)


def _write_picture(file: Path, number: int) -> Path:
    noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    file.write_bytes(buffer.getvalue())
    return file


def _of_texts(count: int) -> list[Row]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return [not_measured("MinHash of texts / datasketch", 1.0, "texts/s", "needs pip install datasketch")]
    texts = _texts(count)
    found: dict[str, Any] = {}

    def ours() -> float:
        with timed() as watch:
            found["words"] = np.concatenate([print_words(normalised(text)) for text in texts])
        return count / watch.seconds

    def peer() -> float:
        with timed() as watch:
            hashes = []
            for text in texts:
                one = MinHash(num_perm=PERMUTATIONS, seed=1)
                one.update_batch([piece.encode() for piece in pieces(normalised(text))])
                hashes.append(one)
            found["hashes"] = hashes
        return count / watch.seconds

    rate, other = compare(ours, peer, REPEATS)

    def group() -> float:
        with timed() as watch:
            found["first"] = first_of_group(count, [near_words(found["words"], np.arange(count))])
        return count / watch.seconds

    def query() -> float:
        with timed() as watch:
            index = MinHashLSH(threshold=LEAST_SHARED, num_perm=PERMUTATIONS)
            near = [0] * count
            for number, one in enumerate(found["hashes"]):
                near[number] = min([number, *(int(key) for key in index.query(one))])
                index.insert(str(number), one)
            found["near"] = near
        return count / watch.seconds

    grouped, queried = compare(group, query, REPEATS)
    mine, theirs = (found["first"] != np.arange(count)), np.array(found["near"]) != np.arange(count)
    both = (
        f"{int(mine.sum())} near copies found, {int(theirs.sum())} by datasketch, {int((mine & theirs).sum())} by both"
    )
    what = f"{count} captions, {PERMUTATIONS} permutations of pieces of four characters"
    return [
        _faster("MinHash of texts / datasketch", rate, other, "texts/s", what),
        _faster("near texts / datasketch's MinHashLSH", grouped, queried, "texts/s", both),
    ]


def _texts(count: int) -> Sequence[str]:
    """Captions, of which every tenth is one before it with another last word."""
    random, texts = np.random.default_rng(0), list[str]()
    for number in range(count):
        if number % 10 == 9:
            texts.append(" ".join([*texts[int(random.integers(number))].split()[:-1], "today"]))
        else:
            texts.append(" ".join(random.choice(_WORDS, 14)))
    return texts


def _of_many(rows: int) -> Row:
    """Peak memory a row, at a tenth of the rows and at all of them."""
    few, many = (_in_a_process(count) for count in (rows // 10, rows))
    return Row(
        name=f"near prints of {rows:,} rows: bytes a row / of {rows // 10:,}",
        ours=many[0],
        peer=few[0],
        ratio=many[0] / few[0],
        target=1.2,
        at_most=True,
        unit="bytes",
        note=f"{many[1]:.0f} s and {few[1]:.0f} s on one core; one picture a row, every tenth a near copy",
    )


def _in_a_process(rows: int) -> tuple[float, float]:
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(_simulate, (rows,))
    say(f"{rows:,} rows: {found[0]:.0f} bytes a row, {found[1]:.0f} s")
    return found


def _simulate(rows: int) -> tuple[float, float]:
    """Bytes of memory a row, and seconds, to group simulated prints."""
    random = np.random.default_rng(0)
    before, _ = host_bytes()
    prints = np.zeros((rows, 1), PRINT)
    for start in range(0, rows, 1 << 18):
        some = prints[start : start + (1 << 18), 0]
        some["hash"] = random.integers(0, 1 << 64, len(some), np.uint64)
        for field in ("thumb", "greys"):
            some[field] = random.integers(0, 256, some[field].shape, np.uint8)
    copied = np.arange(9, min(rows, 100_000), 10)
    prints[copied] = prints[copied - 5]
    with timed() as watch:
        first = first_of_group(rows, [near_prints(prints, np.arange(rows))])
    assert (first[copied] == copied - 5).all()
    return (host_bytes()[1] - before) / rows, watch.seconds
