"""A self-contained page about trained runs: scores, conversations, failures and learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.inspect.curves import Panel, panels
from pipelines.inspect.exhibits import playable
from pipelines.inspect.histogram import number
from pipelines.inspect.report import duration
from pipelines.inspect.run_examples import RunExample, choose, read_examples
from pipelines.inspect.verdicts import verdict
from pipelines.storage.files import read_json, read_json_lines, write_text

BUDGET = 5 * 10**6  # characters of media in a page
MOST_RIGHT, MOST_WRONG = 13, 9  # conversations in a page


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """A training run, read from its files; `scores` and `settings` are empty if missing."""

    name: str
    title: str
    scores: dict[str, Any]
    settings: dict[str, Any]
    examples: list[RunExample]
    panels: list[Panel]
    steps: int
    seconds: float
    samples_per_second: float | None


def write_gallery(runs: Sequence[Path], out: Path) -> None:
    """Writes the page on runs, in the order of their stages; what was answered is shown of the last that was scored.

    A run is a folder with `log.jsonl`, `settings.json`, and once it is scored `scores.json` and `examples/`.

    Raises:
        ValueError: the runs hold none of these, or a file is not what it should be.
    """
    write_text(out, render([read_run(run) for run in runs]))


def read_run(folder: Path) -> ShownRun:
    """Reads the files of a run, as far as they exist."""
    rows = read_json_lines(folder / "log.jsonl")
    scores = read_json(folder / "scores.json") if (folder / "scores.json").is_file() else {}
    effective = read_json(folder / "settings.json") if (folder / "settings.json").is_file() else {}
    if not rows and not scores:
        raise ValueError(f"{folder}: neither log.jsonl nor scores.json; give the --out of jobs/train_stage.py")
    trained = [row for row in rows if "step_seconds" in row]
    settings = effective.get("settings", {})
    stage = settings.get("stage")
    title = f"stage {stage}" if stage else folder.name
    return ShownRun(
        name=folder.name,
        title=f"{title}, shuffled" if settings.get("shuffle_items") else title,
        scores=scores,
        settings={**settings, "hash": effective.get("hash", "")} if settings else {},
        examples=read_examples(folder),
        panels=panels(rows),
        steps=max((row["step"] for row in rows), default=0),
        seconds=sum(row["step_seconds"] + row.get("data_seconds", 0.0) for row in trained),
        samples_per_second=next(
            (row["samples_per_second"] for row in reversed(trained) if "samples_per_second" in row), None
        ),
    )


def percent(share: float) -> str:
    """A share in per cent: 97.5 %, or 100 % without a decimal."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def render(runs: Sequence[ShownRun]) -> str:
    """The page as HTML."""
    shown = next((run for run in reversed(runs) if run.examples), None)
    examples = shown.examples if shown else []
    scored = [run for run in reversed(runs) if run.scores]
    display = Display(budget=BUDGET)
    right = display.of(choose(examples, MOST_RIGHT, right=True))
    wrong = display.of(choose(examples, MOST_WRONG, right=False))
    verdicts = [verdict(row) for run in scored for row in run.scores["rows"]]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "duration": duration, "percent": percent}
    template = environment.from_string(resources.files(__package__).joinpath("gallery.html.j2").read_text("utf-8"))
    return template.render(
        runs=runs,
        scored=scored,
        shown=shown,
        right=right,
        wrong=wrong,
        num_right=sum(example.right for example in examples),
        num_wrong=sum(not example.right for example in examples),
        verdict=verdict,
        num_met=sum(one.kind == "met" for one in verdicts),
        num_missed=sum(one.kind == "missed" for one in verdicts),
        titles={row["row"]: row["title"] for run in scored for row in run.scores["rows"]},
    )


@dataclass(kw_only=True)
class Display:
    """Puts examples into a page until the media are `budget` characters; those that do not fit are left out."""

    budget: int

    def of(self, examples: Sequence[RunExample]) -> list[tuple[RunExample, list[Any]]]:
        """Examples with their turns as (role, texts and exhibits)."""
        placed = []
        for example in examples:
            turns = [
                (turn.role, [part if isinstance(part, str) else playable(part) for part in turn.parts])
                for turn in example.turns
            ]
            cost = sum(
                len(part.uri) + len(part.picture) for _, parts in turns for part in parts if not isinstance(part, str)
            )
            if cost <= self.budget:
                self.budget -= cost
                placed.append((example, turns))
        return placed
