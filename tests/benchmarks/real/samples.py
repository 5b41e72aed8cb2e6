"""A few samples of a NExT-GPT data folder: a CPU takes minutes for a video at full size."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.storage.files import read_json, write_json

_PAIRS = "T-X_pair_data"
_NAMES = tuple(f"{way}_{medium}" for way in ("input", "output") for medium in ("image", "video", "audio"))
_NAMES += ("image_name", "video_name", "audio_name")


def cut_samples(data: Path, out: Path, count: int) -> None:
    """Copies the first `count` media of each modality of the T-X pairs, with their rows.

    Raises FileNotFoundError if `data` has no such pairs.
    """
    datasets = sorted(path.parent for path in (data / _PAIRS).glob("*/*.json") if path.stem == path.parent.name)
    if not datasets:
        raise FileNotFoundError(f"{data}: contains no {_PAIRS}/<dataset>/<dataset>.json of NExT-GPT")
    for folder in datasets:
        kept = dict.fromkeys(_media(read_json(folder / f"{folder.name}.json")[:count]))
        for path in folder.glob("*.json"):
            rows = [row for row in read_json(path) if kept.keys() >= set(_media([row]))]
            write_json(out / _PAIRS / folder.name / path.name, rows)
        for path in (file for file in folder.glob("*/*") if file.name in kept):
            copy = out / path.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _media(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (str(row[name]) for name in _NAMES if name in row)
