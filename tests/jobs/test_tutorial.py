"""The tutorial: both languages say the same commands, which the jobs understand and which run as they stand."""

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.common import cli
from jobs.common.settings import load_model
from pipelines.world.dataset import write_world
from tests.conftest import ROOT, Cluster

TUTORIAL = ROOT / "jobs" / "tutorial"
PAGES = ("README.md", "README.zh.md")
LAB = "out/lab"  # where commands on the small world write; the others are for data and weights of one's own
OURS = ("jobs/", "model/", "pipelines/", "cluster/", "tests/")
TELL_MISTAKES = ("jobs/embed.py", "jobs/generate.py", "jobs/convert.py")  # by the options alone
SMALLER = {"count=100": "count=16", "--samples-per-shard 50": "--samples-per-shard 8", "--n 50": "--n 2"}


def page(name: str) -> str:
    return (TUTORIAL / name).read_text(encoding="utf-8")


def commands(name: str) -> list[list[str]]:
    """The words of each command in the fenced bash blocks of a page."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = commands("README.md")


class Parsed(Exception):
    """Ends a command where it would begin to work."""


def parsed(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The options of a command, parsed by its own parser, of which none is out of bounds or at odds; nothing runs."""
    parse, found, job = cli.parse, list[object](), importlib.import_module(f"jobs.{Path(words[1]).stem}")

    def stop(kind: type[object], argv: Sequence[str] | None) -> object:
        found.append(parse(kind, argv))
        cli.check(found[0], job._mistakes(found[0]) if words[1] in TELL_MISTAKES else ())
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse", stop)
        with pytest.raises(Parsed):
            job.main(list(words[2:]))
    return found[0]


def test_both_languages_have_the_same_commands() -> None:
    assert len(COMMANDS) > 20
    assert commands("README.zh.md") == COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_is_one_that_its_job_understands(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] == "python"
    if words[1] == "-c":
        compile(words[2], "-c", "exec")
        return
    assert (ROOT / words[1]).is_file()
    assert words[1].startswith("jobs/")
    options = parsed(words, monkeypatch)
    if preset := getattr(options, "preset", None):
        assert load_model(preset, getattr(options, "overrides", ()), []).preset == preset


def test_a_command_that_its_job_would_refuse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parsed(["python", "jobs/embed.py", "--shard-folder", "SHARDS"], monkeypatch)
    with pytest.raises(cli.UsageError, match="--captions and --out belong together"):
        parsed(["python", "jobs/embed.py", "--captions", "cc3m.json", "--modality", "image"], monkeypatch)
    with pytest.raises(cli.UsageError, match="--n 0: must be at least 1"):
        parsed(["python", "jobs/score.py", "--checkpoint", "RUN", "--n", "0"], monkeypatch)


def test_every_option_in_the_tables_and_the_text_is_an_option_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    names = {Path(words[1]).stem for words in COMMANDS if words[1] != "-c"}
    for name in names:
        with pytest.raises(SystemExit):
            importlib.import_module(f"jobs.{name}").main(["--help"])
    helped = capsys.readouterr().out
    known = set(re.findall(r"--[a-z][a-z-]*", helped))
    original = {"--model", "--save_path", "--log_path"}  # of its train.py
    for name in PAGES:
        said = set(re.findall(r"`[^`\n]*`", re.sub(r"```.*?```", "", page(name), flags=re.DOTALL)))
        options = {option for code in said for option in re.findall(r"--[a-z][a-z_-]*", code)}
        assert options
        assert options <= known | original


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page(name))
    relative = [link for link in links if "://" not in link]
    assert len(relative) >= 8
    for link in relative:
        path, _, heading = link.partition("#")
        assert (TUTORIAL / path).exists(), link
        if heading:
            assert heading in _anchors(TUTORIAL / path), link


def _anchors(file: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_file_of_ours_that_is_named_exists(name: str) -> None:
    named = [code for code in re.findall(r"`([^`\s]+)`", page(name)) if code.startswith(OURS)]
    assert len(named) > 20
    assert [code for code in named if not (ROOT / code).exists()] == []


def test_the_media_that_commands_show_are_those_of_the_world_that_the_first_one_draws(tmp_path: Path) -> None:
    assert COMMANDS[0][2] == (
        "from pathlib import Path; from pipelines.world.dataset import write_world; "
        f"write_world(Path('{LAB}/world'), seed=1, count=100)"
    )
    write_world(tmp_path / "world", seed=1, count=16)  # a larger world begins as a smaller one
    shown = {word for words in COMMANDS for word in words if word.startswith(f"{LAB}/world/") and "." in word}
    assert len(shown) == 3
    media = tmp_path / "world" / "T-X_pair_data"
    for line in (TUTORIAL / "turns.jsonl").read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        assert messages[-1]["role"] == "user"
        assert len(messages) > 2
        parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
        assert all((media / part["image"]).is_file() for part in parts if "image" in part)
    for word in shown:
        assert (tmp_path / word.removeprefix(f"{LAB}/")).is_file(), word
    captions = json.loads((media / "cc3m" / "cc3m.json").read_text())
    assert "small purple circle at the left" in captions[3]["caption"], "as the text says"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
@pytest.mark.timeout(3600)
def test_the_lab_runs_from_the_world_to_several_turns(cluster: Cluster, tmp_path: Path) -> None:
    said = {}
    for words in COMMANDS:
        if LAB not in " ".join(words) or "jobs/chat.py" in words:  # the server has tests of its own
            continue
        command = shlex.join(words[1:])
        for usual, small in SMALLER.items():
            command = command.replace(usual, small)
        if "jobs/train_stage.py" in words:
            command += " max_steps=4"
        done = cluster.run(*shlex.split(command.replace(LAB, str(tmp_path))), timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[" ".join(words[1:])] = done.stdout
    lab = tmp_path
    assert any("all: 336 in = 336 out + 0 rejected" in text for text in said.values())
    for stage in (1, 2, 3):
        assert list((lab / str(stage)).glob("checkpoint-000004/config.json"))
    assert {row["row"] for row in json.loads((lab / "3" / "scores.json").read_text())["rows"]} >= {"make_image"}
    assert (lab / "gallery.html").is_file()

    made = {
        case: [Path(name).suffix for name in json.loads((lab / case / "reply.json").read_text())["files"]]
        for case in ("scheduler", "joint", "case-1", "case-2", "case-3", "case-4")
    }
    assert made == {
        "scheduler": [".wav"],
        "joint": [".wav"],
        "case-1": [".wav"],
        "case-2": [".wav"],
        "case-3": [".png", ".mp4"],
        "case-4": [".png", ".mp4", ".wav"],
    }
    replies = [json.loads(line) for line in (lab / "turns" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 2
    assert (lab / "turns" / "rejects.jsonl").read_text() == ""
