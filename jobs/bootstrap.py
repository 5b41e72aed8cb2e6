"""Trains the foundations of the preset `world`: `jobs/bootstrap.py --out DIR [--parts PART ...]`.

All training data are drawn from the synthetic world, and an interrupted command resumes where it stopped.
`DIR/manifest.json` records the files, the command and the scores of each part. To ship the parts, copy their folders
and the manifest into model/foundations.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from model.parts.builtin import PARTS
from pipelines.storage.files import read_json, write_json
from pipelines.storage.shards import hash_file

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapOptions:
    """Train the small encoder, LLM and decoders that the preset `world` ships with."""

    out: Annotated[str, Option("where the trained parts go", "DIR")] = "out/foundations"
    parts: Annotated[tuple[str, ...], Option("train only these", choices=PARTS)] = PARTS
    scale: Annotated[float, Option("factor for the number of steps; use less than 1 for a trial", above=0)] = 1.0
    threads: Annotated[int, Option("CPU threads; 0 uses all", "N")] = 0


def run(options: BootstrapOptions) -> None:
    """Trains and scores the parts one after another, each in its own folder."""
    cli.check(options)

    import torch

    from jobs.foundations.foundation_scores import score
    from jobs.foundations.recipes import TRAINERS
    from model.parts.library_logs import quiet_libraries
    from pipelines.world.bank import SEED

    if options.threads:
        torch.set_num_threads(options.threads)
    out = Path(cli.new_folder(options.out))
    for part in options.parts:
        with quiet_libraries():
            TRAINERS[part](out, options.scale)
        scores = score(part, out / part)
        command = f"python jobs/bootstrap.py --parts {part} --scale {options.scale:g}"
        _note(out, part, {"command": command, "seed": SEED, "files": _files(out / part), "scores": scores})
        print(f"{part}: {json.dumps(scores)}", flush=True)


def _files(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
        }
        for path in files
    }


def _note(out: Path, part: str, entry: dict[str, Any]) -> None:
    """Adds a part to the manifest; the entries of other parts stay."""
    path = out / MANIFEST
    parts = read_json(path)["parts"] if path.is_file() else {}
    parts[part] = entry
    total = sum(file["bytes"] for made in parts.values() for file in made["files"].values())
    write_json(path, {"bytes": total, "parts": dict(sorted(parts.items()))})


main = cli.command(BootstrapOptions, run)

if __name__ == "__main__":
    cli.run(main)
