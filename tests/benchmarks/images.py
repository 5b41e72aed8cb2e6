"""Image preparation, against a bare Pillow loop and against img2dataset on the same images.

The images are generated JPEGs of 0.8 to 1.9 megapixels: noise with the spectrum of photographs, so that they compress
and decode like them. All sides decode, shrink the short side to 256 pixels and encode JPEG at quality 95.

* On one core: `load_rows`, which reads, checks, stores and describes each image, its child process on the same core,
  against a loop that opens, converts, resizes and saves in memory, with the same filter, and keeps nothing.
* On all cores: all of `prepare` (rows, fingerprints, shards, indexes, hashes, manifest) on a running Ray, against that
  loop as one Ray task per core.
* img2dataset downloads the images from a server on loopback and writes WebDataset shards, with one process per core.
  Its time is from the start of its first shard to the end of its last, by its own statistics: Python's start-up and the
  seconds it waits at the end do not count. Ours is all of `prepare`, as above.
"""

import io
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import ray
from numpy.typing import NDArray

from jobs.common import cli
from pipelines.media.folder import load_rows
from pipelines.media.policy import ImagePolicy, MediaPolicy
from pipelines.prepare.preprocess import prepare
from pipelines.prepare.staging import Source
from pipelines.sample import Item, Modality, Sample, Turn
from pipelines.sources.entry import Entry
from pipelines.storage.files import remove_tree
from tests.benchmarks import Row, compare, cores, not_measured, say, timed
from tests.benchmarks.peers import image_server, img2dataset

IMAGES, DRAWN, FILE_QUALITY = 800, 60, 90
# Two bits per pixel at this quality, as for photographs.
SLOPE, COLOUR, CONTRAST = 1.25, 0.2, 40
SIZES = ((1600, 1200), (1280, 960), (1024, 768))
SHORT_SIDE, QUALITY = 256, 95
POLICY = MediaPolicy(image=ImagePolicy(short_side=SHORT_SIDE, quality=QUALITY))
REPEATS = 3
LOOP_TARGET, PEER_TARGET = 0.85, 1.0


