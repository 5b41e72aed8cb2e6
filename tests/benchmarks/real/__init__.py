"""A rehearsal of preset `nextgpt_7b` without its weights: every command on random weights in the published layouts."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

STEPS = ("prepare", "embed", "stage-1", "stage-2", "stage-3", "generate", "import", "export", "chat")
MEDIA = ("image", "video", "audio")
DESCRIPTION = (
    "every command of preset nextgpt_7b on published layouts of random weights: seconds, memory and bytes, "
    "as a Markdown table"
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of `jobs/bench.py real`."""
    parser.add_argument("--out", default="out/real", metavar="DIR", help="where parts and runs go; parts are kept")
    parser.add_argument(
        "--base", default="nextgpt_7b", metavar="PRESET", help="what the user's preset file is based on"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="of the LLM; without it, as many as fit, at most 32")
    parser.add_argument("--small", action="store_true", help="a cut that two cores rehearse in minutes")
    parser.add_argument("--disk", type=float, metavar="GB", help="cut the LLM's layers to fit on this much disk")
    parser.add_argument("--memory", type=float, metavar="GB", help="cut the LLM's layers to fit in this much memory")
    parser.add_argument("--data", metavar="ROOT", help="a NExT-GPT data folder; without it, a small world is drawn")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="media of each modality taken from it")
    parser.add_argument(
        "--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}"
    )
    parser.add_argument("--max-steps", type=int, default=2, metavar="N", help="training steps of a stage")
    parser.add_argument("--media", nargs="*", choices=MEDIA, default=MEDIA, help="what the replies must hold")
    parser.add_argument("--denoising-steps", type=int, default=2, metavar="N", help="of each medium")
    parser.add_argument(
        "--settings",
        nargs="+",
        metavar="KEY=VALUE",
        default=["workers=1", "batch_size=2", "micro_batch_size=1", "validation.fraction=0"],
        help="of the training stages; use_gpu=false is added where there is no GPU",
    )


def run(arguments: Namespace, machine: str) -> Iterator[str]:
    """Runs the rehearsal; yields the lines of the table, and raises as `rehearsal.rehearse`."""
    from tests.benchmarks.real.rehearsal import rehearse

    return rehearse(arguments, machine)
