"""What a dataset holds, counted from its indexes: lengths of captions, sizes of pictures, seconds of clips and sounds.

Indexes are read one at a time and no media are opened: a dataset of a million samples takes seconds.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inspect.histogram import Histogram, Spread
from pipelines.sample import Modality, Reject
from pipelines.storage.files import read_table
from pipelines.storage.shards import REJECTS, Manifest, index_path

# How many samples of each sort a report looks into.
SHOWN = {Modality.IMAGE: 24, Modality.VIDEO: 8, Modality.AUDIO: 8}
SHOWN_CAPTIONS = 12
READ_SAMPLES = 400
EXAMPLES = 4

Place = tuple[int, int]  # the number of the shard, and of the sample in it


@dataclass(kw_only=True)
class Census:
    """What was counted; histograms by name, and by modality which samples to show.

    `samples` are places spread over all of them, `captions` the same with key, source and caption.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    media: dict[Modality, int] = field(default_factory=dict)
    shown: dict[Modality, Spread[tuple[int, int, str]]] = field(default_factory=dict)
    samples: Spread[Place] = field(default_factory=partial(Spread[Place], READ_SAMPLES))
    captions: Spread[tuple[str, str, str]] = field(
        default_factory=partial(Spread[tuple[str, str, str]], SHOWN_CAPTIONS)
    )

    def count(self, name: str, value: float, times: int = 1, step: float = 1.0) -> None:
        """Adds a value to one of the histograms."""
        self.histograms.setdefault(name, Histogram(step)).add(value, times)


def take_census(dataset: Path, manifest: Manifest) -> Census:
    """Counts a finished dataset."""
    census = Census()
    for number, shard in enumerate(manifest.shards):
        table = read_table(index_path(dataset / shard.name), ["key", "source", "caption", "media"])
        _count_captions(census, table, "\n" if manifest.captions else "\0")
        for place, text in enumerate(table["media"].to_pylist()):
            census.samples.offer((number, place))
            for suffix, facts in (json.loads(text) if text else {}).items():
                _count_medium(census, (number, place, suffix), facts)
    return census


def count_rejects(dataset: Path) -> dict[str, Spread[Reject]]:
    """The rejected rows by category of reason, with a few examples of each."""
    found: dict[str, Spread[Reject]] = {}
    for batch in read_table(dataset / REJECTS).to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            category = row["reason"].partition(":")[0]
            found.setdefault(category, Spread(EXAMPLES)).offer(Reject(**row))
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].seen, pair[0])))


def modality_of(facts: dict[str, Any]) -> Modality | None:
    """The modality of a medium according to its facts; None if they do not say."""
    if "fps" in facts:
        return Modality.VIDEO
    if "sample_rate" in facts:
        return Modality.AUDIO
    return Modality.IMAGE if "width" in facts else None


def _count_captions(census: Census, table: pa.Table, separator: str) -> None:
    captions = pc.list_flatten(pc.split_pattern(table["caption"], separator))
    for name, lengths in (
        ("words", pc.count_substring_regex(captions, r"\S+")),
        ("characters", pc.utf8_length(captions)),
    ):
        for pair in pc.value_counts(lengths).to_pylist():
            if pair["values"]:
                census.count(name, pair["values"], pair["counts"])
    for row in table.select(["key", "source", "caption"]).to_pylist():
        for caption in filter(None, row["caption"].split(separator)):
            census.captions.offer((row["key"], row["source"], caption))


def _count_medium(census: Census, place: tuple[int, int, str], facts: dict[str, Any]) -> None:
    modality = modality_of(facts)
    if modality is None:
        return
    census.media[modality] = census.media.get(modality, 0) + 1
    census.shown.setdefault(modality, Spread(SHOWN[modality])).offer(place)
    width, height, seconds = facts.get("width", 0), facts.get("height", 0), facts.get("seconds", 0)
    if width and height:
        census.count(f"{modality} shorter side", min(width, height))
        census.count(f"{modality} aspect ratio", width / height, step=0.01)
    if seconds:
        census.count(f"{modality} seconds", seconds, step=0.1)
