"""Shards that several tests train on."""

from pathlib import Path

import pytest

from tests.conftest import Cluster


@pytest.fixture(scope="session")
def prepared_logs() -> dict[str, str]:
    """What prepare and embed printed, by command."""
    return {}


@pytest.fixture(scope="session")
def embedded(
    cluster: Cluster, sample_root: Path, tmp_path_factory: pytest.TempPathFactory, prepared_logs: dict[str, str]
) -> Path:
    """NExT-GPT's sample as prepared and embedded shards, by jobs submitted to the cluster."""
    shards = tmp_path_factory.mktemp("embedded") / "shards"
    commands = {
        "prepare": ["--data", str(sample_root), "--out", str(shards), "--samples-per-shard", "5"],
        "embed": ["--shards", str(shards), "--preset", "tiny"],
    }
    for name, arguments in commands.items():
        done = cluster.submit("python", f"jobs/{name}.py", *arguments)
        prepared_logs[name] = done.stdout + done.stderr
        assert done.returncode == 0, prepared_logs[name]
    return shards
