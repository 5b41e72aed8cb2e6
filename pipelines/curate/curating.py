"""Computes columns beside datasets' shards on Ray Data: actors read, decode and score a shard a row.

A shard is read once for all scorers of which it has no columns yet. What is written depends on the shard and the
scorer alone, whatever the number of actors and however often a run was killed.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data

from pipelines.curate.columns import FAILURES, ColumnsManifest, ColumnsWork, begin, finish, write_columns
from pipelines.curate.scorers import Content, Score, Scorer, Values
from pipelines.embed.embedding import Pool
from pipelines.progress import track
from pipelines.ray_steps import map_rows
from pipelines.storage.files import iterate_rows
from pipelines.storage.shards import Manifest, iterate_samples

# Samples that a scorer is given at once; as many are in memory.
BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """Finished columns of a dataset, and how many of its shards were scored now."""

    dataset: str
    manifest: ColumnsManifest
    folder: Path
    made: int

    @property
    def failure(self) -> str:
        """How many samples could not be scored, with one of them and why, in one line; there is one."""
        path, failed = self.folder / FAILURES, self.manifest.failed
        first = next(iterate_rows(path))
        example = f"{self.dataset}/{first['key']}: {first['reason']}{' ...' * (failed > 1)}"
        what = f"{failed} of {self.manifest.rows} samples could not be scored by {self.manifest.scorer}"
        return f"{what} ({example}); their values are null; all are listed in {path}"


def curate(directories: Sequence[Path], scorers: Sequence[Scorer], pool: Pool) -> list[Curated]:
    """Writes what is missing of the scorers' columns; those on devices after all others."""
    works = [columns_work(directory, scorer) for directory in directories for scorer in scorers]
    todo = [begin(work) for work in works]
    named = {scorer.name: scorer for scorer in scorers}
    for on_devices in (False, True):
        chosen = {name: scorer for name, scorer in named.items() if scorer.on_devices == on_devices}
        rows = list(_rows(works, todo, chosen))
        step, options = _step(works, chosen, pool, len(rows), on_devices)
        with track("score", sum(row["samples"] for row in rows), "samples", announce=bool(rows)) as bar:
            for row in map_rows(rows, step, **options):
                bar.advance(row["samples"])
    return [finished(work, len(numbers)) for work, numbers in zip(works, todo, strict=True)]


def _step(
    works: Sequence[ColumnsWork], scorers: Mapping[str, Scorer], pool: Pool, rows: int, on_devices: bool
) -> tuple[Any, dict[str, Any]]:
    """What scores a row, and Ray Data's options for it."""
    if not on_devices:
        return partial(score_row, works=works, scorers=scorers), {}
    actors = ray.data.ActorPoolStrategy(size=max(1, min(pool.actors, rows)))
    arguments = {"fn_constructor_args": (works, scorers), "compute": actors}
    return ScoreShard, {**arguments, "num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}


def finished(work: ColumnsWork, made: int) -> Curated:
    """Finishes columns all of whose shards are there."""
    return Curated(dataset=work.directory.name, manifest=finish(work), folder=work.folder, made=made)


def columns_work(directory: Path, scorer: Scorer) -> ColumnsWork:
    """A scorer's columns of a dataset."""
    return ColumnsWork(
        directory=directory,
        shards=tuple(Manifest.read(directory).shards),
        scorer=scorer.name,
        version=scorer.version,
        columns=dict(scorer.columns),
        about=dict(scorer.about),
    )


def _rows(
    works: Sequence[ColumnsWork], todo: Sequence[Sequence[int]], scorers: Mapping[str, Scorer]
) -> Iterator[dict[str, Any]]:
    """A row a shard: for which works it is to be scored."""
    found: dict[tuple[Path, int], list[int]] = {}
    for number, (work, shards) in enumerate(zip(works, todo, strict=True)):
        if work.scorer in scorers:
            for shard in shards:
                found.setdefault((work.directory, shard), []).append(number)
    for (_, shard), numbers in found.items():
        yield {"shard": shard, "works": json.dumps(numbers), "samples": works[numbers[0]].shards[shard].samples}


def score_row(row: dict[str, Any], works: Sequence[ColumnsWork], scorers: Mapping[str, Scorer]) -> dict[str, Any]:
    """Writes the columns of a shard for each of the row's works."""
    own, shard = [works[number] for number in json.loads(row["works"])], row["shard"]
    told: list[list[Values]] = [[] for _ in own]
    samples = contents_of(own[0], shard)
    while contents := list(islice(samples, BATCH)):
        for values, work in zip(told, own, strict=True):
            values += _made(scorers[work.scorer].make)(contents)
    for values, work in zip(told, own, strict=True):
        write_columns(work, shard, values)
    return {"samples": row["samples"]}


@lru_cache(maxsize=16)
def _made(make: Callable[[], Score]) -> Score:
    """A scorer, made once a process."""
    return make()


class ScoreShard:
    """The actor of scorers on devices: it outlives a shard, and so do they."""

    def __init__(self, works: Sequence[ColumnsWork], scorers: Mapping[str, Scorer]) -> None:
        self._works, self._scorers = works, scorers

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the columns of a shard: see `score_row`."""
        return score_row(row, self._works, self._scorers)


def contents_of(work: ColumnsWork, shard: int) -> Iterator[Content]:
    """The samples of a shard, as scorers see them.

    Raises:
        ValueError: the shard is damaged.
    """
    tar = work.source(shard)
    try:
        for place, sample in enumerate(iterate_samples(tar)):
            yield Content(sample=sample, directory=work.directory, shard=tar.name, place=place)
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ValueError(f"{tar}: damaged ({' '.join(str(error).split())}); run jobs/prepare.py again") from None
