"""Answers a prompt or a file of conversations in text and media: `jobs/generate.py --checkpoint RUN --out DIR ...`."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common import cli
from jobs.replies import options

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.replies.respond import ReplySettings
    from pipelines.sample import Media

MODALITIES = ("image", "video", "audio")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the model on workers: the reply to a prompt is printed as it is generated, a file is answered in batches."""
    parser = cli.parser(
        "Answer a prompt, or with --conversations every conversation of a file, with text and the pictures, videos and "
        "sounds that the model chooses to make."
    )
    options.add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="what to say to the model")
    for modality in MODALITIES:
        parser.add_argument(f"--{modality}", metavar="F", action="append", default=[], help=f"an input {modality}")
    parser.add_argument(
        "--conversations",
        metavar="JSONL",
        help='instead of --prompt: one chat per line, {"messages": [...]}; a repeated run resumes where it stopped',
    )
    parser.add_argument(
        "--media", metavar="DIR", help="folder of the media of --conversations (that of the file if omitted)"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs for --conversations (those available if omitted)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where replies are written")
    parser.add_argument("--require", nargs="+", choices=MODALITIES, default=[], help="media that a reply must contain")
    options.add_options(parser, "max_items", "max_new_tokens", "temperature", "top_p", "seed", "steps")
    cli.add_overrides(parser, "model.llm.name=PATH where a frozen part has moved")
    arguments = parser.parse_args(argv)
    _check(arguments)

    from jobs.common.settings import checkpoint_model
    from jobs.replies.respond import ReplySettings
    from model.checkpoints.hub import find_checkpoint
    from pipelines.sample import Modality

    checkpoint = find_checkpoint(arguments.checkpoint)
    out = cli.new_folder(arguments.out)
    settings = ReplySettings(
        checkpoint=checkpoint,
        config=checkpoint_model(checkpoint, arguments.overrides),
        architecture=arguments.architecture,
        require=[Modality(name) for name in arguments.require],
        sampling=options.sampling(vars(arguments)),
        steps=arguments.steps,
    )
    answer = _answer_file if arguments.conversations else _answer_prompt
    answer(arguments, settings, out)


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
    mistakes += options.mistakes(arguments)
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _answer_file(arguments: Namespace, settings: "ReplySettings", out: "Path") -> None:
    from jobs.replies.batch_replies import REJECTS, REPLIES, answer_file

    conversations = cli.existing_file(arguments.conversations)
    media = cli.existing_folder(arguments.media) if arguments.media else conversations.parent
    cli.start_ray()
    summary = answer_file(conversations, media, out, settings, gpus=arguments.gpus)
    before = f", {summary.before} of them before" if summary.before else ""
    noun = "conversation" if summary.rows == 1 else "conversations"
    print(f"{summary.rows} {noun}: {summary.replies} answered{before}, {summary.rejects} rejected")
    print(f"  {out / REPLIES}")
    if summary.rejects:
        print(f"  {out / REJECTS}")
    cli.note_untrained(summary.untrained)


def _answer_prompt(arguments: Namespace, settings: "ReplySettings", out: "Path") -> None:
    from jobs.replies.batch_replies import answer
    from pipelines.storage.files import write_json

    inputs = _inputs(arguments)
    cli.start_ray()
    said = list[str]()

    def say(piece: str) -> None:
        print(piece if said else f"reply: {piece}", end="", flush=True)
        said.append(piece)

    try:
        reply = answer(settings, arguments.prompt, inputs, say)
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
        {"prompt": arguments.prompt, "text": reply.text, "files": names, "checkpoint": str(settings.checkpoint)}
        | ({"notes": notes} if notes else {}),
    )
    for name in names:
        print(f"  {out / name}" + (f" ({notes[name]})" if name in notes else ""))
    if not names:
        print("  no media; --require image asks for one")
    cli.note_untrained(reply.untrained)


def _inputs(arguments: Namespace) -> "list[Media]":
    """The input media, each decoded once: a file that cannot be read is reported before the model is loaded."""
    from pipelines.media import codecs
    from pipelines.sample import Modality

    inputs = []
    for modality in Modality:
        for name in getattr(arguments, modality.value):
            medium = codecs.load(cli.existing_file(name), modality)
            try:
                codecs.decode(medium, fps=1.0)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            inputs.append(medium)
    return inputs


if __name__ == "__main__":
    cli.run(main)
