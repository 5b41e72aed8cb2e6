"""NExT-GPT's sample prepared, embedded and trained on, once a session: tests look at it and go on from it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.storage.files import read_json_lines
from tests.conftest import Cluster

# The fewest with which losses fall, and a run can be stopped twice (test_resume.py).
EPOCHS = {1: 6, 2: 6, 3: 4}
HELD_OUT = {1: 0, 2: 0, 3: 0.15}
ZERO = {1: 1, 2: 2, 3: 2}


@dataclass(frozen=True)
class Way:
    """What the commands left behind."""

    root: Path
    logs: dict[str, str]

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def run(self, stage: int) -> Path:
        return self.root / f"stage-{stage}"

    def steps(self, stage: int) -> list[dict[str, float]]:
        return steps_of(self.run(stage))


def steps_of(run: Path) -> list[dict[str, float]]:
    return [row for row in read_json_lines(run / "log.jsonl") if "loss" in row]


def stage_command(way_root: Path, stage: int, out: Path, *settings: str) -> list[str]:
    """The arguments of `jobs/train_stage.py`; settings may be options too."""
    data = ["--stage", str(stage), "--shards", str(way_root / "shards"), "--preset", "tiny", "--out", str(out)]
    init = ["--init", str(way_root / f"stage-{stage - 1}")] if stage > 1 else []
    own = [f"epochs={EPOCHS[stage]}", f"validation.fraction={HELD_OUT[stage]}", f"zero={ZERO[stage]}"]
    return [*data, *init, *own, "workers=2", "log_samples=true", *settings]


@pytest.fixture(scope="session")
def way(cluster: Cluster, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """All that the main job does, by jobs submitted to the cluster."""
    root = tmp_path_factory.mktemp("way")
    shards = root / "shards"
    commands = {
        "prepare": ["prepare.py", "--data", str(sample_root), "--out", str(shards), "--samples-per-shard", "5"],
        "embed": ["embed.py", "--shards", str(shards), "--preset", "tiny"],
        **{f"stage-{n}": ["train_stage.py", *stage_command(root, n, root / f"stage-{n}")] for n in (1, 2, 3)},
        "generate": [
            *["generate.py", "--checkpoint", str(root / "stage-3"), "--out", str(root / "reply")],
            *["--prompt", "Show a dog.", "--require", "image", "video", "audio", "--steps", "2"],
            *["--image", str(sample_root / "T-X_pair_data/cc3m/images/001315438.jpg")],
        ],
    }
    logs: dict[str, str] = {}
    for name, (script, *arguments) in commands.items():
        done = cluster.submit("python", f"jobs/{script}", *arguments)
        logs[name] = done.stdout + done.stderr
        assert done.returncode == 0, logs[name]
    return Way(root=root, logs=logs)
