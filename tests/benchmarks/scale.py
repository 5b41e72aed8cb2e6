"""What large datasets take, on paper: hours, dollars and bytes, from slopes.

Slopes of a core are measured here, as CPU seconds on the files of a folder, whose pictures are enlarged to what the web
has; those of a GPU, of reading and of the drivers were measured by other suites, which are named beside them.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from jobs.common.cli import existing_folder
from jobs.common.encoders import clips
from jobs.embed import GPU_CLIPS
from model.encoders.imagebind_inputs import MediaInputs
from pipelines.embed.embedding import READY_PER_ACTOR, UNITS_PER_ACTOR
from pipelines.embed.encoding import prepare_media
from pipelines.media.codecs import load
from pipelines.media.policy import MediaPolicy
from pipelines.media.stored import store
from pipelines.sample import Media, Modality
from pipelines.storage.sidecars import ENCODER, gigabytes
from tests.benchmarks import say, table_head, table_row

READ_ROWS = 10_400.0  # rows a second and core: `bench.py pipelines --only sources`
# Items a second on an H100, by `bench.py gpu --only encoder captions`: ImageBind huge as TF32, CLIP in bfloat16.
ENCODED = {Modality.IMAGE: 547.0, Modality.VIDEO: 36.0}
CAPTIONS = {Modality.IMAGE: (3017.0, (77, 768)), Modality.VIDEO: (2035.0, (77, 1024))}
FEATURE = (1024,)
PHOTO = (1280, 1024)
DRIVER_MB, DRIVER_BYTES_AN_ITEM = 290.0, 50.0  # `bench.py pipelines --only sources`; pipelines/embed/plan.py
CORE_HOUR, GPU_HOUR = 0.045, 3.0  # dollars, about what clouds ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """Of one medium, on average: a core's seconds to prepare it and to ready it for ImageBind, and bytes."""

    prepare: float
    ready: float
    stored: float
    inputs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A dataset of captions and media, and the machines that are to work on it."""

    rows: int
    modality: Modality
    cores: int
    gpus: int


CASES = (
    Case(rows=100_000, modality=Modality.IMAGE, cores=16, gpus=1),
    Case(rows=12_000_000, modality=Modality.IMAGE, cores=128, gpus=8),
    Case(rows=400_000_000, modality=Modality.IMAGE, cores=1024, gpus=64),
    Case(rows=10_000_000, modality=Modality.VIDEO, cores=2048, gpus=64),
)
_HEADER = (
    "rows",
    "cores + GPUs",
    "prepare, hours",
    "embed, hours",
    "dollars",
    "shards",
    "sidecars in float16",
    "object store at most",
    "driver at most",
)


def run(data: Path) -> Iterator[str]:
    """The lines of two tables: the slopes, and what follows from them."""
    slopes = {modality: _slopes(files, modality) for modality, files in _media(data / "T-X_pair_data")}
    yield from table_head(("medium", "prepare, core s", "ready for the encoder, core s", "stored", "to the encoder"))
    for modality, slope in slopes.items():
        seconds = (f"{slope.prepare:.4f}", f"{slope.ready:.4f}")
        yield table_row((modality.value, *seconds, _bytes(slope.stored), _bytes(slope.inputs)))
    yield ""
    yield from table_head(_HEADER)
    yield from (table_row(cells(case, slopes[case.modality])) for case in CASES)


def cells(case: Case, slopes: Slopes) -> tuple[str, ...]:
    """A row of the table: each step takes what its slower part takes, and machines are paid for while they work."""
    reading = case.rows / READ_ROWS / case.cores
    preparing = (reading + case.rows * slopes.prepare / case.cores) / 3600
    captions, shape = CAPTIONS[case.modality]
    encoding = case.rows * (1 / ENCODED[case.modality] + 1 / captions) / case.gpus
    embedding = max(encoding, case.rows * slopes.ready / case.cores) / 3600
    dollars = CORE_HOUR * case.cores * (preparing + embedding) + GPU_HOUR * case.gpus * embedding
    sidecars = gigabytes(case.rows, shape, "float16") + gigabytes(case.rows, FEATURE, "float32")
    unit = GPU_CLIPS / clips(ENCODER).get(case.modality, 1) * slopes.inputs
    # Units that wait for an actor or are on it, and one a task that makes the next.
    store = unit * (case.gpus * (READY_PER_ACTOR + UNITS_PER_ACTOR) + case.cores)
    driver = DRIVER_MB * 1e6 + 2 * case.rows * DRIVER_BYTES_AN_ITEM  # a medium and a caption a row
    return (
        f"{case.rows:,} {'pictures' if case.modality is Modality.IMAGE else 'videos'}",
        f"{case.cores:,} + {case.gpus}",
        f"{preparing:.2g}",
        f"{embedding:.2g}",
        f"{dollars:,.2g}" if dollars < 10 else f"{dollars:,.0f}",
        _bytes(case.rows * slopes.stored),
        _bytes(sidecars * 1e9),
        _bytes(store),
        _bytes(driver),
    )


def _media(folder: Path) -> Iterator[tuple[Modality, list[Path]]]:
    for modality, place in ((Modality.IMAGE, "cc3m/images"), (Modality.VIDEO, "webvid/videos")):
        files = sorted(existing_folder(str(folder / place)).iterdir())
        say(f"scale: {len(files)} files of {place}")
        yield modality, files


def _slopes(files: Sequence[Path], modality: Modality) -> Slopes:
    inputs, policy = MediaInputs(224), MediaPolicy()
    prepare = ready = stored = handed = 0.0
    for file in files:
        medium = load(file, modality)
        if modality is Modality.IMAGE:
            medium = _enlarged(medium)
        started = time.process_time()
        kept = store(medium, policy).media
        prepared = time.process_time()
        [arrays] = prepare_media([kept], inputs)
        ready += time.process_time() - prepared
        prepare += prepared - started
        stored += len(kept.data)
        handed += arrays.nbytes
    count = len(files)
    return Slopes(prepare=prepare / count, ready=ready / count, stored=stored / count, inputs=handed / count)


def _enlarged(picture: Media) -> Media:
    """A picture of 1.3 megapixels, as a JPEG of quality 90."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(picture.data)) as image:
        image.convert("RGB").resize(PHOTO).save(buffer, format="JPEG", quality=90)
    return Media(modality=Modality.IMAGE, data=buffer.getvalue(), format="jpg")


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
