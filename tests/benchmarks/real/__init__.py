"""A rehearsal of preset `nextgpt_7b` without its weights: every command on random weights in the published layouts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from jobs.common.cli import Option

STEPS = ("prepare", "embed", "stage-1", "stage-2", "stage-3", "generate", "import", "export", "chat")
MEDIA = ("image", "video", "audio")
DESCRIPTION = (
    "every command of preset nextgpt_7b on published layouts of random weights: seconds, memory and bytes, "
    "as a Markdown table"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealOptions:
    """The options of `jobs/bench.py real`."""

    out: Annotated[str, Option("folder for parts and runs; parts are reused", "DIR")] = "out/real"
    base: Annotated[str, Option("base of the user's preset file", "PRESET")] = "nextgpt_7b"
    layers: Annotated[int | None, Option("layers of the LLM; by default as many as fit, at most 32", "N", least=1)] = (
        None
    )
    small: Annotated[bool, Option("a small cut, which takes minutes on two cores")] = False
    disk: Annotated[float | None, Option("cut the LLM's layers to fit on this much disk", "GB")] = None
    memory: Annotated[float | None, Option("cut the LLM's layers to fit in this much memory", "GB")] = None
    data: Annotated[str | None, Option("a NExT-GPT data folder; by default, a small world is drawn", "ROOT")] = None
    samples: Annotated[int, Option("media of each modality to take from it", "N", least=1)] = 2
    only: Annotated[tuple[str, ...], Option(f"of {', '.join(STEPS)}", "STEP", choices=STEPS)] = STEPS
    max_steps: Annotated[int, Option("training steps per stage", "N", least=1)] = 2
    media: Annotated[tuple[str, ...], Option("media that the replies must contain", choices=MEDIA, several="*")] = MEDIA
    denoising_steps: Annotated[int, Option("denoising steps per medium", "N", least=1)] = 2
    settings: Annotated[
        tuple[str, ...],
        Option("settings of the training stages; without a GPU, use_gpu=false is added", "KEY=VALUE"),
    ] = ("workers=1", "batch_size=2", "micro_batch_size=1", "validation.fraction=0")


def run(options: RealOptions, machine: str) -> Iterator[str]:
    """Runs the rehearsal; yields the lines of the table, and raises as `rehearsal.rehearse`."""
    from tests.benchmarks.real.rehearsal import rehearse

    return rehearse(options, machine)
