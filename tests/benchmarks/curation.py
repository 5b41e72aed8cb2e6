"""What curation is worth: training on a small world spoiled on purpose, on what curation leaves of it, and clean.

Of the pairs of each modality 30 % have the captions of others, and 10 % are blank or silent; 20 % more are nearly
copies. The three trainings take as many steps; each is examined on held-out combinations, after stage 1, which pairs
alone teach, and after stage 3, whose instructions are the same ones for all three, and clean.
"""

import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.media.codecs import decode, load
from pipelines.sample import Media, Modality
from pipelines.storage.files import read_json, write_json
from pipelines.storage.shards import Manifest
from pipelines.world.dataset import PAIRS, write_world
from pipelines.world.exam import ROWS
from pipelines.world.instructions import INSTRUCTION_SETS
from tests.benchmarks import say, table_head, table_row
from tests.benchmarks.spoiling import blank, columns_of, copied, is_blank, precision_recall

SHUFFLED, BLANK, COPIED = 0.3, 0.1, 0.2
WHERE = (
    "similarity > 0.6 and near_duplicate_of is null"
    " and (contrast is null or contrast > 1) and (silence is null or silence < 0.9)"
)
_EXAM = tuple(f"understand_{modality}" for modality in Modality)
_FPS = 8.0
Spoiled = Mapping[str, set[str]]  # the keys of samples, by what was done to them


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationOptions:
    """The options of `jobs/bench.py curation`."""

    out: Annotated[str, Option("a folder for data, runs and scores", "DIR")] = "out/curation"
    count: Annotated[int, Option("pairs of each modality", "N", least=20)] = 400
    n: Annotated[int, Option("conversations per row of the exam", "N", least=1)] = 100
    steps: Annotated[int, Option("training steps of each in stage 1", "N", least=1)] = 375
    later_steps: Annotated[int, Option("training steps of each in stages 2 and 3; 0 for stage 1 alone", "N")] = 600


