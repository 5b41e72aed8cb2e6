"""Turns raw datasets into WebDataset shards, checks and explains them: `jobs/prepare.py --data ROOT --out SHARDS`."""

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

DESCRIPTION = """Turn raw datasets (those of NExT-GPT, or your own by a catalog file) into WebDataset tar shards.
`prepare.py verify SHARDS` reads all shards and embeddings and says what is damaged;
`prepare.py lineage SHARDS KEY_OR_ROW ...` says which source row a sample is, and which sample a row became."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares every dataset found, or the ones named; or verifies, or explains, what was prepared."""
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
        "--data", required=True, nargs="+", metavar="ROOT", help="folders or URLs; each dataset is taken from the first"
    )
    parser.add_argument("--out", required=True, metavar="SHARDS", help="where the shards go, a folder a dataset")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="catalog names; without it, all found in ROOT")
    parser.add_argument("--catalog", metavar="YAML", help="a catalog of your own, laid over the built-in one")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="samples in a shard")
    parser.add_argument(
        "--max-rejected", type=float, default=0.1, metavar="SHARE", help="fail above this share of rows"
    )
    parser.add_argument("--retry-rejected", action="store_true", help="try rejected rows again, as after a bad disk")
    parser.add_argument("--media-policy", metavar="YAML", help="how media are stored; see pipelines/media/policy.py")
    parser.add_argument("--media", nargs="+", default=[], metavar="KEY=VALUE", help="over it: image.short_side=256 ...")
    return parser.parse_args(argv)


def _prepare(arguments: Namespace) -> None:
    from pipelines.prepare.ledger import TooManyRejected, check_rejected
    from pipelines.prepare.state import finished
    from pipelines.storage.files import remove_tree

    sources, out = _sources(arguments), cli.new_folder(arguments.out)
    totals, failures = [0, 0, 0], dict[str, str]()
    for source in sources:
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
        except TooManyRejected as error:
            failures[source.entry.name] = str(error)
            continue
        rejected = _print_counts(manifest, state)
        totals = [totals[0] + manifest.rows, totals[1] + manifest.taken, totals[2] + rejected]
    left = f"; not finished: {', '.join(failures)}" if failures else ""
    print(f"all: {totals[0]} in = {totals[1]} out + {totals[2]} rejected; shards in {out}{left}")
    print(f"reports: {out / 'reports'}/<dataset>.html")
    if failures:
        raise cli.Failures("\n".join(failures.values()))


def _sources(arguments: Namespace) -> "list[Source]":
    """What is to be prepared, in the catalog's order."""
    from jobs.common.settings import load_media_policy
    from pipelines.prepare.staging import Source
    from pipelines.sources.catalog import load_catalog

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
    return [
        Source(
            entry=entry,
            path=found[entry.name][1],
            media=catalog.media_folder(entry, *found[entry.name]),
            directory=out / entry.name,
            samples_per_shard=arguments.samples_per_shard,
            policy=policy,
        )
        for entry in selected
        if entry.name in found
    ]


def _report(source: "Source", prepared: "Prepared") -> None:
    """Writes the dataset's page, beside the datasets' folders: it tells of this run, and is no part of the data."""
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


def _print_counts(manifest: "Manifest", state: str) -> int:
    rejected = sum(manifest.rejected.values())
    several = f": {manifest.captions} captions of {manifest.samples} samples" if manifest.captions else ""
    print(f"{manifest.dataset}: {manifest.rows} in = {manifest.taken} out + {rejected} rejected{several}{state}")
    for reason, count in manifest.rejected.items():
        print(f"  rejected {count}: {reason}")
    return rejected


if __name__ == "__main__":
    cli.run(main)
