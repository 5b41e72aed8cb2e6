"""Embeds a captions file alone, into one `.npy` a row named after the row's medium: what NExT-GPT's own code reads."""

import json
from pathlib import Path
from typing import Any

import ray.data

from pipelines.embed.embedding import Pool
from pipelines.embed.encoding import EmbedTask
from pipelines.progress import track
from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS
from pipelines.storage.files import atomic_path
from pipelines.storage.precision import store
from pipelines.storage.sidecars import to_npy

# What file systems allow, with room for `.npy` and the suffix of a temporary file.
MAX_NAME_BYTES = 230


class CaptionWriter:
    """The actor: embeds a batch of captions and writes each to its files."""

    def __init__(self, task: EmbedTask, out: Path) -> None:
        self._encoder = task.factory()
        self._prepare = task.preprocess() if task.preprocess else list
        self._out = out
        self._dtype = task.dtype

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Writes the batch's embeddings; (L, D), or (D,) where a caption has a single vector."""
        captions = [str(caption) for caption in batch["caption"]]
        embeddings, _ = self._encoder(self._encoder.send(self._prepare(captions)))
        stored, _ = store(embeddings, self._dtype, self._encoder.name)
        for names, embedding in zip(batch["names"], stored, strict=True):
            array = to_npy(embedding[0] if len(embedding) == 1 else embedding)
            for name in json.loads(names):
                with atomic_path(self._out / f"{name}.npy") as temporary:
                    temporary.write_bytes(array)
        return {"written": [len(json.loads(names)) for names in batch["names"]]}


def embed_captions(source: Path, out: Path, task: EmbedTask, pool: Pool) -> tuple[int, list[Reject]]:
    """Embeds every readable row; returns how many files were written and the rejects.

    Equal captions are encoded once, and captions of like length together.
    """
    entry = Entry(name="captions", reader="pairs", paths=[source.name], modality=Modality(task.kind))
    rejects, seen, names = list[Reject](), set[str](), dict[str, list[str]]()
    for row in READERS[entry.reader](entry, source):
        if isinstance(row, Sample):
            row = _checked(row, seen)
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        (item,) = row.items()
        names.setdefault(item.caption, []).append(item.name)
    count = sum(map(len, names.values()))
    if not count:
        return 0, rejects
    captions = sorted(names, key=lambda caption: (len(caption), caption))
    rows = [{"caption": caption, "names": json.dumps(names[caption])} for caption in captions]
    blocks = -(-len(rows) // task.batch_size)
    written = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        CaptionWriter,
        fn_constructor_args=(task, out),
        batch_size=task.batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool.actors, blocks)),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    with track(f"embed {source.name}", count, "captions") as bar:
        for batch in written.iter_batches(batch_size=None):
            bar.advance(int(batch["written"].sum()))
    return count, rejects


def _checked(row: Sample, seen: set[str]) -> Sample | Reject:
    """A file name may neither repeat nor hold a folder: every row gets its own file below the output folder."""
    (item,) = row.items()
    reason = "duplicate name" if item.name in seen else "bad name" if _is_bad(item.name) else ""
    reason = reason or ("several captions, and a file holds one's embedding" if item.more_captions else "")
    seen.add(item.name)
    return Reject(source=row.source, key=row.key, stage="read", reason=f"{reason}: {item.name}") if reason else row


def _is_bad(name: str) -> bool:
    return Path(name).name != name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES
