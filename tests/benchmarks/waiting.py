"""The time training waits for data, in a real run of stage 3: Ray Data reads, Ray Train hands over, a thread encodes.

Stage 3 reads the most: features and caption embeddings of all three modalities.
"""

from statistics import mean

from jobs import train_stage
from pipelines.storage.files import read_json_lines
from tests.benchmarks import Row, say
from tests.benchmarks.training import Ground

STEPS = 60
FEWEST = 4
TARGET = 0.03


def run(scale: float, ground: Ground) -> list[Row]:
    """Seconds per step of data wait and of computing, from the log; without the first step, a start-up cost."""
    steps = max(FEWEST, round(STEPS * scale))
    out = ground.folder / "waiting"
    command = [
        "--stage",
        "3",
        "--preset",
        "tiny",
        "--shards",
        str(ground.shards),
        "--out",
        str(out),
        "--overwrite",
        *ground.overrides,
    ]
    say(f"waiting: training {steps} steps of stage 3")
    train_stage.main([*command, f"max_steps={steps}", "validation.generate=false"])
    rows = [row for row in read_json_lines(out / "log.jsonl") if "step_seconds" in row][1:]
    waits, computes = ([1000 * row[name] for row in rows] for name in ("data_seconds", "step_seconds"))
    return [
        Row(
            name="data wait / step",
            ours=mean(waits),
            peer=mean(computes),
            ratio=sum(waits) / (sum(waits) + sum(computes)),
            target=TARGET,
            unit="ms a step",
            at_most=True,
            note=f"{len(rows)} steps of stage 3 after the first, from the run's log; the ratio is the share of "
            f"both; longest wait {max(waits):.3g} ms",
        )
    ]