def run(scale: float) -> list[Row]:
    """Images per second of all sides, medians of interleaved repeats."""
    count = max(4, round(IMAGES * scale))
    with tempfile.TemporaryDirectory(prefix="bench-images-") as name:
        folder = Path(name)
        say(f"images: drawing {count} of 0.8 to 1.9 megapixels")
        paths = draw_images(folder / "images", count)
        rows = [_one_core(paths[: max(2, count // 3)])]
        cli.start_ray()
        rows.append(_all_cores(folder, paths))
        rows.append(_img2dataset(folder, paths))
    return rows


def _one_core(paths: list[Path]) -> Row:
    samples = [sample(path) for path in paths]

    def ours() -> float:
        with timed() as watch:
            results = list(load_rows(samples, paths[0].parent, POLICY))
        assert all(isinstance(result, Sample) for result in results), results[0]
        return len(paths) / watch.seconds

    with pinned():
        load = compare(ours, lambda: _loop_rate(paths), REPEATS, title="images, one core: images/s")
    note = "load_rows and its decoder (JPEGs decoded at reduced scale) against a Pillow loop, both on one core"
    return _row("image preparation, one core / Pillow", *load, LOOP_TARGET, note)


def _all_cores(folder: Path, paths: list[Path]) -> Row:
    task = ray.remote(bare_loop)
    shares = [[str(path) for path in paths[start :: cores()]] for start in range(cores())]

    def peer() -> float:
        with timed() as watch:
            ray.get([task.remote(share) for share in shares])
        return len(paths) / watch.seconds

    ours = _prepare_rate(folder, paths)
    ours(), peer()  # workers start and import
    rates = compare(ours, peer, REPEATS, title=f"images, {cores()} cores: images/s")
    note = f"all of prepare on {cores()} cores against a Pillow loop on each"
    return _row(f"image preparation, {cores()} cores / Pillow", *rates, LOOP_TARGET, note)


def _img2dataset(folder: Path, paths: list[Path]) -> Row:
    name = "image preparation / img2dataset"
    try:
        command = img2dataset()
    except (OSError, subprocess.SubprocessError) as error:
        return not_measured(name, PEER_TARGET, "images/s", f"img2dataset: {cli.describe(error)}")
    ours = _prepare_rate(folder, paths)
    with image_server(paths[0].parent) as url:

        def peer() -> float:
            out = folder / "img2dataset"
            remove_tree(out)
            return len(paths) / command.seconds(url, paths, out, SHORT_SIDE, QUALITY, _samples_per_shard(paths))

        rates = compare(ours, peer, REPEATS, title="images, img2dataset: images/s")
    note = f"all of prepare from disk; {command.version} from loopback, excluding its start and end"
    return _row(name, *rates, PEER_TARGET, note)


def draw_images(folder: Path, count: int) -> list[Path]:
    """Writes JPEGs `000000000.jpg` ..., repeating DRAWN different crops of one seeded noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    texture = _texture(random)
    paths = [folder / f"{index:09d}.jpg" for index in range(count)]
    for index, path in enumerate(paths[:DRAWN]):
        width, height = SIZES[index % len(SIZES)]
        shifted = np.roll(texture, random.integers(0, texture.shape[:2]), axis=(0, 1))
        PIL.Image.fromarray(shifted[:height, :width]).save(path, quality=FILE_QUALITY)
    for index, path in enumerate(paths[DRAWN:]):
        path.write_bytes(paths[index % DRAWN].read_bytes())
    return paths


def bare_loop(paths: list[str]) -> int:
    """Decodes, shrinks and encodes images one by one; returns the total number of bytes."""
    return sum(len(bare_image(path)) for path in paths)


def bare_image(path: str) -> bytes:
    """An image as a script would prepare it: decoded, shrunk and encoded by Pillow."""
    with PIL.Image.open(path) as picture:
        image = picture.convert("RGB")
    factor = SHORT_SIDE / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    buffer = io.BytesIO()
    image.resize(size, PIL.Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()


@contextmanager
def pinned() -> Iterator[None]:
    """Pins this process and its children to one core, where the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _prepare_rate(folder: Path, paths: list[Path]) -> Callable[[], float]:
    rows = [{"id": path.stem, "image_name": path.name, "caption": _caption(path)} for path in paths]
    (folder / "rows.json").write_text(json.dumps(rows))
    entry = Entry(name="images", reader="pairs", paths=["rows.json"], media="images", modality=Modality.IMAGE)
    source = Source(
        entry=entry,
        path=folder / "rows.json",
        media=paths[0].parent,
        directory=folder / "shards",
        samples_per_shard=_samples_per_shard(paths),
        policy=POLICY,
    )

    def measure() -> float:
        remove_tree(source.directory)
        with timed() as watch:
            prepared = prepare(source)
        assert prepared.manifest.samples == len(paths), prepared.manifest.rejected
        return len(paths) / watch.seconds

    return measure


def _loop_rate(paths: list[Path]) -> float:
    with timed() as watch:
        bare_loop([str(path) for path in paths])
    return len(paths) / watch.seconds


def _samples_per_shard(paths: list[Path]) -> int:
    """Four shards per core, for all sides alike, so that no core waits long for the last."""
    return -(-len(paths) // (4 * cores()))


def _texture(random: np.random.Generator) -> NDArray[np.uint8]:
    """Seamless noise (H, W, 3) of the largest of SIZES; its amplitude falls with frequency as that of photographs."""
    width, height = SIZES[0]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = random.standard_normal((3, height, width))
    grey, red, blue = (np.fft.irfft2(np.fft.rfft2(plane) / frequency**SLOPE) for plane in noise)
    channels = np.stack([grey + COLOUR * red, grey, grey + COLOUR * blue], axis=-1)
    return np.clip(128 + CONTRAST * channels / channels.std(), 0, 255).astype(np.uint8)


def sample(path: Path) -> Sample:
    """The row of an image, as from a reader."""
    item = Item(modality=Modality.IMAGE, name=path.name, caption=_caption(path))
    turns = Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(_caption(path),))
    return Sample(key=path.stem, source=f"images#{path.stem}", turns=turns)


def _caption(path: Path) -> str:
    return f"noise of number {path.stem} that looks like clouds"


def _row(name: str, ours: float, peer: float, target: float, note: str) -> Row:
    return Row(name=name, ours=ours, peer=peer, ratio=ours / peer, target=target, unit="images/s", note=note)
