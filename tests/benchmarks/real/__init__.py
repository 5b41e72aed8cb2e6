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
    parser.add_argument("--out", default="out/real", metavar="DIR", help="folder for parts and runs; parts are reused")
    parser.add_argument("--base", default="nextgpt_7b", metavar="PRESET", help="base of the user's preset file")
    parser.add_argument(
        "--layers", type=int, metavar="N", help="layers of the LLM; by default as many as fit, at most 32"
    )
    parser.add_argument("--small", action="store_true", help="a small cut, which takes minutes on two cores")
    parser.add_argument("--disk", type=float, metavar="GB", help="cut the LLM's layers to fit on this much disk")
    parser.add_argument("--memory", type=float, metavar="GB", help="cut the LLM's layers to fit in this much memory")
    parser.add_argument("--data", metavar="ROOT", help="a NExT-GPT data folder; by default, a small world is drawn")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="media of each modality to take from it")
    parser.add_argument(
        "--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}"
    )
    parser.add_argument("--max-steps", type=int, default=2, metavar="N", help="training steps per stage")
    parser.add_argument("--media", nargs="*", choices=MEDIA, default=MEDIA, help="media that the replies must contain")
    parser.add_argument("--denoising-steps", type=int, default=2, metavar="N", help="denoising steps per medium")
    parser.add_argument(
        "--settings",
        nargs="+",
        metavar="KEY=VALUE",
        default=["workers=1", "batch_size=2", "micro_batch_size=1", "validation.fraction=0"],
        help="settings of the training stages; without a GPU, use_gpu=false is added",
    )


def run(arguments: Namespace, machine: str) -> Iterator[str]:
    """Runs the rehearsal; yields the lines of the table, and raises as `rehearsal.rehearse`."""
    from tests.benchmarks.real.rehearsal import rehearse

    return rehearse(arguments, machine)
