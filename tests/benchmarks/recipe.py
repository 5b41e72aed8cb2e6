"""How an LLM is best joined to frozen decoders: stage 2 on the small world, by recipe, signal tokens and joint.

Every row trains for the same number of steps, from scratch, with each seed; held-out captions are then rendered through
the joint, and the oracles read the media. Each result is kept in a file, so that an interrupted run goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.sample import Modality
from pipelines.storage.files import read_json, write_json
from tests.benchmarks import cores, say, table_head, table_row

# A clip takes three times as long to denoise as a picture and a sound together.
MODALITIES = (Modality.IMAGE, Modality.AUDIO)
TEXT = "text"  # the decoder fed with the captions themselves
Result = Mapping[str, Any]


def _by_modality(value: object) -> str:
    return "{" + ", ".join(f"{modality}: {value}" for modality in MODALITIES) + "}"


_DENOISED = f"loss.denoising_weights={_by_modality(2.0)}"
RECIPES: Mapping[str, Sequence[str]] = {
    "aligned": (),
    "denoised": (_DENOISED, f"loss.alignment_weights={_by_modality(0.0)}"),
    "both": (  # aligned, then denoised
        _DENOISED,
        "loss.denoise_from=0.5",
        f"loss.alignment_weights_after={_by_modality(0.0)}",
    ),
}
JOINTS: Mapping[str, Sequence[str]] = {
    "projection": (),
    "connector": tuple(
        f"model.outputs.{modality}.{setting}" for modality in MODALITIES for setting in ("kind=connector", "layers=2")
    ),
}
TOKENS = (4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A row of the table: how it is shown, and its settings beside those of preset world."""

    joint: str
    tokens: int
    recipe: str
    overrides: tuple[str, ...]


def _arm(joint: str, tokens: int, recipe: str) -> Arm:
    groups = tuple(f"model.outputs.{modality}.num_signal_tokens={tokens}" for modality in MODALITIES)
    return Arm(joint=joint, tokens=tokens, recipe=recipe, overrides=(*groups, *JOINTS[joint], *RECIPES[recipe]))


# To compare anything else, such as other input tokens or losses, add an arm with its settings.
ARMS: Mapping[str, Arm] = {
    f"{joint}-{tokens}-{recipe}": _arm(joint, tokens, recipe)
    for joint in JOINTS
    for tokens in TOKENS
    for recipe in RECIPES
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """The options of `jobs/bench.py recipe`."""

    only: Annotated[tuple[str, ...] | None, Option(f"rows, of {', '.join(ARMS)}", "ROW", choices=ARMS)] = None
    seeds: Annotated[int, Option("how often each row is trained", "N", least=1)] = 3
    steps: Annotated[int, Option("training steps of each", "N", least=1)] = 400
    out: Annotated[str, Option("where results are kept; those of the same settings are not measured again", "DIR")] = (
        "out/recipe"
    )


def run(options: RecipeOptions) -> Iterator[str]:
    """The table in Markdown, once all rows are measured, as many at a time as there are cores."""
    from tests.benchmarks.recipe_arm import prepare

    cli.check(options)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    names = options.only or tuple(ARMS)
    prepare(folder)
    wanted = [(name, seed) for seed in range(options.seeds) for name in names]
    missing = [(name, seed) for name, seed in wanted if _kept(folder, name, seed, options.steps) is None]
    if missing:
        _measure(folder, missing, options.steps)
    results = {
        name: [found for seed in range(options.seeds) if (found := _kept(folder, name, seed, options.steps))]
        for name in names
    }
    yield from table(results, read_json(folder / f"{TEXT}.json"))


def _kept(folder: Path, name: str, seed: int, steps: int) -> Result | None:
    path = _path(folder, name, seed, steps)
    found: Result | None = read_json(path) if path.is_file() else None
    return found if found is not None and found["overrides"] == list(ARMS[name].overrides) else None


def _path(folder: Path, name: str, seed: int, steps: int) -> Path:
    return folder / f"{name}-{steps}-steps-seed-{seed}.json"


def _measure(folder: Path, missing: Sequence[tuple[str, int]], steps: int) -> None:
    """Trains and examines in processes of one thread each, which keep what they find."""
    from tests.benchmarks.recipe_arm import begin, measure

    with ProcessPoolExecutor(min(cores(), len(missing)), get_context("spawn"), begin) as pool:
        jobs = {}
        for name, seed in missing:
            jobs[pool.submit(measure, folder, ARMS[name].overrides, seed, steps)] = name, seed
        for count, job in enumerate(as_completed(jobs), 1):
            name, seed = jobs[job]
            found = job.result()
            write_json(_path(folder, name, seed, steps), found)
            say(f"{count} of {len(jobs)}: {name}, seed {seed}: {found['seconds']:.0f} s")


def table(results: Mapping[str, Sequence[Result]], text: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table: means over seeds, of shares of all attributes right also the least and the most."""
    names = ["joint", "signal tokens", "recipe", "weights"]
    for modality in MODALITIES:
        names += [f"{modality} right, %", "of these", "distance", "squared error", "cosine", "denoising"]
    yield from table_head([*names, "s"], numbers=True)
    read = [cell for m in MODALITIES for cell in (*_read([text[m]["right"]]), "0", "0", "1", "")]
    yield table_row([TEXT, "", "", "", *read, ""])
    for name, found in results.items():
        arm, cells = ARMS[name], list[str]()
        for modality in MODALITIES:
            figure = partial(_mean, [one["modalities"][modality] for one in found])
            cells += _read([one["modalities"][modality]["right"] for one in found])
            cells += [figure(name) for name in ("distance", "mean_ratio", "cosine", "denoising")]
        weights, seconds = f"{found[0]['weights']:,}", f"{mean(one['seconds'] for one in found):.0f}"
        yield table_row([arm.joint, str(arm.tokens), arm.recipe, weights, *cells, seconds])


def _read(rights: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """The share of media with all attributes right, and that of each attribute, in per cent."""
    whole = [100 * right["all"] for right in rights]
    spread = f" ({min(whole):.0f} to {max(whole):.0f})" if len(whole) > 1 else ""
    each = {name: mean(100 * right[name] for right in rights) for name in rights[0] if name != "all"}
    return f"{mean(whole):.1f}{spread}", ", ".join(f"{name} {share:.0f}" for name, share in each.items())


def _mean(found: Sequence[Mapping[str, float]], name: str) -> str:
    values = [one[name] for one in found if name in one]
    return f"{mean(values):.3f}" if values else ""
