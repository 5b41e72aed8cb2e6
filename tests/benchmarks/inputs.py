"""How a medium is best told to an LLM: stage 1 on the small world, from a pooled vector or from patches.

Every row trains for the same number of steps, from scratch, with each seed; held-out media are then described, and
what the words name is compared with what the media show.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Annotated

from pipelines.sample import Modality
from tests.benchmarks import arms, table_head, table_row
from tests.benchmarks.arms import ArmOptions, Result

PATCHES = 16  # of an item
_ENCODER = "builtin:world/imagebind"
# The widths of ImageBind's trunks; its pooled vector is narrower.
_WIDTHS = {Modality.IMAGE: 96, Modality.VIDEO: 96, Modality.AUDIO: 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A row of the table: what the LLM's tokens are made of, and how many an item has."""

    features: str
    projection: str
    tokens: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of this row beside those of preset world."""
        projection = (f"kind={self.projection}", f"num_input_tokens={self.tokens}", "hidden=96")
        return (*_ENCODERS[self.features], *(f"model.input_projection.{setting}" for setting in projection))


_ENCODERS: Mapping[str, tuple[str, ...]] = {
    "pooled": (),
    "patches": (
        "model.encoder.name=null",
        "model.encoder.dim=null",
        *(
            f"model.encoder.{modality}={{name: {_ENCODER}, dim: {width}, patches: {PATCHES}}}"
            for modality, width in _WIDTHS.items()
        ),
    ),
}
ARMS: Mapping[str, Arm] = {
    f"{features}-{projection}-{tokens}": Arm(features=features, projection=projection, tokens=tokens)
    for features, projection, tokens in (
        ("pooled", "linear", 1),
        ("pooled", "query", 4),
        ("patches", "linear", PATCHES),
        ("patches", "resampler", 4),
        ("patches", "resampler", PATCHES),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsOptions(ArmOptions):
    """The options of `jobs/bench.py inputs`."""

    only: Annotated[tuple[str, ...] | None, arms.names_of(ARMS)] = None


def run(options: InputsOptions) -> Iterator[str]:
    """The table in Markdown, once all rows are measured."""
    from tests.benchmarks import inputs_arm

    overrides = {name: ARMS[name].overrides for name in options.only or ARMS}
    results = arms.measured(options, overrides, inputs_arm.prepare, inputs_arm.measure)
    yield from table(results)


def table(results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """The lines of the table: means over seeds, of shares of all attributes right also the least and the most."""
    names = ["made of", "projection", "tokens", "weights"]
    for modality in Modality:
        names += [f"{modality} right, %", "of these"]
    yield from table_head([*names, "loss", "s"], numbers=True)
    for name, found in results.items():
        arm, cells = ARMS[name], list[str]()
        for modality in Modality:
            cells += arms.shares([one["modalities"][modality]["right"] for one in found])
        figures = f"{mean(one['loss'] for one in found):.3f}", f"{mean(one['seconds'] for one in found):.0f}"
        weights = f"{found[0]['weights']:,}"
        yield table_row([arm.features, arm.projection, str(arm.tokens), weights, *cells, *figures])
