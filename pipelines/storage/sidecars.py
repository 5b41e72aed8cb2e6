"""Sidecars: embeddings beside a dataset's shards, one `.npy` a sample, same keys, same order, media untouched.

`<dataset>/embeddings/<encoder-id>/00000.tar` belongs to `<dataset>/00000.tar`. A member `<key>.npy` holds the
embeddings of the sample's items in the order they stand, (num_items, ...): caption embeddings (num_items, L, D),
encoder features (num_items, E), or (num_items, P, E) of P patches, or a decoder's latents (num_items, C, ...), as
float32, float16, or int8 with a scale for each vector (`storage.py`). The last of the L positions are not stored where
they are zeros for all items of the sample. The index beside it adds how many of the L positions are the caption's own,
and a hash of what each embedding was made from. A medium that could not be encoded leaves zeros and the length
`NOT_ENCODED`, and the manifest names it: no sample that holds it is trained on.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.sample import Modality
from pipelines.storage.precision import record_type, restore
from pipelines.storage.shards import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from pipelines.views import CaptionChoice

# What a sidecar holds: caption embeddings for one output modality, or features of the input items, of all of them or,
# where each modality has an encoder of its own, of those of one; or, for the denoising loss alone, latents of the media
# that are to be generated.
ENCODER = "encoder"
KINDS = (*(modality.value for modality in Modality), ENCODER)
LATENTS = tuple(f"{modality.value}_latents" for modality in Modality)
FEATURES = tuple(f"{modality.value}_features" for modality in Modality)
ROW_KINDS = (*KINDS, *LATENTS, *FEATURES)

IDENTITY_BYTES = 16
_NPY_HEADER = 128  # bytes, of arrays of plain numbers
_NPY_START = 10  # of which the last two say how many follow up to the array
# The length of an embedding that is none.
NOT_ENCODED = -1

SIDECAR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("lengths", pa.list_(pa.int32())),
        ("sha256", pa.string()),
        ("identities", pa.list_(pa.binary(IDENTITY_BYTES))),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A medium that could not be encoded, and why: the `item`-th of its shard, of the `sample`-th sample."""

    shard: str
    sample: int
    key: str
    item: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarManifest:
    """What made a sidecar, the shape of one item's embedding, and which shard each of its tars belongs to.

    `max_error` and `min_cosine` are what storing as `dtype` costs against float32: see `storage.Loss`. Where the
    encoder's matrix products are of another `precision` than float32, `precision_cosine` is the lowest cosine of a
    vector to that of float32, in a sample of the items. `failed` are those of the `items` that could not be encoded.
    `captions` says which are embedded: a dataset's own, the new ones beside it, or both.
    """

    kind: str
    encoder_id: str
    encoder_name: str
    untrained: bool
    shape: list[int]
    dtype: str
    items: int
    shards: list[Shard]
    of_shards: list[str]
    max_error: float = 0.0
    min_cosine: float = 1.0
    precision: str = "float32"
    precision_cosine: float | None = None
    failed: list[Failure] = field(default_factory=list)
    captions: CaptionChoice = "original"

    @property
    def made_by(self) -> str:
        """The id of the encoder itself: of other captions than a dataset's own, `encoder_id` says which, too."""
        return self.encoder_id if self.captions == "original" else self.encoder_id.removesuffix(f"-{self.captions}")

    def write(self, directory: Path) -> None:
        """Writes the manifest, the mark of a finished sidecar."""
        # So that manifests of a dataset's own captions are the bytes that they were.
        fields = asdict(self)
        if self.captions == "original":
            del fields["captions"]
        write_manifest(directory, fields)

    @classmethod
    def read(cls, directory: Path) -> "SidecarManifest":
        """Reads a finished sidecar's manifest.

        Raises:
            ValueError: it is damaged, or of another version of this program.
        """
        fields = read_manifest(directory)
        try:
            shards = [Shard(**shard) for shard in fields["shards"]]
            failed = [Failure(**failure) for failure in fields.get("failed", [])]
            return cls(**{**fields, "shards": shards, "failed": failed})
        except (TypeError, KeyError):
            raise ValueError(f"{directory / MANIFEST}: of another version; run jobs/embed.py again") from None


