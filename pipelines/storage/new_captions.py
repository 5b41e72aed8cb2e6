"""New captions of a dataset's pairs, a column beside its shards that jobs/recaption.py writes: where, and of what.

Samples are read with the captions that are chosen: their own, the new one, or both, their own first.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipelines.sample import Sample
from pipelines.storage.files import read_table
from pipelines.storage.shards import MANIFEST, Manifest, hash_file, hash_strings, index_path, read_manifest
from pipelines.views import CaptionChoice, with_caption

COLUMNS = "columns"
SCORER, COLUMN = "recaption", "new_caption"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCaptions:
    """New captions, and how they are chosen; `count` samples have one, `hashes` are of the files, a shard each."""

    folder: Path
    choice: CaptionChoice
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    count: int

    def worded(self, shard: int, place: int, sample: Sample) -> Sample:
        """A sample of a shard with the captions that are chosen."""
        captions = _read(self.folder / self.names[shard], self.hashes[shard])
        return with_caption(sample, captions[place], self.choice)

    def of(self, shard: int, sha256: str) -> str:
        """What is made of a shard's captions is of these and of no others: a hash of both."""
        return hash_strings([sha256, self.choice, self.hashes[shard]])

    @property
    def identity(self) -> str:
        """A hash of all new captions and of how they are chosen."""
        return hash_strings([self.choice, *self.hashes])

    def counted(self, manifest: Manifest) -> Manifest:
        """The dataset's manifest with the captions as they are chosen."""
        if self.choice == "new":
            return replace(manifest, captions=0, most_captions=1, one_caption=[])
        captions, most = manifest.num_examples + self.count, manifest.most_captions + bool(self.count)
        return replace(manifest, captions=captions, most_captions=most)


def find_new_captions(directory: Path, manifest: Manifest, choice: CaptionChoice) -> NewCaptions | None:
    """The new captions beside a dataset; None where its own are chosen.

    Raises:
        ValueError: there are none, or they are of other shards than these; one line.
    """
    if choice == "original":
        return None
    folders = sorted(path.parent for path in directory.glob(f"{COLUMNS}/{SCORER}-*/{MANIFEST}"))
    command = f"jobs/recaption.py --shards {directory.parent}"
    if not folders:
        raise ValueError(f"{directory}: captions: {choice}, but there are no new captions; {command} writes them")
    fields = read_manifest(folders[-1])
    if fields.get("of_shards") != [shard.sha256 for shard in manifest.shards]:
        raise ValueError(f"{directory}: the new captions are of other shards than these; run {command}")
    names = tuple(index_path(Path(shard.name)).name for shard in manifest.shards)
    return NewCaptions(
        folder=folders[-1],
        choice=choice,
        names=names,
        hashes=tuple(hash_file(folders[-1] / name) for name in names),
        count=fields["values"][COLUMN],
    )


def shard_identities(manifest: Manifest, captions: NewCaptions | None) -> list[str]:
    """What embeddings of captions are of, shard by shard."""
    hashes = [shard.sha256 for shard in manifest.shards]
    return hashes if captions is None else [captions.of(number, one) for number, one in enumerate(hashes)]


@lru_cache(maxsize=8)
def _read(path: Path, sha256: str) -> list[str | None]:
    found: list[str | None] = read_table(path, [COLUMN])[COLUMN].to_pylist()
    return found
