"""Converts raw datasets to WebDataset shards, verifies and traces them: `jobs/prepare.py --data ROOT --out SHARDS`."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common import cli

if TYPE_CHECKING:
    from pipelines.prepare.preprocess import Prepared
    from pipelines.prepare.staging import Source
    from pipelines.storage.shards import Manifest

DESCRIPTION = """Convert raw datasets (those of NExT-GPT, or your own with a catalog file) to WebDataset tar shards.
`prepare.py verify SHARDS` reads all shards and embeddings and reports what is damaged;
`prepare.py lineage SHARDS KEY_OR_ROW ...` tells which source row a sample came from, and which sample a row became."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares all datasets found or those named, verifies shards, or traces samples and rows."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["verify"]:
        _verify(argv[1:])
    elif argv[:1] == ["lineage"]:
        _lineage(argv[1:])
    else:
        _prepare(_arguments(argv))


def _arguments(argv: Sequence[str]) -> Namespace:
    parser = cli.parser(DESCRIPTION)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="ROOT",
        help="folders or URLs; a dataset is read from the first that has it",
    )
    parser.add_argument("--out", required=True, metavar="SHARDS", help="where the shards go, one folder per dataset")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="catalog names (all found in ROOT if omitted)")
    parser.add_argument("--catalog", metavar="YAML", help="your own catalog, merged over the built-in one")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="samples per shard")
    parser.add_argument(
        "--max-rejected", type=float, default=0.1, metavar="SHARE", help="fail if a larger share of rows is rejected"
    )
    parser.add_argument(
        "--retry-rejected", action="store_true", help="retry rejected rows, for example after a disk failure"
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="follow links in local media folders to files anywhere"
    )
    parser.add_argument("--media-policy", metavar="YAML", help="how media are stored; see pipelines/media/policy.py")
    parser.add_argument(
        "--media", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of it: image.short_side=256 ..."
    )
    return parser.parse_args(argv)


def _prepare(arguments: Namespace) -> None:
    sources, out = _sources(arguments), cli.new_folder(arguments.out)
    done, failures = list["Manifest"](), list[str]()
    for source in sources:
        try:
            done.append(_prepared(source, arguments))
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


def _prepared(source: "Source", arguments: Namespace) -> "Manifest":
    """Prepares a dataset, if anything is to be done, and prints what became of its rows.

    Raises:
        ValueError, OSError: it cannot be read or written, or too many of its rows are rejected.
    """
    from pipelines.prepare.ledger import TooManyRejected, check_rejected
    from pipelines.prepare.state import finished
    from pipelines.storage.files import remove_tree

    try:
        # A rerun with nothing to do needs no Ray.
        manifest = None if arguments.retry_rejected else finished(source)
        if manifest:
            remove_tree(source.work)  # a worker whose node had died may have written on
            check_rejected(manifest.dataset, manifest.rows, manifest.rejected, arguments.max_rejected)
            state = "  (was up to date)"
        else:
            cli.start_ray()
            from pipelines.prepare.preprocess import prepare

            prepared = prepare(source, arguments.max_rejected, arguments.retry_rejected)
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


def _sources(arguments: Namespace) -> "list[Source]":
    """The datasets to prepare, in the catalog's order."""
    from jobs.common.settings import load_media_policy
    from pipelines.media.folder import Links
    from pipelines.prepare.staging import Source
    from pipelines.sources.catalog import load_catalog
    from pipelines.storage.files import is_local

    mistakes = []
    if arguments.samples_per_shard < 1:
        mistakes.append(f"--samples-per-shard {arguments.samples_per_shard}: must be at least 1")
    if not 0 <= arguments.max_rejected <= 1:
        mistakes.append(f"--max-rejected {arguments.max_rejected:g}: must be between 0 and 1")
    try:
        policy = load_media_policy(arguments.media_policy and Path(arguments.media_policy), arguments.media)
    except cli.UsageError as error:
        mistakes.append(str(error))
    catalog = load_catalog(extra=[cli.existing_file(arguments.catalog)] if arguments.catalog else [])
    try:
        selected = catalog.select(arguments.datasets) if arguments.datasets else list(catalog.datasets.values())
    except ValueError as error:
        mistakes.append(f"--datasets: {error}")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))
    roots, out = [cli.existing_folder(root) for root in arguments.data], cli.new_folder(arguments.out)
    found = {name: (root, path) for root in reversed(roots) for name, path in catalog.find(root).items()}
    missing = [entry for entry in selected if entry.name not in found]
    where = ", ".join(arguments.data)
    if arguments.datasets and missing:
        expected = ", ".join(f"{entry.name} ({entry.paths[0]})" for entry in missing)
        raise FileNotFoundError(f"{where}: holds no {expected}")
    if not found:
        raise FileNotFoundError(f"{where}: holds no dataset of the catalog; it needs T-X_pair_data or IT_data")
    links = Links(roots=tuple(filter(is_local, roots)), follow=arguments.follow_links)
    return [
        Source(
            entry=entry,
            path=found[entry.name][1],
            media=catalog.media_folder(entry, *found[entry.name]),
            directory=out / entry.name,
            samples_per_shard=arguments.samples_per_shard,
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
    page = source.directory.parent / "reports" / f"{source.entry.name}.html"
    write_report(source.directory, page, figures if prepared.shards else None)


def _verify(argv: Sequence[str]) -> None:
    parser = cli.parser("Read all prepared shards and embeddings, and say which file and which sample is damaged.")
    parser.add_argument("shards", metavar="SHARDS", help="the --out of jobs/prepare.py")
    arguments = parser.parse_args(argv)

    from pipelines.inspect.verify import print_problems

    problems = print_problems(cli.existing_folder(arguments.shards))
    if problems:
        raise ValueError(f"{arguments.shards}: {problems} problem(s) found, listed above; run jobs/prepare.py again")


def _lineage(argv: Sequence[str]) -> None:
    parser = cli.parser("Say which source row a sample is, and which sample a source row became, or why none.")
    parser.add_argument("shards", metavar="SHARDS", help="the --out of jobs/prepare.py")
    parser.add_argument("names", nargs="+", metavar="KEY_OR_ROW", help="a sample's key, or a row such as cc3m.json#17")
    arguments = parser.parse_args(argv)

    from pipelines.inspect.lineage import print_origins

    unknown = print_origins(cli.existing_folder(arguments.shards), arguments.names)
    if unknown:
        raise ValueError(f"{arguments.shards}: {unknown} of {len(arguments.names)} found nowhere")


if __name__ == "__main__":
    cli.run(main)
