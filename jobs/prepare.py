"""Converts raw datasets to WebDataset shards, verifies and traces them: `jobs/prepare.py --data ROOT --out SHARDS`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from jobs.common import cli
from jobs.common.cli import Option

if TYPE_CHECKING:
    from pipelines.prepare.preprocess import Prepared
    from pipelines.prepare.staging import Source
    from pipelines.storage.shards import Manifest

_Shards = Annotated[str, Option("the --out of jobs/prepare.py", "SHARDS", positional=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Convert raw datasets (those of NExT-GPT, or your own with a catalog file) to WebDataset tar shards.
    `prepare.py verify SHARDS` reads all shards and embeddings and reports what is damaged;
    `prepare.py lineage SHARDS KEY_OR_ROW ...` tells which source row a sample came from, and which sample a row became;
    `prepare.py report SHARDS` writes the pages of datasets anew, with columns of jobs/curate.py that were added since.
    """

    data: Annotated[tuple[str, ...], Option("folders or URLs; a dataset is read from the first that has it", "ROOT")]
    out: Annotated[str, Option("where the shards go, one folder per dataset", "SHARDS")]
    datasets: Annotated[tuple[str, ...] | None, Option("catalog names (all found in ROOT if omitted)", "NAME")] = None
    catalog: Annotated[str | None, Option("your own catalog, merged over the built-in one", "YAML")] = None
    samples_per_shard: Annotated[int, Option("samples per shard", "N", least=1)] = 1000
    max_rejected: Annotated[float, Option("fail if a larger share of rows is rejected", "SHARE", least=0, most=1)] = 0.1
    retry_rejected: Annotated[bool, Option("retry rejected rows, for example after a disk failure")] = False
    follow_links: Annotated[bool, Option("follow links in local media folders to files anywhere")] = False
    media_policy: Annotated[str | None, Option("how media are stored; see pipelines/media/policy.py", "YAML")] = None
    media: Annotated[tuple[str, ...], Option("overrides of it: image.short_side=256 ...", "KEY=VALUE")] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Read all prepared shards and embeddings, and say which file and which sample is damaged."""

    shards: _Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageOptions:
    """Say which source row a sample is, and which sample a source row became, or why none."""

    shards: _Shards
    names: Annotated[
        tuple[str, ...], Option("a sample's key, or a row such as cc3m.json#17", "KEY_OR_ROW", positional=True)
    ]
    where: Annotated[
        str | None, Option("also say whether this condition on jobs/curate.py's columns selects it", "CONDITION")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Write the pages of datasets, with the columns of jobs/curate.py, and what a condition on these would drop."""

    shards: _Shards
    datasets: Annotated[tuple[str, ...] | None, Option("prepared datasets (all if omitted)", "NAME")] = None
    where: Annotated[str | None, Option("show what this condition on jobs/curate.py's columns drops", "CONDITION")] = (
        None
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares all datasets found or those named, verifies shards, traces samples and rows, or writes pages."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["verify"]:
        _verify(cli.parse(VerifyOptions, argv[1:]))
    elif argv[:1] == ["lineage"]:
        _lineage(cli.parse(LineageOptions, argv[1:]))
    elif argv[:1] == ["report"]:
        _write_reports(cli.parse(ReportOptions, argv[1:]))
    else:
        run(cli.parse(PrepareOptions, argv))


def run(options: PrepareOptions) -> None:
    """Prepares all datasets found or those named, and prints what became of their rows."""
    sources, out = _sources(options), cli.new_folder(options.out)
    done, failures = list["Manifest"](), list[str]()
    for source in sources:
        try:
            done.append(_prepared(source, options))
        except (ValueError, OSError) as error:  # Of this source alone: the others are prepared.
            cause = cli.root_cause(error)
            failures.append(_naming(source.entry.name, cli.describe(cause)))
            if isinstance(cause, OSError) and str(cause.filename or "").startswith(str(out)):
                break  # What cannot be written here cannot be written for the others.
    finished = {manifest.dataset for manifest in done}
    unfinished = ", ".join(source.entry.name for source in sources if source.entry.name not in finished)
    rows, taken = sum(manifest.rows for manifest in done), sum(manifest.taken for manifest in done)
    left = f"; not finished: {unfinished}" if unfinished else ""
    print(f"all: {rows} in = {taken} out + {rows - taken} rejected; shards in {out}{left}")
    print(f"reports: {out / 'reports'}/<dataset>.html")
    if failures:
        raise cli.Failures("\n".join([*failures, *([f"not finished: {unfinished}"] if "," in unfinished else [])]))


def _prepared(source: "Source", options: PrepareOptions) -> "Manifest":
    """Prepares a dataset, if anything is to be done, and prints what became of its rows.

    Raises:
        ValueError, OSError: it cannot be read or written, or too many of its rows are rejected.
    """
    from pipelines.prepare.ledger import TooManyRejected, check_rejected
    from pipelines.prepare.state import finished
    from pipelines.storage.files import remove_tree

    try:
        # A rerun with nothing to do needs no Ray.
        manifest = None if options.retry_rejected else finished(source)
        if manifest:
            remove_tree(source.work)  # a worker whose node had died may have written on
            check_rejected(manifest.dataset, manifest.rows, manifest.rejected, options.max_rejected)
            state = "  (was up to date)"
        else:
            cli.start_ray()
            from pipelines.prepare.preprocess import prepare

            prepared = prepare(source, options.max_rejected, options.retry_rejected)
            _report(source, prepared)
            manifest, state = prepared.manifest, f"  ({prepared.shards} shards written)"
    except TooManyRejected:
        print(f"{source.entry.name}: not finished")
        _print_rejected(source.directory)
        raise
    rows, taken = manifest.rows, manifest.taken
    several = f": {manifest.captions} captions of {manifest.samples} samples" if manifest.captions else ""
    print(f"{manifest.dataset}: {rows} in = {taken} out + {rows - taken} rejected{several}{state}")
    _print_rejected(source.directory)
    return manifest


def _naming(dataset: str, message: str) -> str:
    return message if message.startswith(f"{dataset}: ") else f"{dataset}: {message}"


def _print_rejected(directory: Path) -> None:
    """Prints for each reason how many rows were rejected, one of them, and what can be done."""
    from pipelines.prepare.ledger import accounts, advice

    for category, account in accounts(directory).items():
        print(f"  rejected {account.count}: {category}")
        print(f"    such as {account.example.source}: {account.example.reason}")
        if what := advice(account.example.reason):
            print(f"    what can be done: {what}")


def _sources(options: PrepareOptions) -> "list[Source]":
    """The datasets to prepare, in the catalog's order."""
    from jobs.common.settings import load_media_policy
    from pipelines.media.folder import Links
    from pipelines.prepare.staging import Source
    from pipelines.sources.catalog import load_catalog
    from pipelines.storage.files import is_local

    mistakes = list[str]()
    try:
        policy = load_media_policy(Path(options.media_policy) if options.media_policy else None, options.media)
    except cli.UsageError as error:
        mistakes.append(str(error))
    catalog = load_catalog(extra=[cli.existing_file(options.catalog)] if options.catalog else [])
    try:
        selected = catalog.select(options.datasets) if options.datasets else list(catalog.datasets.values())
    except ValueError as error:
        mistakes.append(f"--datasets: {error}")
    cli.check(options, mistakes)
    roots, out = [cli.existing_folder(root) for root in options.data], cli.new_folder(options.out)
    found = {name: (root, path) for root in reversed(roots) for name, path in catalog.find(root).items()}
    missing = [entry for entry in selected if entry.name not in found]
    where = ", ".join(options.data)
    if options.datasets and missing:
        expected = ", ".join(f"{entry.name} ({entry.paths[0]})" for entry in missing)
        raise FileNotFoundError(f"{where}: holds no {expected}")
    if not found:
        raise FileNotFoundError(f"{where}: holds no dataset of the catalog; it needs T-X_pair_data or IT_data")
    links = Links(roots=tuple(filter(is_local, roots)), follow=options.follow_links)
    return [
        Source(
            entry=entry,
            path=found[entry.name][1],
            media=catalog.media_folder(entry, *found[entry.name]),
            directory=out / entry.name,
            samples_per_shard=options.samples_per_shard,
            policy=policy,
            links=links,
        )
        for entry in selected
        if entry.name in found
    ]


def _report(source: "Source", prepared: "Prepared") -> None:
    """Writes the dataset's report beside the dataset folders: it describes this run and is not part of the data."""
    from pipelines.inspect.report import RunFigures, write_report

    figures = RunFigures(rows=prepared.rows, seconds=prepared.seconds, bytes=prepared.bytes)
    write_report(source.directory, _page(source.directory), figures if prepared.shards else None)


def _page(dataset: Path) -> Path:
    return dataset.parent / "reports" / f"{dataset.name}.html"


def _write_reports(options: ReportOptions) -> None:
    """Writes the page of each dataset; where a condition does not fit one, the others are written.

    Raises:
        UsageError: a dataset is not there.
        Failures: a condition does not fit, one line for each dataset.
    """
    from pipelines.inspect.report import write_report

    faults = list[str]()
    for directory in cli.prepared_datasets(options.shards, options.datasets):
        try:
            write_report(directory, _page(directory), where=options.where)
            print(f"report: {_page(directory)}")
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise cli.Failures("\n".join(faults))


def _verify(options: VerifyOptions) -> None:
    from pipelines.inspect.verify import print_problems

    problems = print_problems(cli.existing_folder(options.shards))
    if problems:
        raise ValueError(f"{options.shards}: {problems} problem(s) found, listed above; run jobs/prepare.py again")


def _lineage(options: LineageOptions) -> None:
    from pipelines.inspect.lineage import print_origins

    unknown = print_origins(cli.existing_folder(options.shards), options.names, options.where)
    if unknown:
        raise ValueError(f"{options.shards}: {unknown} of {len(options.names)} found nowhere")


if __name__ == "__main__":
    cli.run(main)
