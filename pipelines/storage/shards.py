"""WebDataset tar shards: deterministic, and with random access to every sample by its offset.

A dataset is a folder: `00000.tar`, `00001.tar`, ... of exactly `samples_per_shard` samples each but the last,
an index `00000.parquet` beside each, `rejects.parquet`, and `manifest.json`, which is written last: a folder
without it is not finished.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.sample import Media, Modality, Sample, turns_document, turns_from_json
from pipelines.storage.files import is_sound, read_json, read_rows, to_json, write_json
from pipelines.storage.tar_members import write_member
from pipelines.views import Kind

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
# What this machine remembers of a dataset's files and sources; no part of the data.
STATE = ".state.parquet"
WRITE_BYTES = 1 << 20
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("caption", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_length", pa.int64()),
        ("media", pa.string()),
        ("sha256", pa.string()),
    ]
)

REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "key", "stage", "reason")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished tar: its file name, number of samples, size in bytes, hash, and the hash of its index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a dataset's folder holds; counts are rows, `rejected` is by reason.

    Rows that caption one medium are one sample, so there may be more of them than `samples` and rejects. `captions`
    counts those of all samples and `most_captions` those of the one with the most, where a medium has several; 0 and 1
    where none has. Of the views in `one_caption` training takes one caption of each sample an epoch, of others all.
    `output_items` counts the items a sidecar of caption embeddings needs by modality, `input_items` those the
    sidecar of encoder features needs. `stages` says which training stage each view is for, and `where` which condition
    on columns its samples have to satisfy, if any.
    """

    dataset: str
    rows: int
    samples: int
    samples_per_shard: int
    rejected: dict[str, int]
    shards: list[Shard]
    views: dict[str, Kind]
    output_items: dict[str, int]
    input_items: int
    licence: str
    source: str = ""
    stages: dict[str, int] = field(default_factory=dict)
    media_policy: dict[str, Any] = field(default_factory=dict)
    rejects_sha256: str = ""
    captions: int = 0
    most_captions: int = 1
    one_caption: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def content(self) -> str:
        """A hash of all shards: equal data have equal hashes, wherever they were made."""
        return hash_strings([shard.sha256 for shard in self.shards])

    @property
    def taken(self) -> int:
        """The number of rows that became samples."""
        return self.rows - sum(self.rejected.values())

    @property
    def num_examples(self) -> int:
        """The number of training examples: one per caption."""
        return self.captions or self.samples

    def write(self, directory: Path) -> None:
        """Writes `manifest.json`, the mark of a finished dataset."""
        fields = asdict(self)
        # So that manifests of datasets with single captions are the bytes that they were.
        usual = {"captions": 0, "most_captions": 1, "one_caption": [], "where": {}}
        write_manifest(directory, {name: value for name, value in fields.items() if value != usual.get(name, ...)})

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Reads a finished dataset's manifest.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another version.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; run jobs/prepare.py for this dataset first")
        fields = read_manifest(directory)
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: schema version {fields.get('schema_version')}, this program reads {SCHEMA_VERSION}; "
                "run jobs/prepare.py again"
            )
        return cls(**{**fields, "shards": [Shard(**shard) for shard in fields["shards"]]})


def write_manifest(directory: Path, fields: dict[str, Any]) -> None:
    """Writes `manifest.json` atomically with a `checksum` of its content; it marks a finished folder."""
    write_json(directory / MANIFEST, fields | {"checksum": _checksum(fields)})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads what `write_manifest` wrote, without the checksum.

    Raises:
        ValueError: it is no JSON, or its content is not what was written.
    """
    path = directory / MANIFEST
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.pop("checksum", None) != _checksum(fields):
        raise ValueError(
            f"{path}: does not fit its checksum: damaged or changed by hand; run the job that made it again"
        )
    return fields


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(fields).encode()).hexdigest()


def shard_name(index: int) -> str:
    """The file name of the shard at `index`."""
    return f"{index:05d}.tar"


def index_path(tar: Path) -> Path:
    """The path of a tar's index."""
    return tar.with_suffix(".parquet")


def list_datasets(shards: Path) -> dict[str, Manifest]:
    """Every finished dataset below a folder of shards, by name.

    Raises:
        FileNotFoundError: the folder does not exist or holds no finished dataset.
    """
    if not shards.is_dir():
        raise FileNotFoundError(f"{shards}: no such folder; give the --out of jobs/prepare.py")
    found = {path.parent.name: Manifest.read(path.parent) for path in sorted(shards.glob(f"*/{MANIFEST}"))}
    if not found:
        raise FileNotFoundError(f"{shards}: holds no finished dataset; run jobs/prepare.py --out {shards} first")
    return found


