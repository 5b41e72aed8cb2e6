"""Scores prepared samples in columns beside the shards: `jobs/curate.py --shards SHARDS`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from jobs.common import cli
from jobs.common.cli import Option

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.curate.curating import Curated
    from pipelines.curate.scorers import Scorer


MEASURES, DUPLICATES = "measures", "duplicates"
GROUPS = (MEASURES, DUPLICATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateOptions:
    """Compute columns beside the shards, a row a sample, that `where:` of a training stage selects by. Nothing is
    rewritten, and a rerun does what is missing.
    """

    shards: Annotated[str, Option("the --out of jobs/prepare.py", "SHARDS")]
    datasets: Annotated[
        tuple[str, ...] | None, Option("prepared datasets, among which duplicates are found (all if omitted)", "NAME")
    ] = None
    columns: Annotated[tuple[str, ...] | None, Option("what to compute (all if omitted)", choices=GROUPS)] = None
    held_out: Annotated[
        float, Option("validation.fraction of the training, for what leaks from it", "SHARE", least=0, most=1)
    ] = 0.02


def run(options: CurateOptions) -> None:
    """Scores all prepared datasets or those named, and prints how many samples have a value in each column."""
    from pipelines.curate.curating import curate
    from pipelines.curate.duplicates import write_duplicates
    from pipelines.embed.embedding import plan_pool

    cli.check(options)
    directories, groups = _datasets(options), options.columns or GROUPS
    scorers = _scorers(groups)
    cli.start_ray()
    results = curate(directories, scorers, plan_pool())
    if DUPLICATES in groups:
        results += write_duplicates(directories, options.held_out)
    _report(results)


def _datasets(options: CurateOptions) -> "list[Path]":
    from pipelines.storage.shards import list_datasets

    shards = cli.existing_folder(options.shards)
    datasets = list_datasets(shards)
    unknown = sorted(set(options.datasets or ()) - set(datasets))
    if unknown:
        raise cli.UsageError(f"--datasets: {', '.join(unknown)} not in {shards}; it holds {', '.join(datasets)}")
    return [shards / name for name in options.datasets or datasets]


def _scorers(groups: Sequence[str]) -> "list[Scorer]":
    from pipelines.curate import measures, prints

    made = {MEASURES: measures.scorer, DUPLICATES: prints.scorer}
    return [made[name]() for name in groups]


def _report(results: "Sequence[Curated]") -> None:
    for result in results:
        manifest = result.manifest
        state = f"{result.made} of {len(manifest.of_shards)} shards scored now"
        values = ", ".join(f"{name} {count}" for name, count in manifest.values.items())
        print(f"{result.dataset}: {manifest.rows} samples by {manifest.id} ({state}): {values}")
    rows, failed = (sum(getattr(result.manifest, name) for result in results) for name in ("rows", "failed"))
    print(f"all: {rows} in = {rows - failed} scored + {failed} failed")
    lines = [_failure(result) for result in results if result.manifest.failed]
    if lines:
        raise cli.Failures("\n".join(lines))


def _failure(result: "Curated") -> str:
    from pipelines.curate.columns import FAILURES
    from pipelines.storage.files import iterate_rows

    path, manifest = result.folder / FAILURES, result.manifest
    first = next(iterate_rows(path))
    example = f"{result.dataset}/{first['key']}: {first['reason']}{' ...' * (manifest.failed > 1)}"
    what = f"{manifest.failed} of {manifest.rows} samples could not be scored by {manifest.scorer}"
    return f"{what} ({example}); their values are null; all are listed in {path}"


main = cli.command(CurateOptions, run)

if __name__ == "__main__":
    cli.run(main)
