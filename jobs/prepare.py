"""Turns a NExT-GPT data folder into WebDataset shards: `jobs/prepare.py --data ROOT --out SHARDS`."""

from collections.abc import Sequence

from jobs import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares every catalog dataset found below the data folder, or the ones named."""
    parser = cli.parser("Turn a NExT-GPT data folder (T-X_pair_data, IT_data) into WebDataset tar shards.")
    parser.add_argument("--data", required=True, metavar="ROOT", help="the folder that holds T-X_pair_data or IT_data")
    parser.add_argument("--out", required=True, metavar="SHARDS", help="where the shards go, a folder a dataset")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="catalog names; without it, all found in ROOT")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="samples in a shard")
    arguments = parser.parse_args(argv)

    from pipelines.catalog import load_catalog
    from pipelines.preprocess import Source, prepare

    catalog = load_catalog()
    mistakes = []
    if arguments.samples_per_shard < 1:
        mistakes.append(f"--samples-per-shard {arguments.samples_per_shard}: must be at least 1")
    try:
        selected = catalog.select(arguments.datasets) if arguments.datasets else list(catalog.datasets.values())
    except ValueError as error:
        mistakes.append(f"--datasets: {error}")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))
    root = cli.existing_folder(arguments.data)
    out = cli.new_folder(arguments.out)
    found = catalog.find(root)
    missing = [entry for entry in selected if entry.name not in found]
    if arguments.datasets and missing:
        expected = ", ".join(f"{entry.name} ({entry.paths[0]})" for entry in missing)
        raise FileNotFoundError(f"{root}: holds no {expected}")
    if not found:
        raise FileNotFoundError(f"{root}: holds no dataset of the catalog; it needs T-X_pair_data or IT_data")

    cli.start_ray()
    totals = [0, 0, 0]
    for entry in selected:
        if entry.name not in found:
            continue
        source = Source(
            entry=entry,
            path=found[entry.name],
            media=catalog.media_folder(entry, root),
            directory=out / entry.name,
            samples_per_shard=arguments.samples_per_shard,
        )
        manifest, made = prepare(source)
        rejected = sum(manifest.rejected.values())
        totals = [totals[0] + manifest.rows, totals[1] + manifest.samples, totals[2] + rejected]
        state = "" if made else "  (was up to date)"
        print(f"{entry.name}: {manifest.rows} in = {manifest.samples} out + {rejected} rejected{state}")
        for reason, count in manifest.rejected.items():
            print(f"  rejected {count}: {reason}")
    print(f"all: {totals[0]} in = {totals[1]} out + {totals[2]} rejected; shards in {out}")


if __name__ == "__main__":
    cli.run(main)