def sidecar_folder(dataset: Path, encoder_id: str) -> Path:
    """Where the sidecar of one encoder lies."""
    return dataset / "embeddings" / encoder_id


def find_sidecars(dataset: Path, kind: str) -> dict[str, SidecarManifest]:
    """The finished sidecars of a kind beside a dataset, by encoder id."""
    manifests = [SidecarManifest.read(path.parent) for path in sorted(dataset.glob(f"embeddings/*/{MANIFEST}"))]
    return {manifest.encoder_id: manifest for manifest in manifests if manifest.kind == kind}


def output_modality(kind: str) -> Modality | None:
    """The modality of the output items that a sidecar of this kind is of; None for an encoder's, of input items."""
    return None if is_features(kind) else Modality(kind.removesuffix("_latents"))


def features_kind(modality: Modality | None) -> str:
    """The kind of sidecar that holds the features of a modality's input items; None means those of all."""
    return ENCODER if modality is None else f"{modality.value}_features"


def input_modality(kind: str) -> Modality | None:
    """The modality of the input items that a sidecar of features is of; None if it is of all."""
    return Modality(kind.removesuffix("_features")) if kind in FEATURES else None


def is_features(kind: str) -> bool:
    """Whether a sidecar of this kind holds what an encoder makes of input items."""
    return kind == ENCODER or kind in FEATURES


def takes_media(kind: str) -> bool:
    """Whether a sidecar of this kind is made from media; else from captions."""
    return is_features(kind) or kind in LATENTS


def embed_command(shards: Path, kind: str) -> str:
    """What makes the sidecars of a kind."""
    modality = output_modality(kind)
    flags = f"--modality {modality or ENCODER}{' --latents' if kind in LATENTS else ''}"
    return f"jobs/embed.py --shards {shards} {flags}"


def needs(manifest: Manifest, kind: str) -> int:
    """How many items of a dataset a sidecar of this kind holds; none needs no sidecar.

    Of latents, and of one modality's features, it holds at most so many.
    """
    modality = output_modality(kind)
    return manifest.output_items.get(modality.value, 0) if modality else manifest.input_items


def to_npy(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def without_zeros(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stored caption embeddings (num_items, L, ...) without the last positions at which none carries anything."""
    if stored.ndim < 2 or not stored.size:
        return stored
    numbers = stored if stored.dtype.names is None else stored["scale"]
    carries = (numbers != 0).reshape(*stored.shape[:2], -1).any(axis=(0, 2))
    return stored[:, : max(1, int(carries.nonzero()[0].max(initial=0)) + 1)]


def with_zeros(data: bytes, size: int, positions: int) -> bytes:
    """`.npy` bytes of caption embeddings as `without_zeros` found them, with all positions: `size` bytes of array."""
    if len(data) - _NPY_START - int.from_bytes(data[_NPY_START - 2 : _NPY_START], "little") == size:
        return data
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    whole = np.zeros((len(stored), positions, *stored.shape[2:]), stored.dtype)
    whole[:, : stored.shape[1]] = stored
    return to_npy(whole)


def gigabytes(items: int, shape: Sequence[int], dtype: str) -> float:
    """What so many embeddings of `shape` take in a sidecar: the arrays, a header each, and the ends of members."""
    member = _NPY_HEADER + record_type(dtype, shape).itemsize
    return items * (BLOCKSIZE + member + -member % BLOCKSIZE) / 1e9


def from_npy(data: bytes) -> npt.NDArray[Any]:
    """Reads `.npy` bytes, int8 with scales as float32; pickles are refused by numpy with a ValueError."""
    return restore(np.load(io.BytesIO(data), allow_pickle=False))
