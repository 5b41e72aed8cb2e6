"""How an LLM is best joined to frozen decoders: stage 2 on the small world, by recipe, signal tokens and joint.

Every row trains for the same number of steps, from scratch, with each seed; held-out captions are then rendered through
the joint, and the oracles read the media.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from pipelines.sample import Modality
from pipelines.storage.files import read_json
from tests.benchmarks import arms, table_head, table_row
from tests.benchmarks.arms import ArmOptions, Result

# A clip takes three times as long to denoise as a picture and a sound together.
MODALITIES = (Modality.IMAGE, Modality.AUDIO)
TEXT = "text"  # the decoder fed with the captions themselves


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
    "kept": (_DENOISED, "loss.denoise_from=0.5"),  # aligned, then denoised too
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


# To compare anything else, such as other losses, add an arm with its settings.
ARMS: Mapping[str, Arm] = {
    f"{joint}-{tokens}-{recipe}": _arm(joint, tokens, recipe)
    for joint in JOINTS
    for tokens in TOKENS
    for recipe in RECIPES
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions(ArmOptions):
    """The options of `jobs/bench.py recipe`."""

    only: Annotated[tuple[str, ...] | None, arms.names_of(ARMS)] = None


def run(options: RecipeOptions) -> Iterator[str]:
    """The table in Markdown, once all rows are measured."""
    from tests.benchmarks import recipe_arm

    overrides = {name: ARMS[name].overrides for name in options.only or ARMS}
    results = arms.measured(options, overrides, recipe_arm.prepare, recipe_arm.measure)
    yield from table(results, read_json(Path(options.out) / f"{TEXT}.json"))


def table(results: Mapping[str, Sequence[Result]], text: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table: means over seeds, of shares of all attributes right also the least and the most."""
    names = ["joint", "signal tokens", "recipe", "weights"]
    for modality in MODALITIES:
        names += [f"{modality} right, %", "of these", "distance", "squared error", "cosine", "denoising"]
    yield from table_head([*names, "s"], numbers=True)
    read = [cell for m in MODALITIES for cell in (*arms.shares([text[m]["right"]]), "0", "0", "1", "")]
    yield table_row([TEXT, "", "", "", *read, ""])
    for name, found in results.items():
        arm, cells = ARMS[name], list[str]()
        for modality in MODALITIES:
            figure = partial(_mean, [one["modalities"][modality] for one in found])
            cells += arms.shares([one["modalities"][modality]["right"] for one in found])
            cells += [figure(name) for name in ("distance", "mean_ratio", "cosine", "denoising")]
        weights, seconds = f"{found[0]['weights']:,}", f"{mean(one['seconds'] for one in found):.0f}"
        yield table_row([arm.joint, str(arm.tokens), arm.recipe, weights, *cells, seconds])


def _mean(found: Sequence[Mapping[str, float]], name: str) -> str:
    values = [one[name] for one in found if name in one]
    return f"{mean(values):.3f}" if values else ""