def run(options: CurationOptions) -> Iterator[str]:
    """Tables in Markdown: what each detector finds, and the exams of the three trainings, after stages 1 and 3."""
    cli.check(options)
    out = cli.new_folder(options.out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: holds files; name a new folder or delete it")
    write_world(out / "clean", count=options.count)
    spoiled = {modality: _spoil(out / "clean", out / "spoiled", modality) for modality in Modality}
    pairs = [layout.dataset for layout in PAIRS.values()]
    shards = {name: _prepared(out / name, out / f"{name}-shards", pairs) for name in ("clean", "spoiled")}
    _job("curate", "--shards", shards["spoiled"])
    yield from table_head(["detector", *(f"{modality}s: precision / recall" for modality in Modality)])
    yield from _detected(Path(shards["spoiled"]), spoiled)
    arms = [
        _Arm(name, shards[source], where)
        for name, source, where in (("spoiled", "spoiled", ""), ("curated", "spoiled", WHERE), ("clean", "clean", ""))
    ]
    yield ""
    yield from _first_stage(arms, out, options)
    if options.later_steps:
        yield ""
        yield from _later_stages(arms, out, options)


@dataclass(frozen=True, slots=True)
class _Arm:
    """A training: its name, the folder with shards of its pairs, and what selects these."""

    name: str
    pairs: str
    where: str


def _first_stage(arms: Sequence[_Arm], out: Path, options: CurationOptions) -> Iterator[str]:
    yield from table_head(["stage 1 on", "pairs", *(ROWS[row].title for row in _EXAM)], numbers=True)
    for arm in arms:
        run = _trained(arm, out, 1, arm.pairs, options.steps)
        scores = _scores(run, "--n", str(options.n), "--rows", *_EXAM)
        yield table_row([arm.name, f"{_pairs_of(arm, run):,}", *(_percent(scores[row]) for row in _EXAM)])


def _later_stages(arms: Sequence[_Arm], out: Path, options: CurationOptions) -> Iterator[str]:
    """A row of the exam a line, for it has many."""
    instructions, found = _prepared(out / "clean", out / "instructions-shards", list(INSTRUCTION_SETS)), []
    for arm in arms:
        _trained(arm, out, 2, arm.pairs, options.later_steps)
        run = _trained(arm, out, 3, instructions, options.later_steps)
        found.append(_scores(run, "--n", str(options.n)))
    yield from table_head(["after stage 3", *(arm.name for arm in arms)], numbers=True)
    for name in found[0]:
        yield table_row([ROWS[name].title, *(_percent(scores[name]) for scores in found)])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _spoil(clean: Path, folder: Path, modality: Modality) -> Spoiled:
    """Writes the pairs of a modality, spoiled, into a data folder of the same layout."""
    layout = PAIRS[modality]
    dataset, media, id_key, name_key = layout.dataset, layout.media_folder, layout.id_key, layout.name_key
    source, target = (root / "T-X_pair_data" / dataset for root in (clean, folder))
    rows = read_json(source / f"{dataset}.json")
    (target / media).mkdir(parents=True)
    shuffled, blanks, copies = (round(share * len(rows)) for share in (SHUFFLED, BLANK, COPIED))
    captions = [row["caption"] for row in rows]
    for number, row in enumerate(rows[:shuffled]):
        row["caption"] = captions[(number + 1) % shuffled]
    for number, row in enumerate(rows):
        if shuffled <= number < shuffled + blanks:
            medium = _decoded(source / media / row[name_key], modality)
            row[name_key] = _write(target / media, Path(row[name_key]).stem, blank(medium, number))
        else:
            shutil.copyfile(source / media / row[name_key], target / media / row[name_key])
    for number, row in enumerate(rows[-copies:]):
        stem = f"{len(rows):0{layout.num_digits}}"
        medium = _decoded(source / media / row[name_key], modality)
        name = _write(target / media, stem, copied(medium, number))
        rows.append({**row, id_key: layout.id_type(stem), name_key: name})
    write_json(target / f"{dataset}.json", rows)
    keys = [str(row[id_key]) for row in rows]
    return {
        "shuffled": set(keys[:shuffled]),
        "blank": set(keys[shuffled : shuffled + blanks]),
        "copied": set(keys[-copies:]),
    }


def _decoded(path: Path, modality: Modality) -> Any:
    return decode(load(path, modality), fps=_FPS)


def _write(folder: Path, stem: str, medium: Media) -> str:
    name = f"{stem}.{medium.format}"
    (folder / name).write_bytes(medium.data)
    return name


def _prepared(data: Path, shards: Path, datasets: Sequence[str]) -> str:
    command = ["--data", str(data), "--out", str(shards), "--datasets", *datasets, "--samples-per-shard", "200"]
    _job("prepare", *command)
    _job("embed", "--shards", str(shards))
    return str(shards)


def _job(name: str, *arguments: str) -> None:
    say(f"python jobs/{name}.py {' '.join(arguments)}")
    with redirect_stdout(None):
        importlib.import_module(f"jobs.{name}").main(list(arguments))


def _trained(arm: _Arm, out: Path, stage: int, shards: str, steps: int) -> Path:
    """Trains a stage of an arm, from the stage before it on."""
    run, before = out / f"stage-{stage}-{arm.name}", out / f"stage-{stage - 1}-{arm.name}"
    chosen = [f"max_steps={steps}", *([f"where={arm.where}"] if arm.where and shards == arm.pairs else [])]
    init = ["--init", str(before)] if stage > 1 else []
    _job("train_stage", "--stage", str(stage), "--shards", shards, "--out", str(run), *init, *chosen)
    return run


def _scores(run: Path, *asked: str) -> Mapping[str, float | None]:
    """What the exam says of a run, by row."""
    _job("score", "--checkpoint", str(run), "--controls-n", "0", *asked)
    return {row["row"]: row["value"] for row in read_json(run / "scores.json")["rows"]}


def _pairs_of(arm: _Arm, run: Path) -> int:
    """How many pairs an arm trains on."""
    if not arm.where:
        return sum(Manifest.read(Path(arm.pairs) / layout.dataset).samples for layout in PAIRS.values())
    return sum(account["selected"] for account in read_json(run / "selection.json").values())


def _detected(shards: Path, spoiled: Mapping[Modality, Spoiled]) -> Iterator[str]:
    """A row a detector: of what it finds, and of what there is to find, the share that is both."""
    cells: dict[str, list[str]] = {}
    for modality, layout in PAIRS.items():
        rows = columns_of(shards / layout.dataset)
        wrong, empty, copies = (spoiled[modality][kind] for kind in ("shuffled", "blank", "copied"))
        found = {
            "captions of others, `similarity < 0.6`": (
                {key for key, row in rows.items() if row["similarity"] < 0.6} - empty - copies,
                wrong,
            ),
            "near copies, `near_duplicate_of is not null`": (
                {key for key, row in rows.items() if row["near_duplicate_of"] is not None} - empty,
                copies,
            ),
            "blank or silent, `contrast < 1`, `silence > 0.99`": (
                {key for key, row in rows.items() if is_blank(row)},
                empty,
            ),
        }
        for name, (said, true) in found.items():
            precision, recall = precision_recall(said, true)
            cells.setdefault(name, []).append(f"{precision:.2f} / {recall:.2f}")
    for name, figures in cells.items():
        yield table_row([name, *figures])
