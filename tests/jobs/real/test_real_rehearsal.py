"""The rehearsal of the real preset: what it runs, measures and says, and the small cut of it from start to end."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from jobs.common.cli import UsageError
from tests.benchmarks import suites
from tests.benchmarks.real import STEPS, rehearsal, vocabularies
from tests.benchmarks.real.budget import Budget, num_layers
from tests.benchmarks.real.hub import Hub
from tests.benchmarks.real.measure import Watch, measure
from tests.benchmarks.real.samples import cut_samples
from tests.benchmarks.real.steps import Amount, Step, all_steps, environment, same_tensors

ROOT = Path(__file__).resolve().parents[3]
AMOUNT = Amount(max_steps=2, settings=["workers=1"], media=["image"], denoising_steps=2)
# Takes memory, says so, and waits to be let go.
HOLD = "import sys; held = b'x' * {size}; print('held', flush=True); sys.stdin.read()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def layers_for(**given: float) -> int:
    budget = Budget(disk=given.get("disk"), memory=given.get("memory"), steps=STEPS)
    return num_layers(budget, layers=None, small=False)


def test_layers_are_cut_to_what_fits() -> None:
    assert layers_for() == 32
    assert layers_for(disk=100, memory=100) == 32
    assert 1 <= layers_for(disk=28) < layers_for(disk=30) < 32
    assert layers_for(disk=30, memory=22) == min(layers_for(disk=30), layers_for(memory=22))


def test_what_does_not_fit_is_said_with_what_it_takes() -> None:
    with pytest.raises(UsageError, match=r"--disk 10: 1 of the LLM's layers take 2\d\.\d GB"):
        layers_for(disk=10)
    with pytest.raises(UsageError, match=r"--memory 20: 32 of .* with chat; .* --only"):
        num_layers(Budget(disk=None, memory=20, steps=STEPS), layers=32, small=False)
    with pytest.raises(UsageError, match="--small: has a fixed size"):
        num_layers(Budget(disk=10, memory=None, steps=STEPS), layers=None, small=True)


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        suites.main(
            ["real", "--out", str(tmp_path / "out"), "--layers", "0", "--samples", "-1", "--base", "nextgpt_8b"]
        )

    lines = str(caught.value).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["--base", "--layers 0", "--samples -1"]
    assert not (tmp_path / "out").exists()


def test_commands_that_are_left_out_need_no_memory() -> None:
    training = Budget(disk=None, memory=20, steps=["stage-1", "stage-3"])
    assert num_layers(training, layers=None, small=False) > layers_for(memory=20)


def test_the_commands_are_those_of_a_user(tmp_path: Path) -> None:
    hub = Hub(root=tmp_path / "hub", layers=4)
    steps = {step.name: step for step in all_steps(hub, tmp_path / "work", AMOUNT)}

    assert tuple(steps) == STEPS
    for name in ("embed", "stage-1", "stage-2", "stage-3", "import"):
        command = list(steps[name].command)
        assert command[command.index("--preset") + 1] == "mine.yaml"
    assert steps["import"].command[-5] == "../hub/7b_tiva_v0-4-layers/pytorch_model.pt"
    assert hub.preset(tmp_path / "work")["llm"] == {"name": "../hub/vicuna-7b-v1.5-4-layers", "num_layers": 4}
    assert environment()["HF_HUB_OFFLINE"] == "1"


def test_the_memory_of_a_command_and_of_what_it_starts_is_seen() -> None:
    worker = python(HOLD.format(size=90_000_000))
    code = f"import subprocess; held = b'x' * 40_000_000; subprocess.run({worker!r})"
    with subprocess.Popen(python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        watch = Watch(process.pid)
        watch.start()
        watch.stop()

    assert 45e6 < watch.driver < 80e6
    assert 90e6 < watch.workers < 130e6
    assert watch.largest == watch.workers


def test_a_command_is_measured_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    found = measure(
        python("print('first'); print('last\\n'); exit(3)"), log, folder=tmp_path, environment=environment()
    )

    assert (found.status, found.last_line) == (3, "last")
    assert log.read_text().split() == ["first", "last"]


def test_a_command_ends_where_what_goes_on_beside_it_fails(tmp_path: Path) -> None:
    def refused(process: "subprocess.Popen[bytes]") -> None:
        raise OSError("the chat answered 500")

    waiting = python("import threading; threading.Event().wait()")
    found = measure(waiting, tmp_path / "a.log", folder=tmp_path, environment=environment(), meanwhile=refused)

    assert (found.status != 0, found.last_line) == (True, "the chat answered 500")


def test_what_needs_a_command_that_failed_is_not_run_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    def wrong() -> str:
        raise ValueError("a tensor is not as it was")

    steps = [
        Step(name="prepare", command=python("print('error: no disk'); exit(1)")),
        Step(name="embed", command=python(""), needs=["prepare"]),
        Step(name="stage-1", command=python(""), needs=["embed"]),
        Step(name="import", command=python("open('made/new', 'w').write(5 * 'x')"), makes=["made/*"]),
        Step(name="export", command=python(""), check=wrong),
        Step(name="chat", command=python(""), check=lambda: "all is well"),
    ]
    (tmp_path / "made" / "of an earlier run").mkdir(parents=True)

    rows = {row.name: row for row in rehearsal._run(steps, tmp_path, STEPS)}

    assert [name for name, row in rows.items() if row.failed] == ["prepare", "embed", "stage-1", "export"]
    assert rows["prepare"].note == "error: no disk"
    assert rows["stage-1"].note == "not run: embed failed"
    assert rows["import"].written == 5
    assert rehearsal._line(rows["chat"]).endswith("| 0: all is well |")
    assert rehearsal._line(rows["prepare"]).endswith("| 1: error: no disk |")


def test_a_few_samples_keep_all_rows_about_them(sample_root: Path, tmp_path: Path) -> None:
    cut_samples(sample_root, tmp_path / "data", 2)

    pairs = tmp_path / "data" / "T-X_pair_data"
    for dataset, media in (("cc3m", "images"), ("webvid", "videos"), ("audiocap", "audios")):
        counts = {path.stem: len(json.loads(path.read_text())) for path in (pairs / dataset).glob("*.json")}
        assert counts == {dataset: 2, f"{dataset}_comprehension": 2, f"{dataset}_generation": 2}
        assert len(list((pairs / dataset / media).iterdir())) == 2


def test_tensors_that_differ_are_named(tmp_path: Path) -> None:
    import torch

    one = {"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(2, dtype=torch.float16)}
    torch.save(one, tmp_path / "one")
    torch.save({**one, "b": torch.ones(2, dtype=torch.float16)}, tmp_path / "other")
    torch.save({"a": one["a"]}, tmp_path / "fewer")

    assert same_tensors(tmp_path / "one", tmp_path / "one") == "2 tensors are bit-identical"
    with pytest.raises(ValueError, match="b has changed"):
        same_tensors(tmp_path / "one", tmp_path / "other")
    with pytest.raises(ValueError, match="b is in only one of the files"):
        same_tensors(tmp_path / "one", tmp_path / "fewer")


def test_without_a_network_one_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vocabularies.CACHE, str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    for name in ("UV_OFFLINE", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(OSError, match="cannot be downloaded") as caught:
        vocabularies.fetch_vocabularies()

    assert "\n" not in str(caught.value)
    assert "mistral-common==1.13.1" in str(caught.value)


# What stands alone, and starts no Ray: weights in, a checkpoint, the file out again.
QUICK = ("import", "export")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "steps", [QUICK, pytest.param(STEPS, marks=[pytest.mark.slow, pytest.mark.ray])], ids=["quick", "all"]
)
def test_commands_work_on_the_small_cut(
    small_hub: Hub, sample_root: Path, tmp_path: Path, steps: Sequence[str]
) -> None:
    shutil.copytree(small_hub.root, tmp_path / "hub-small", copy_function=os.link)
    command = ["jobs/bench.py", "real", "--small", "--samples", "2", "--out", str(tmp_path), "--data", str(sample_root)]

    done = subprocess.run(
        [sys.executable, *command, "--only", *steps], cwd=ROOT, capture_output=True, text=True, timeout=1400
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:] if line.startswith("| ")]
    assert [row[0] for row in rows] == list(steps)
    assert {row[-1].split(":")[0] for row in rows} == {"0"}
    assert "writing" not in done.stderr, "all parts were there"
    assert "tensors are bit-identical" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(14_400)
def test_every_command_works_at_full_width(sample_root: Path, tmp_path: Path) -> None:
    disk, memory = shutil.disk_usage(tmp_path).free / 1e9, psutil.virtual_memory().available / 1e9
    room = ["--disk", f"{disk:.0f}", "--memory", f"{memory:.0f}"]
    try:
        suites.main(["real", *room, "--out", str(tmp_path), "--data", str(sample_root)])
    except UsageError as error:
        pytest.skip(str(error))