def members(sample: Sample) -> dict[str, bytes]:
    """A sample's tar members by suffix: its media, its captions (`txt`, a line each) if it is a pair, and `json`."""
    document = {
        "key": sample.key,
        "source": sample.source,
        "turns": turns_document(sample.turns),
        "media": {name: str(medium.modality) for name, medium in sample.media.items()},
        "meta": dict(sample.meta),
    }
    text = _JSON.encode(document)
    captioned = [item for item in sample.items() if item.caption]
    result = {name: medium.data for name, medium in sample.media.items()} | {"json": text.encode()}
    return result | ({"txt": "\n".join(captioned[0].captions).encode()} if len(captioned) == 1 else {})


def from_members(values: Mapping[str, bytes]) -> Sample:
    """The inverse of `members`; media whose bytes are not given are left out."""
    document = json.loads(values["json"])
    media = {
        name: Media(modality=Modality(modality), data=values[name], format=name.rpartition(".")[2])
        for name, modality in document["media"].items()
        if name in values
    }
    turns = turns_from_json(json.dumps(document["turns"]))
    return Sample(key=document["key"], source=document["source"], turns=turns, media=media, meta=document["meta"])


class TarShardWriter:
    """Writes samples to a tar whose bytes depend only on the samples."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=WRITE_BYTES)
        self._size = 0

    def write(self, key: str, values: Mapping[str, bytes]) -> tuple[int, int]:
        """Appends one sample; returns the offset and length in bytes of its members in the tar."""
        start = self._size
        for name in sorted(values):
            self._size += write_member(self._file, f"{key}.{name}", values[name])
        return start, self._size - start

    def close(self) -> None:
        """Ends the archive."""
        self._file.write(end_of_archive(self._size))
        self._file.close()

    def __enter__(self) -> "TarShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def json_range(values: Mapping[str, bytes], offset: int) -> tuple[int, int]:
    """The range of the `json` member's content in a tar, for a sample that begins at `offset`."""
    for name in sorted(values):
        if name == "json":
            return offset + tarfile.BLOCKSIZE, len(values[name])
        offset += tarfile.BLOCKSIZE + _padded(len(values[name]))
    raise AssertionError("every sample has a json member")


def end_of_archive(size: int) -> bytes:
    """The zero blocks that end a tar of `size` bytes of members, as tarfile writes them."""
    used = size + 2 * tarfile.BLOCKSIZE
    return bytes(2 * tarfile.BLOCKSIZE + -used % tarfile.RECORDSIZE)


def copy_range(source: BinaryIO, target: BinaryIO, offset: int, length: int, digest: Any) -> None:
    """Copies a byte range in chunks of a megabyte, and updates the hash."""
    source.seek(offset)
    while length:
        piece = source.read(min(length, 1 << 20))
        assert piece, "the index names bytes beyond the end of its tar"
        target.write(piece)
        digest.update(piece)
        length -= len(piece)


def iterate_samples(tar: Path) -> Iterator[Sample]:
    """Reads a shard's samples one at a time by its index; only one sample is in memory."""
    with tar.open("rb") as file:
        for row in read_rows(index_path(tar), ["offset", "length"]):
            file.seek(row["offset"])
            yield from_members(split_members(file.read(row["length"])))


def hash_members(values: Mapping[str, bytes]) -> str:
    """The content hash of a sample."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name}\0{len(values[name])}\0".encode())
        digest.update(values[name])
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(tar: Path, shard: Shard) -> bool:
    """Whether a shard and its index exist, byte for byte as they were written."""
    index = index_path(tar)
    if not tar.is_file() or not index.is_file() or hash_file(tar) != shard.sha256:
        return False
    return hash_file(index) == shard.index_sha256 if shard.index_sha256 else is_sound(index)


def remove_others(directory: Path, names: set[str]) -> None:
    """Removes shards that are not named, left by an earlier run, and partial files of a killed run."""
    begun = [path for path in directory.glob(".*.*") if path.is_file() and path.name != STATE]
    left = [path for tar in directory.glob("[0-9]*.tar") if tar.name not in names for path in (tar, index_path(tar))]
    for path in begun + left:
        path.unlink(missing_ok=True)


def hash_strings(values: Sequence[str]) -> str:
    """One hash for a sequence of strings."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()


def _padded(length: int) -> int:
    return length + -length % tarfile.BLOCKSIZE


def split_members(data: bytes) -> dict[str, bytes]:
    """The members of one sample by suffix, from its bytes in a tar."""
    result = {}
    with tarfile.open(fileobj=io.BytesIO(data + end_of_archive(len(data))), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, "shards hold plain files alone"
            result[member.name.partition(".")[2]] = file.read()
    return result
