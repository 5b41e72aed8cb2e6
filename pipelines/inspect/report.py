"""A report on one prepared dataset: a self-contained HTML file without scripts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from pipelines.inspect.census import SHOWN, Census, count_rejects, take_census
from pipelines.inspect.curation import show_curation
from pipelines.inspect.exhibits import Showcase, shortened
from pipelines.inspect.histogram import Chart, Histogram, Spread, draw_chart, number
from pipelines.prepare.ledger import accounts, advice
from pipelines.sample import Modality
from pipelines.storage.files import write_text
from pipelines.storage.shards import MANIFEST, Manifest, Shard
from pipelines.storage.sidecars import SidecarManifest

BUDGET = 5 * 10**6  # bytes of pictures and sounds in a page
SHOWN_DIALOGUES = 6
SHOWN_SHARDS = 12
SHOWN_CATEGORIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """Figures of the run that made a dataset: rows read, seconds taken, bytes of shards written."""

    rows: int
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Talks:
    """The dialogues that were read: how many, their turns, and how often each (role, modality) of item occurs."""

    read: int
    turns: Histogram
    items: dict[str, int]


def write_report(dataset: Path, out: Path, run: RunFigures | None = None, where: str | None = None) -> None:
    """Writes the report on a finished dataset; its size does not grow with the dataset, its choice of samples is even.

    With a condition on columns, it shows what that would drop.

    Raises:
        FileNotFoundError: the dataset is not finished.
        ValueError: the condition does not fit the columns.
    """
    manifest = Manifest.read(dataset)
    write_text(out, render(dataset, manifest, run, where))


def render(dataset: Path, manifest: Manifest, run: RunFigures | None, where: str | None = None) -> str:
    """The report as HTML."""
    census = take_census(dataset, manifest)
    showcase = Showcase(dataset=dataset, budget=BUDGET)
    is_dialogue = "dialogue" in manifest.views.values()
    talks = _read_talks(showcase, census) if is_dialogue else None
    media = {modality.value: showcase.exhibits(_chosen(census, modality)) for modality in SHOWN}
    rejects = dict(list(count_rejects(dataset).items())[:SHOWN_CATEGORIES])
    known = accounts(dataset)
    return _template().render(
        manifest=manifest,
        rejected=manifest.rows - manifest.taken,
        rejects=rejects,
        categories=len(known),
        advice={category: advice(account.example.reason) for category, account in known.items()},
        media=media,
        counts={modality.value: count for modality, count in sorted(census.media.items())},
        seconds={
            modality: census.histograms[f"{modality} seconds"].sum
            for modality in Modality
            if f"{modality} seconds" in census.histograms
        },
        captions=[(key, source, shortened(text)) for key, source, text in census.captions.chosen()],
        captioned=census.captions.seen,
        dialogues=_dialogues(showcase, census) if is_dialogue else [],
        talks=talks,
        charts=_charts(census, talks),
        curation=show_curation(dataset, manifest, where),
        sidecars=_sidecars(dataset),
        shards=_some(manifest.shards, SHOWN_SHARDS),
        bytes=sum(shard.bytes for shard in manifest.shards),
        run=run,
        infinity=math.inf,
    )


def _template() -> Template:
    loader = FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    environment.filters |= {"number": number, "size": size, "duration": duration, "share": share}
    return environment.get_template("report.html.j2")


def size(value: float) -> str:
    """Bytes in the largest unit that leaves a whole part."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} TB"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes or seconds."""
    if seconds < 120:
        return f"{number(round(seconds, 1))} s"
    return f"{number(round(seconds / 60, 1))} min" if seconds < 7200 else f"{number(round(seconds / 3600, 1))} h"


def share(part: float, whole: float) -> str:
    """A part in per cent; a small one is not rounded to 0 %, nor a large one to 100 %."""
    if not whole or part in (0, whole):
        return "100 %" if whole and part else "0 %"
    percent = 100 * part / whole
    return "< 0.1 %" if percent < 0.1 else "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"


def _chosen(census: Census, modality: Modality) -> list[tuple[int, int, str]]:
    return census.shown[modality].chosen() if modality in census.shown else []


def _some(shards: Sequence[Shard], quota: int) -> list[Shard]:
    spread = Spread[Shard](quota)
    for shard in shards:
        spread.offer(shard)
    return spread.chosen()


def _read_talks(showcase: Showcase, census: Census) -> Talks:
    turns, items = Histogram(), Counter[str]()
    places = census.samples.chosen()
    for place in places:
        sample = showcase.text(*place)
        turns.add(len(sample.turns))
        for turn in sample.turns:
            items.update(f"{item.modality} {turn.role}" for item in turn.parts if not isinstance(item, str))
    return Talks(read=len(places), turns=turns, items=dict(sorted(items.items())))


def _dialogues(showcase: Showcase, census: Census) -> list[Any]:
    spread = Spread[tuple[int, int]](SHOWN_DIALOGUES)
    for place in census.samples.chosen():
        spread.offer(place)
    return [showcase.dialogue(showcase.sample(*place)) for place in spread.chosen()]


def _charts(census: Census, talks: Talks | None) -> list[Chart]:
    """Charts of all histograms with values, in display order."""
    titles = {"words": ("Words of a caption", ""), "characters": ("Characters of a caption", "")}
    for modality, noun in ((Modality.IMAGE, "Image"), (Modality.VIDEO, "Video")):
        titles[f"{modality} shorter side"] = (f"{noun}: shorter side", "px")
        titles[f"{modality} aspect ratio"] = (f"{noun}: width / height", "")
    titles |= {"video seconds": ("Video: length", "s"), "audio seconds": ("Sound: length", "s")}
    charts = [
        draw_chart(title, unit, census.histograms[name], "")
        for name, (title, unit) in titles.items()
        if name in census.histograms
    ]
    if talks and len(talks.turns):
        note = f"of {talks.read} dialogues, evenly spread" if census.samples.seen > talks.read else ""
        charts.insert(0, draw_chart("Turns of a dialogue", "", talks.turns, note))
    return charts


def _sidecars(dataset: Path) -> list[SidecarManifest]:
    folders = [path.parent for path in sorted(dataset.glob(f"embeddings/*/{MANIFEST}"))]
    found = []
    for folder in folders:
        try:
            found.append(SidecarManifest.read(folder))
        except ValueError:  # unfinished or damaged: for `verify` to say, no reason to have no report
            continue
    return found
