"""The whole way on one machine, prepare to reply: `jobs/quickstart.py [--data ROOT] [--out DIR]`."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import cli, embed, generate, prepare, train_stage

WORLD_SEED, WORLD_SIZE = 0, 16
PROMPT = "Show me a picture, a video and a sound of a red circle."


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the five commands one after the other, each as it would be typed."""
    parser = cli.parser("Run everything once, small, on this machine; without --data on a world the project draws.")
    parser.add_argument("--data", metavar="ROOT", help="a NExT-GPT data folder")
    parser.add_argument("--out", default="out/quickstart", metavar="DIR", help="where everything goes")
    parser.add_argument("--preset", default="tiny", help="the preset of all steps")
    arguments = parser.parse_args(argv)

    started = time.monotonic()
    out = cli.new_folder(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    data = cli.existing_folder(arguments.data) if arguments.data else _world(out / f"world-{WORLD_SEED}-{WORLD_SIZE}")
    shards, preset = str(out / "shards"), ["--preset", arguments.preset]
    times = {}
    times["prepare"] = _run("prepare", prepare.main, ["--data", str(data), "--out", shards, "--samples-per-shard", "8"])
    times["embed"] = _run("embed", embed.main, ["--shards", shards, *preset])
    init: list[str] = []
    for stage in ("1", "2", "3"):
        run = str(out / f"stage-{stage}")
        command = ["--stage", stage, "--shards", shards, "--out", run, *init, *preset, "--overwrite"]
        times[f"stage {stage}"] = _run("train_stage", train_stage.main, command)
        init = ["--init", run]
    command = ["--checkpoint", init[1], "--prompt", PROMPT, "--out", str(out / "reply")]
    times["generate"] = _run("generate", generate.main, [*command, "--require", *generate.MODALITIES])
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"\ndone in {time.monotonic() - started:.0f} s ({steps}). Where to look, below {out}:")
    print("  reply/         the answer: reply.json and its picture, video and sound")
    print("  stage-*/       checkpoints with model cards, log.jsonl, settings.json, trainable.json")
    print("  shards/        WebDataset tars, indexes, rejects.parquet and embeddings of each dataset")


def _world(root: Path) -> Path:
    from pipelines.world.dataset import write_world

    print(f"no --data: drawing a small world of scenes, clips and sounds into {root}")
    write_world(root, seed=WORLD_SEED, count=WORLD_SIZE)
    return root


def _run(name: str, command: Callable[[Sequence[str]], None], argv: list[str]) -> float:
    """Runs one command; returns its seconds."""
    started = time.monotonic()
    print(f"\n$ python jobs/{name}.py {shlex.join(argv)}", flush=True)
    command(argv)
    return time.monotonic() - started


if __name__ == "__main__":
    cli.run(main)
