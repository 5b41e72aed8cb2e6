"""Commands: what a person is told when something is wrong, and what their shell is told."""

import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from jobs.common import cli
from jobs.common.cli import Option, UsageError, describe, root_cause

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = (
    "prepare",
    "embed",
    "train_stage",
    "generate",
    "convert",
    "quickstart",
    "score",
    "gallery",
    "bootstrap",
    "recaption",
)


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user would, from the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ended(main: cli.Main, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """How a command run in this process ends: its exit code, and what it says on standard error."""
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err.splitlines()


def failing(error: BaseException) -> cli.Main:
    def main(argv: Sequence[str] | None = None) -> None:
        raise error

    return main


# --- The error behind an error ---------------------------------------------------------------------------------------


def test_an_error_of_our_own_is_its_own_cause() -> None:
    error = ValueError("a.json: no such key")
    assert root_cause(error) is error


@pytest.mark.ray
def test_the_error_of_a_ray_task_is_found(local_ray: None) -> None:
    import ray

    @ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise FileNotFoundError("a.json: no such file")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert describe(caught.value) != "a.json: no such file"
    assert type(root_cause(caught.value)) is FileNotFoundError
    assert describe(root_cause(caught.value)) == "a.json: no such file"


@pytest.mark.ray
def test_the_error_of_a_ray_data_step_is_found(local_ray: None) -> None:
    import ray.data

    def fail(row: dict[str, object]) -> dict[str, object]:
        raise ValueError("noting: gave embeddings that are not finite")

    with pytest.raises(Exception, match="not finite") as caught:
        ray.data.from_items([{"n": 1}]).map(fail).take_all()
    assert describe(root_cause(caught.value)) == "noting: gave embeddings that are not finite"


def test_the_error_of_a_training_worker_is_found() -> None:
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import WorkerGroupError

    inner = RayTaskError("work", "Traceback (most recent call last):\n...", ValueError("loss is not finite"))
    outer = WorkerGroupError("[Rank 1 Error Snippet]:\nmany\nlines", {1: inner.as_instanceof_cause()})
    assert describe(root_cause(outer)) == "loss is not finite"
    assert describe(root_cause(WorkerGroupError("rank 0", {0: ValueError("a reason")}))) == "a reason"


def test_errors_that_are_each_others_cause_end() -> None:
    from ray.exceptions import RayError

    first, second = RayError("first"), RayError("second")
    first.__cause__, second.__cause__ = second, first
    assert root_cause(first) in (first, second)


def test_the_error_of_the_training_controller_is_found() -> None:
    from ray.train.v2.api.exceptions import ControllerError

    assert describe(root_cause(ControllerError(ValueError("a reason")))) == "a reason"


def test_what_we_say_of_an_error_is_kept(tmp_path: Path) -> None:
    from pipelines.storage.files import read_json

    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert describe(root_cause(caught.value)).startswith(f"{tmp_path / 'a.json'}: not valid JSON")


# --- One line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json: no such key"), "a.json: no such key"),
        (ValueError("first line\nsecond line"), "first line"),
        (FileNotFoundError(2, "No such file or directory", "/a"), "No such file or directory: '/a'"),
        (KeyError("image"), "KeyError: 'image'"),
        (RuntimeError("Traceback\n  more\nout of memory\n"), "RuntimeError: out of memory"),
        (ZeroDivisionError(), "ZeroDivisionError: ZeroDivisionError"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_told_in_one_line(error: BaseException, line: str) -> None:
    assert describe(error) == line


# --- Exit codes ------------------------------------------------------------------------------------------------------


def test_a_command_that_fails_ends_with_1_and_its_reason_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(failing(OSError("disk: full")), capsys) == (1, ["error: disk: full"])


def test_all_mistakes_of_usage_are_told_and_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(failing(UsageError("a: wrong\nb: wrong")), capsys) == (2, ["error: a: wrong", "error: b: wrong"])


def test_an_error_nobody_foresaw_shows_where_it_was_with_the_reason_last(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended(failing(KeyError("image")), capsys)
    assert (code, lines[0], lines[-1]) == (1, "Traceback (most recent call last):", "error: KeyError: 'image'")


def test_an_interrupted_command_ends_as_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(failing(KeyboardInterrupt()), capsys) == (130, ["error: interrupted"])


@pytest.mark.parametrize("error", [None, ImportError("half a module")])
def test_a_terminated_command_says_so_whatever_a_library_makes_of_the_signal(
    error: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Sequence[str] | None) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if error is None:
                raise
            raise error from None

    before = signal.getsignal(signal.SIGTERM)
    assert ended(main, capsys) == (143, ["error: terminated"])
    assert signal.getsignal(signal.SIGTERM) == before
    assert ended(failing(OSError("disk: full")), capsys) == (1, ["error: disk: full"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"jobs.{name}").main
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_from_the_checkout(name: str) -> None:
    result = command(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {name}.py")
    beside = {"score": "--checkpoint", "recaption": "--shards"}  # what they write lies beside what they read
    assert f"  {beside.get(name, '--out')} " in result.stdout


def test_a_command_without_what_it_needs_says_what_that_is() -> None:
    result = command("prepare")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("the following arguments are required: --data, --out")


def test_an_unknown_dataset_is_told_with_the_known_ones(tmp_path: Path) -> None:
    result = command("prepare", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--datasets", "cc3n")
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith("error: --datasets: not in the catalog: cc3n (did you mean cc3m")
    assert "Known: alpaca_instruction, " in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    result = command("prepare", "--data", str(absent), "--out", str(tmp_path / "out"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [f"error: {absent}: no such folder"]


# --- Options declared as a class -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OvenOptions:
    """How hot, and how long."""

    degrees: Annotated[int, Option("degrees", "C", least=50, most=300)] = 180
    minutes: Annotated[float | None, Option("minutes", above=0)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeOptions:
    """Bake a cake."""

    out: Annotated[str, Option("where it goes", "DIR")]
    oven: OvenOptions
    cake: Annotated[Literal["apple", "plum"], Option("which cake")] = "plum"
    layers: Annotated[Literal[1, 2], Option("how many layers")] = 1
    eggs: Annotated[int, Option("eggs", least=0)] = 3
    fruit: Annotated[tuple[str, ...], Option("fruit", choices=("apple", "plum", "pear"))] = ("plum",)
    note: Annotated[tuple[str, ...], Option("a note", several="append")] = ()
    vegan: Annotated[bool, Option("without eggs")] = False
    book: Annotated[str | None, Option("a recipe of a book", flag="--from", exclusive=True)] = None
    card: Annotated[str | None, Option("a recipe on a card", exclusive=True)] = None
    overrides: Annotated[tuple[str, ...], cli.overrides("sugar=2")] = ()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.parse(BakeOptions, arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


def test_options_that_are_not_given_have_the_defaults_of_their_fields() -> None:
    options = cli.parse(BakeOptions, ["--out", "table", "--card", "c"])
    assert options == BakeOptions(out="table", oven=OvenOptions(), card="c")
    with pytest.raises(FrozenInstanceError):
        options.eggs = 4  # type: ignore[misc]


def test_options_have_the_types_of_their_fields_and_embedded_ones_stay_together() -> None:
    line = (
        "--out t --degrees 200 --minutes 2 --layers 2 --fruit pear apple --note a --note b --vegan --from b sugar=1 x=y"
    )
    assert cli.parse(BakeOptions, line.split()) == BakeOptions(
        out="t",
        oven=OvenOptions(degrees=200, minutes=2.0),
        layers=2,
        fruit=("pear", "apple"),
        note=("a", "b"),
        vegan=True,
        book="b",
        overrides=("sugar=1", "x=y"),
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--card c", "the following arguments are required: --out"),
        ("--out t", "one of the arguments --from --card is required"),
        ("--out t --card c --from b", "argument --from: not allowed with argument --card"),
        ("--out t --card c --eggs many", "argument --eggs: invalid int value: 'many'"),
        ("--out t --card c --layers 3", "argument --layers: invalid choice: 3"),
        ("--out t --card c --fruit kiwi", "argument --fruit: invalid choice: 'kiwi'"),
        ("--out t --card c --sugar 1", "unrecognized arguments: --sugar"),
    ],
)
def test_what_cannot_be_parsed_is_named(line: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *line.split()).startswith(reason)


def test_numbers_out_of_bounds_are_told_with_all_other_mistakes() -> None:
    line = "--out t --card c --eggs -1 --degrees 30 --minutes nan"
    with pytest.raises(UsageError) as caught:
        cli.check(cli.parse(BakeOptions, line.split()), ["--card: is too small"])
    assert str(caught.value).splitlines() == [
        "--card: is too small",
        "--degrees 30: must be 50 to 300",
        "--minutes nan: must be more than 0",
        "--eggs -1: must be at least 0",
    ]


def test_help_shows_what_fields_say_and_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(BakeOptions, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(--from BOOK | --card CARD)" in shown
    assert " Bake a cake. " in shown
    assert "--degrees C degrees (default: 180)" in shown
    assert "--cake {apple,plum} which cake (default: plum)" in shown
    assert "key=value settings, such as sugar=2" in shown


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_paths_are_checked_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert cli.existing_folder("folder") == cli.new_folder("folder") == (tmp_path / "folder").resolve()
    assert cli.existing_file("file") == (tmp_path / "file").resolve()
    assert cli.new_folder("new/deep").is_absolute()
    for check, name in ((cli.existing_folder, "file"), (cli.existing_file, "folder")):
        with pytest.raises(FileNotFoundError, match=f"^{name}: no such"):
            check(name)
    with pytest.raises(FileExistsError, match=r"^file: is a file; give a folder$"):
        cli.new_folder("file")


def test_a_call_of_ray_train_that_took_too_long_is_no_news_but_one_that_failed_is() -> None:
    from ray.exceptions import GetTimeoutError

    for name in cli._IMPATIENT:
        logger = logging.getLogger(name)
        for error, is_told in ((GetTimeoutError("late"), False), (RuntimeError("broken"), True)):
            failed = (type(error), error, None)
            record = logger.makeRecord(name, logging.ERROR, "", 0, "a call failed", (), failed)
            assert bool(logger.filter(record)) is is_told


@pytest.mark.parametrize(
    ("actor", "line", "is_shown"),
    [
        ("PlacementGroupCleaner", "Exception in thread PlacementGroupCleanerMonitor:", False),
        (
            "Trainer",
            "x core_worker.cc:2465: Actor with class name: 'A' has constructor arguments in the object store",
            False,
        ),
        ("Trainer", "Exception in thread Reader:", True),
        (None, "stage 1 step 1/10", True),
    ],
)
def test_what_a_worker_prints_is_shown_unless_nobody_can_act_on_it(
    actor: str | None, line: str, is_shown: bool
) -> None:
    log = {"actor_name": actor, "lines": [line]}
    cli._leave_out_what_is_none(log)
    assert log["lines"] == ([line] if is_shown else [])
