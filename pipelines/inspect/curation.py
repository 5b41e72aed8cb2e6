"""What a page shows of curation: histograms with examples, groups of duplicates, and what a selection drops.

Columns are read a shard at a time, twice; of the samples, the few that are shown.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.columns import is_current
from pipelines.curate.selection import Selection, not_holding, select
from pipelines.curate.side_tables import SideTables
from pipelines.inspect.census import Place
from pipelines.inspect.exhibits import Exhibit, Showcase, shortened
from pipelines.inspect.histogram import Chart, Histogram, draw_chart
from pipelines.storage.conditions import parse_condition
from pipelines.storage.expressions import FLAG, NUMBER, TEXT
from pipelines.storage.shards import Manifest

BUDGET = 5 * 10**6  # bytes of pictures and sounds
SIDE, SECONDS = 128, 2.0
NEAREST = 4  # examples of an end, or of a side of a threshold
SHOWN_GROUPS, MEMBERS = 6, 6
SHOWN_DROPPED = 8
SHOWN_VALUES = 6
_GROUPED = {
    "near_duplicate_of": "Equal or nearly equal samples",
    "neighbour_of": "Neighbours by their features",
    "near_caption_duplicate_of": "Equal or nearly equal captions",
    "leaks": "Samples to train on that nearly equal one that is held out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A sample in a page, and what is told of it."""

    exhibit: Exhibit
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartedColumn:
    """A column of numbers: its chart, and by title the samples at its ends and around thresholds."""

    name: str
    scorer: str
    chart: Chart
    rows: list[tuple[str, list[Specimen]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedColumn:
    """A column of texts or flags: how often each of its commonest values occurs, and of how many in all."""

    name: str
    scorer: str
    values: list[tuple[str, int]]
    distinct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """Some members of a group of duplicates, the one that stays first; `left` more are not shown."""

    members: list[Specimen]
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroups:
    """Some of the groups of a column, the largest first; `groups` there are, with `members` beside those that stay."""

    title: str
    name: str
    groups: int
    members: int
    shown: list[ShownGroup]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDrop:
    """How many samples a clause drops, and some of them."""

    clause: str
    count: int
    examples: list[Specimen]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCuration:
    """All that a page shows of a dataset's columns; `stale` are scorers whose columns are of other shards."""

    charted: list[ChartedColumn] = field(default_factory=list)
    listed: list[ListedColumn] = field(default_factory=list)
    grouped: list[ShownGroups] = field(default_factory=list)
    selection: Selection | None = None
    dropped: list[ShownDrop] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


class _Nearest:
    """The places whose values are nearest to a point, from one side: infinity finds the ends."""

    def __init__(self, title: str, point: float, above: bool) -> None:
        self.title, self._point, self._above = title, point, above
        self._kept: list[tuple[float, Place]] = []

    def offer(self, shard: int, values: npt.NDArray[np.float64]) -> None:
        """Offers the values of a shard; those that are NaN are none."""
        sign = 1 if self._above else -1
        places = np.flatnonzero(values >= self._point if self._above else values < self._point)
        found = places[np.argsort(sign * values[places], kind="stable")[:NEAREST]].tolist()
        kept = [*self._kept, *((sign * float(values[place]), (shard, place)) for place in found)]
        self._kept = sorted(kept)[:NEAREST]

    @property
    def found(self) -> list[tuple[float, Place]]:
        """Values and places, the nearest first."""
        return [(value if self._above else -value, place) for value, place in self._kept]


@dataclass
class _Numbers:
    """What is gathered of a column of numbers in the first pass."""

    nearest: list[_Nearest]
    least: float = math.inf
    most: float = -math.inf
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def offer(self, shard: int, values: npt.NDArray[np.float64]) -> None:
        """Offers the values of a shard; those that are NaN are none."""
        present = values[~np.isnan(values)]
        if len(present):
            self.count += len(present)
            self.least, self.most = min(self.least, float(present.min())), max(self.most, float(present.max()))
        for one in self.nearest:
            one.offer(shard, values)

    def choose_step(self, is_whole: bool) -> None:
        """A thousandth of the spread, or less, of a round width; whole numbers are counted as they are."""
        spread = self.most - self.least
        step = 10.0 ** math.floor(math.log10(spread / 100)) if 0 < spread < math.inf else 1.0
        self.histogram = Histogram(max(1.0, step) if is_whole else step)

    def draw(self, values: npt.NDArray[np.float64]) -> None:
        """Counts the values of a shard."""
        steps = np.rint(values[~np.isnan(values)] / self.histogram.step)
        for value, count in zip(*np.unique(steps, return_counts=True), strict=True):
            self.histogram.add(float(value) * self.histogram.step, int(count))


def show_curation(dataset: Path, manifest: Manifest, where: str | None = None) -> ShownCuration | None:
    """What is to be shown of a dataset's columns; None where it has none, and no condition is given.

    Raises:
        ValueError: the condition does not fit the columns, or these are of other shards; one line.
    """
    tables = SideTables(dataset, manifest)
    if not tables.found and where is None:
        return None
    showcase = Showcase(dataset=dataset, budget=BUDGET, side=SIDE, seconds=SECONDS)
    selection = None if where is None else select(dataset, manifest, [where])
    stale = sorted(scorer for scorer, found in tables.found.items() if not is_current(found, manifest))
    names = [name for name, scorer in tables.scorers.items() if scorer not in stale]
    of_kind = {kind: [name for name in names if tables.kinds[name] == kind] for kind in (NUMBER, TEXT, FLAG)}
    return ShownCuration(
        selection=selection,
        dropped=_dropped(showcase, manifest, selection, where) if selection and where else [],
        grouped=[_groups(showcase, tables, name) for name in _GROUPED if name in of_kind[TEXT]],
        charted=_charted(showcase, tables, of_kind[NUMBER], where),
        listed=[
            _listed(tables, name)
            for name in of_kind[TEXT] + of_kind[FLAG]
            if tables.scorers[name] not in ("duplicates", "neighbours")
        ],
        stale=stale,
    )


def _charted(showcase: Showcase, tables: SideTables, names: Sequence[str], where: str | None) -> list[ChartedColumn]:
    points: dict[str, list[float]] = {}
    for name, value in parse_condition(where).thresholds if where else []:
        points.setdefault(name, []).append(value)
    found = {name: _Numbers(nearest=list(_sides(points.get(name, [])))) for name in names}
    for shard, values in _values(tables, names):
        for name, numbers in found.items():
            numbers.offer(shard, values[name])
    for name, numbers in found.items():
        numbers.choose_step(tables.found[tables.scorers[name]].columns[name] == "int")
    for _, values in _values(tables, names):
        for name, numbers in found.items():
            numbers.draw(values[name])
    ordered = sorted(names, key=lambda name: name not in points)  # those that are asked for, first
    return [
        ChartedColumn(
            name=name,
            scorer=tables.scorers[name],
            chart=_chart(name, found[name], tables.manifest.samples, points.get(name, [])),
            rows=list(_examples(showcase, name, found[name])),
        )
        for name in ordered
        if found[name].count
    ]


def _sides(points: Sequence[float]) -> Iterator[_Nearest]:
    for point in points:
        yield _Nearest(f"just below {point:g}", point, above=False)
        yield _Nearest(f"{point:g} and just above", point, above=True)
    yield _Nearest("lowest", -math.inf, above=True)
    yield _Nearest("highest", math.inf, above=False)


def _values(tables: SideTables, names: Sequence[str]) -> Iterator[tuple[int, dict[str, npt.NDArray[np.float64]]]]:
    """The values of columns of numbers, a shard at a time; NaN where there is none."""
    for number, shard in enumerate(tables.manifest.shards):
        table = tables.read(shard.name, names)
        found = {name: table[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in names}
        yield number, {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


def _chart(name: str, numbers: _Numbers, samples: int, points: Sequence[float]) -> Chart:
    step = numbers.histogram.step
    digits = max(0, -math.floor(math.log10(step))) + 1 if step < 1 else 0
    missing = samples - numbers.count
    note = f"{missing} of {samples} samples without one" if missing else ""
    return draw_chart(name, "", numbers.histogram, note, points, digits)


def _examples(showcase: Showcase, name: str, numbers: _Numbers) -> Iterator[tuple[str, list[Specimen]]]:
    if numbers.least == numbers.most:
        return
    for one in numbers.nearest:
        if found := [_specimen(showcase, place, f"{value:.6g}") for value, place in one.found]:
            yield one.title, found


def _specimen(showcase: Showcase, place: Place, told: str) -> Specimen:
    """The first medium of a sample; of one without media, what is said."""
    sample = showcase.sample(*place)
    items = [item for item in sample.items() if item.name in sample.media]
    if items:
        return Specimen(exhibit=showcase.exhibit(sample, items[0]), told=told)
    said = [part if isinstance(part, str) else part.caption for turn in sample.turns for part in turn.parts]
    text = shortened("\n".join(filter(None, said)))
    exhibit = Exhibit(modality="text", key=sample.key, source=sample.source, caption=text, file="", facts="")
    return Specimen(exhibit=exhibit, told=told)


def _listed(tables: SideTables, name: str) -> ListedColumn:
    counts = Counter[str]()
    for shard in tables.manifest.shards:
        for pair in pc.value_counts(tables.read(shard.name, [name])[name]).to_pylist():
            value = pair["values"]
            counts["null" if value is None else str(value).lower() if isinstance(value, bool) else value] += pair[
                "counts"
            ]
    common = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    values = [(shortened(value), count) for value, count in common[:SHOWN_VALUES]]
    return ListedColumn(name=name, scorer=tables.scorers[name], values=values, distinct=len(common))


def _groups(showcase: Showcase, tables: SideTables, name: str) -> ShownGroups:
    sizes = Counter[str]()
    for shard in tables.manifest.shards:
        for pair in pc.value_counts(tables.read(shard.name, [name])[name].drop_null()).to_pylist():
            sizes[pair["values"]] += pair["counts"]
    chosen = [first for first, _ in sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[:SHOWN_GROUPS]]
    members: dict[str, list[Place]] = {first: [] for first in chosen}
    for number, shard in enumerate(tables.manifest.shards):
        column = tables.read(shard.name, [name])[name]
        for place in pc.indices_nonzero(pc.is_in(column, pa.array(chosen, pa.string()))).to_pylist():
            group = members[column[place].as_py()]
            group.extend([(number, place)] if len(group) < MEMBERS - 1 else [])
    firsts = dict(_firsts(showcase, chosen, "held out" if name == "leaks" else "stays"))
    return ShownGroups(
        title=_GROUPED[name],
        name=name,
        groups=len(sizes),
        members=sizes.total(),
        shown=[
            ShownGroup(
                members=[*firsts.get(first, []), *(_specimen(showcase, place, "") for place in members[first])],
                left=sizes[first] - len(members[first]),
            )
            for first in chosen
        ],
    )


def _firsts(showcase: Showcase, names: Sequence[str], what: str) -> Iterator[tuple[str, list[Specimen]]]:
    """The samples of these names, `dataset/key`, which may lie in other datasets; none of one that is gone."""
    by_dataset: dict[str, list[str]] = {}
    for name in names:
        dataset, _, key = name.partition("/")
        by_dataset.setdefault(dataset, []).append(key)
    for dataset, keys in by_dataset.items():
        directory = showcase.dataset.parent / dataset
        own = (
            showcase
            if directory == showcase.dataset
            else Showcase(dataset=directory, budget=showcase.budget // 4, side=SIDE, seconds=SECONDS)
        )
        for key, place in _places(directory, keys).items():
            yield f"{dataset}/{key}", [_specimen(own, place, what if own is showcase else f"{what}, in {dataset}")]


def _places(directory: Path, keys: Sequence[str]) -> Mapping[str, Place]:
    found: dict[str, Place] = {}
    try:
        tables = SideTables(directory, manifest := Manifest.read(directory))
    except (OSError, ValueError):
        return found
    for number, shard in enumerate(manifest.shards):
        column = tables.read(shard.name, ["key"])["key"]
        for place in pc.indices_nonzero(pc.is_in(column, pa.array(keys, pa.string()))).to_pylist():
            found.setdefault(column[place].as_py(), (number, place))
    return found


def _dropped(showcase: Showcase, manifest: Manifest, selection: Selection, where: str) -> list[ShownDrop]:
    return [
        ShownDrop(
            clause=clause,
            count=count,
            examples=[
                _specimen(showcase, place, _reason(showcase.dataset, manifest, where, clause, place))
                for place in _spread(selection.dropped_by, number, manifest.samples_per_shard)
            ],
        )
        for number, (clause, count) in enumerate(selection.dropped.items())
    ]


def _spread(dropped_by: npt.NDArray[np.int16], number: int, samples_per_shard: int) -> list[Place]:
    """Some of the samples that a clause drops, evenly spread."""
    samples = np.flatnonzero(dropped_by == number)
    chosen = samples[
        np.arange(min(SHOWN_DROPPED, len(samples))) * len(samples) // max(1, min(SHOWN_DROPPED, len(samples)))
    ]
    return [divmod(sample, samples_per_shard) for sample in chosen.tolist()]


def _reason(directory: Path, manifest: Manifest, where: str, clause: str, place: Place) -> str:
    """The values for which a clause drops a sample."""
    shard, number = place
    reasons = not_holding(directory, manifest, [where], manifest.shards[shard].name, number)
    return next((one[len(clause) + 2 : -1] for one in reasons if one.startswith(f"{clause} (")), "")
