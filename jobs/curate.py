"""Scores prepared samples in columns beside the shards: `jobs/curate.py --shards SHARDS`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from jobs.common import cli
from jobs.common.cli import Option

if TYPE_CHECKING:
    from model.parts.config import ModelConfig
    from pipelines.curate.curating import Curated
    from pipelines.curate.scorers import Scorer
    from pipelines.embed.embedding import Pool


MEASURES, DUPLICATES, SIMILARITY, NEIGHBOURS = "measures", "duplicates", "similarity", "neighbours"
GROUPS = (MEASURES, DUPLICATES, SIMILARITY)
# What the shards say themselves, so that no scorer's column has such a name.
SAID = ("key", "source", "caption", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateOptions:
    """Compute columns beside the shards, a row a sample, that `where:` of a training stage selects by. Nothing is
    rewritten, and a rerun does what is missing.
    """

    shards: Annotated[str, Option("the --out of jobs/prepare.py", "SHARDS")]
    datasets: Annotated[
        tuple[str, ...] | None, Option("prepared datasets, among which duplicates are found (all if omitted)", "NAME")
    ] = None
    columns: Annotated[
        tuple[str, ...] | None,
        Option(
            f"what to compute ({', '.join(GROUPS)} and scorers of --catalog if omitted); {NEIGHBOURS} are near "
            "duplicates by what jobs/embed.py has made of media",
            "NAME",
        ),
    ] = None
    catalog: Annotated[str | None, Option("your own catalog, for its scorers", "YAML")] = None
    preset: Annotated[str, Option("preset whose encoders tell similarity, or your own .yaml file")] = "world"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("precision of its matrix products; auto is bfloat16 on a GPU, float32 on a CPU, as jobs/embed.py"),
    ] = "auto"
    gpus: Annotated[int | None, Option("GPUs to use (those available if omitted)", "N", least=0)] = None
    held_out: Annotated[
        float, Option("validation.fraction of the training, for what leaks from it", "SHARE", least=0, most=1)
    ] = 0.02
    least_cosine: Annotated[float, Option(f"of two samples that are {NEIGHBOURS}", "COSINE", least=0, most=1)] = 0.97
    overrides: Annotated[tuple[str, ...], cli.overrides("model.encoder.name=PATH")] = ()


def run(options: CurateOptions) -> None:
    """Scores all prepared datasets or those named, and prints how many samples have a value in each column."""
    from pipelines.curate.curating import curate
    from pipelines.curate.duplicates import write_duplicates
    from pipelines.curate.neighbours import write_neighbours
    from pipelines.embed.embedding import plan_pool

    cli.check(options)
    directories, scorers = cli.prepared_datasets(options.shards, options.datasets), _scorers(options)
    model = _model(options) if SIMILARITY in (options.columns or GROUPS) else None
    cli.start_ray()
    pool = plan_pool(options.gpus)
    if model is not None:
        scorers += _similarity(options, model, pool)
    results = curate(directories, scorers, pool)
    if DUPLICATES in (options.columns or GROUPS):
        results += write_duplicates(directories, options.held_out)
    if NEIGHBOURS in (options.columns or ()):
        results += write_neighbours(directories, options.least_cosine)
    _report(results)


def _scorers(options: CurateOptions) -> "list[Scorer]":
    """The scorers that --columns names, or all.

    Raises:
        UsageError: there is no such scorer, or one of the catalog cannot be used; one line.
    """
    from pipelines.curate import duplicates, measures, neighbours, prints
    from pipelines.curate.own_scorers import own_scorers
    from pipelines.sources.catalog import load_catalog
    from pipelines.storage.new_captions import COLUMN
    from pipelines.storage.new_captions import SCORER as RECAPTION

    known = {MEASURES: measures.scorer(), DUPLICATES: prints.scorer()}
    taken = dict.fromkeys(duplicates.COLUMNS, DUPLICATES) | dict.fromkeys(SAID, "the shards")
    taken |= {SIMILARITY: SIMILARITY, COLUMN: RECAPTION} | dict.fromkeys(neighbours.COLUMNS, NEIGHBOURS)
    taken |= {column: name for name, scorer in known.items() for column in scorer.columns}
    catalog = load_catalog(extra=[cli.existing_file(options.catalog)] if options.catalog else [])
    for folder, rows in catalog.scorers:
        try:
            known |= {scorer.name: scorer for scorer in own_scorers(rows, folder, taken)}
        except ValueError as error:
            raise cli.UsageError(f"--catalog {options.catalog}: {error}") from None
    unknown = sorted(set(options.columns or ()) - {*known, SIMILARITY, NEIGHBOURS})
    if unknown:
        there = ", ".join([*known, SIMILARITY, NEIGHBOURS])
        raise cli.UsageError(f"--columns: {', '.join(unknown)} not known; there are {there}")
    return [scorer for name, scorer in known.items() if name in (options.columns or known)]


def _model(options: CurateOptions) -> "ModelConfig":
    """The model whose encoder tells similarity, which has been located."""
    from jobs.common.settings import load_model
    from model.parts.sources import ENCODER

    return load_model(options.preset, options.overrides, [ENCODER])


def _similarity(options: CurateOptions, model: "ModelConfig", pool: "Pool") -> "list[Scorer]":
    """The scorer of similarity; none, and a note, where the encoder has no text tower and nobody asked for it.

    Raises:
        ValueError: it was asked for, and cannot be.
    """
    from jobs.common.encoders import chosen_precision
    from jobs.common.similarity import similarity_scorer

    try:
        return [similarity_scorer(model, chosen_precision(options.precision, pool), pool)]
    except ValueError as error:
        if options.columns:
            raise
        print(f"note: similarity is left out: {cli.describe(error)}")
        return []


def _report(results: "Sequence[Curated]") -> None:
    for result in results:
        manifest = result.manifest
        state = f"{result.made} of {len(manifest.of_shards)} shards scored now"
        values = ", ".join(f"{name} {count}" for name, count in manifest.values.items())
        print(f"{result.dataset}: {manifest.rows} samples by {manifest.id} ({state}): {values}")
    rows, failed = (sum(getattr(result.manifest, name) for result in results) for name in ("rows", "failed"))
    print(f"all: {rows} in = {rows - failed} scored + {failed} failed")
    lines = [result.failure for result in results if result.manifest.failed]
    if lines:
        raise cli.Failures("\n".join(lines))


main = cli.command(CurateOptions, run)

if __name__ == "__main__":
    cli.run(main)
