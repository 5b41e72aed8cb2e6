"""Answers a prompt in text and media, or a file of conversations: `jobs/generate.py --checkpoint RUN --out DIR ...`."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common import cli
from jobs.replies.respond import ARCHITECTURES
from model.checkpoints.description import SHIPPED

if TYPE_CHECKING:
    from pathlib import Path

    from model.inference.query import Sampling
    from model.parts.config import ModelConfig
    from pipelines.sample import Modality

MODALITIES = ("image", "video", "audio")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the model on workers: one prompt's reply is printed as it comes, a file's conversations go in batches."""
    parser = cli.parser(
        "Answer a prompt, or with --conversations each of a file, with text and, where the model asks for them, a "
        "picture, a video, a sound."
    )
    parser.add_argument(
        "--checkpoint", default=SHIPPED, metavar="RUN", help="a checkpoint, a run, a hub id, or the shipped model"
    )
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default=ARCHITECTURES[0],
        help="one LLM that sees and makes media, or one that schedules tools and is told in text",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what to say to the model")
    for modality in MODALITIES:
        parser.add_argument(f"--{modality}", metavar="F", action="append", default=[], help=f"an input {modality}")
    parser.add_argument(
        "--conversations",
        metavar="JSONL",
        help='instead of --prompt: a chat a line, {"messages": [...]}; run again, it goes on where it stopped',
    )
    parser.add_argument(
        "--media", metavar="DIR", help="where media of --conversations lie; without it, beside the file"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs for --conversations; without it, those that are up")
    parser.add_argument("--out", required=True, metavar="DIR", help="where replies go")
    parser.add_argument("--require", nargs="+", choices=MODALITIES, default=[], help="media a reply must hold")
    parser.add_argument("--max-items", type=int, default=4, metavar="N", help="the most media a reply may hold")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="length limit of a reply")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens that add up to it")
    parser.add_argument("--seed", type=int, default=0, help="of the text and of the decoders")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps, instead of each decoder's own number")
    cli.add_overrides(parser, "model.llm.name=PATH where a frozen part has moved")
    arguments = parser.parse_args(argv)
    _check(arguments)

    from jobs.common.settings import checkpoint_model
    from model.checkpoints.hub import find_checkpoint
    from model.inference.query import Sampling
    from pipelines.sample import Modality

    checkpoint = find_checkpoint(arguments.checkpoint)
    out = cli.new_folder(arguments.out)
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        max_items=arguments.max_items,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    require = [Modality(name) for name in arguments.require]
    config = checkpoint_model(checkpoint, arguments.overrides)
    answer = _answer_file if arguments.conversations else _answer_prompt
    answer(arguments, checkpoint, config, require, sampling, out)


def _check(arguments: Namespace) -> None:
    mistakes = []
    if (arguments.prompt is None) == (arguments.conversations is None):
        mistakes.append("give --prompt TEXT, or --conversations JSONL")
    if arguments.prompt is not None and not arguments.prompt.strip():
        mistakes.append("--prompt: is empty")
    if arguments.conversations and any(getattr(arguments, modality) for modality in MODALITIES):
        mistakes.append("--image, --video and --audio go with --prompt; conversations name their media themselves")
    if not arguments.conversations and (arguments.media or arguments.gpus is not None):
        mistakes.append("--media and --gpus go with --conversations")
    if arguments.gpus is not None and arguments.gpus < 0:
        mistakes.append(f"--gpus {arguments.gpus}: must be 0 or more")
    if arguments.max_new_tokens < 1:
        mistakes.append(f"--max-new-tokens {arguments.max_new_tokens}: must be at least 1")
    if arguments.max_items < 0:
        mistakes.append(f"--max-items {arguments.max_items}: must be 0 or more")
    if not 0 <= arguments.temperature < float("inf"):
        mistakes.append(f"--temperature {arguments.temperature}: must be 0 or more")
    if not 0 < arguments.top_p <= 1:
        mistakes.append(f"--top-p {arguments.top_p}: must be more than 0, and 1 at most")
    if arguments.steps is not None and arguments.steps < 1:
        mistakes.append(f"--steps {arguments.steps}: must be at least 1")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _answer_file(
    arguments: Namespace,
    checkpoint: "Path | str",
    config: "ModelConfig",
    require: "list[Modality]",
    sampling: "Sampling",
    out: "Path",
) -> None:
    from jobs.replies.batch_replies import REJECTS, REPLIES, BatchSettings, answer_file

    conversations = cli.existing_file(arguments.conversations)
    media = cli.existing_folder(arguments.media) if arguments.media else conversations.parent
    plan = BatchSettings(
        checkpoint=checkpoint,
        config=config,
        architecture=arguments.architecture,
        require=require,
        sampling=sampling,
        steps=arguments.steps,
    )
    cli.start_ray()
    summary = answer_file(conversations, media, out, plan, gpus=arguments.gpus)
    before = f", {summary.before} of them before" if summary.before else ""
    noun = "conversation" if summary.rows == 1 else "conversations"
    print(f"{summary.rows} {noun}: {summary.replies} answered{before}, {summary.rejects} rejected")
    print(f"  {out / REPLIES}")
    if summary.rejects:
        print(f"  {out / REJECTS}")
    cli.note_untrained(summary.untrained)


def _answer_prompt(
    arguments: Namespace,
    checkpoint: "Path | str",
    config: "ModelConfig",
    require: "list[Modality]",
    sampling: "Sampling",
    out: "Path",
) -> None:
    from jobs.replies.reply import Request, answer
    from pipelines.media import codecs
    from pipelines.sample import Modality
    from pipelines.storage.files import write_json

    inputs = []
    for modality in Modality:
        for name in getattr(arguments, modality.value):
            medium = codecs.load(cli.existing_file(name), modality)
            try:
                codecs.decode(medium, fps=1.0)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            inputs.append(medium)
    cli.start_ray()
    request = Request(
        checkpoint=checkpoint,
        config=config,
        architecture=arguments.architecture,
        prompt=arguments.prompt,
        inputs=inputs,
        require=require,
        sampling=sampling,
        steps=arguments.steps,
    )
    said = list[str]()

    def say(piece: str) -> None:
        print(piece if said else f"reply: {piece}", end="", flush=True)
        said.append(piece)

    try:
        reply = answer(request, say)
    finally:
        if said:
            print()
    if not said:
        print("reply: (no text)")
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for number, medium in enumerate(reply.media, start=1):
        names.append(f"{number}-{medium.modality.value}.{medium.format}")
        (out / names[-1]).write_bytes(medium.data)
    notes = {name: medium.note for name, medium in zip(names, reply.media, strict=True) if medium.note}
    write_json(
        out / "reply.json",
        {"prompt": arguments.prompt, "text": reply.text, "files": names, "checkpoint": str(checkpoint)}
        | ({"notes": notes} if notes else {}),
    )
    for name in names:
        print(f"  {out / name}" + (f" ({notes[name]})" if name in notes else ""))
    if not names:
        print("  no media; --require image asks for one")
    cli.note_untrained(reply.untrained)


if __name__ == "__main__":
    cli.run(main)
