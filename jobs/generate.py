"""Answers a prompt or a file of conversations in text and media: `jobs/generate.py --checkpoint RUN --out DIR ...`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from jobs.common import cli
from jobs.common.cli import Option
from jobs.replies.options import ModelOptions, ReplyOptions, sampling

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.replies.respond import ReplySettings
    from pipelines.sample import Media

MODALITIES = ("image", "video", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Answer a prompt, or with --conversations every conversation of a file, with text and the pictures, videos and
    sounds that the model chooses to make.
    """

    model: ModelOptions
    prompt: Annotated[str | None, Option("what to say to the model", "TEXT")] = None
    image: Annotated[tuple[str, ...], Option("an input image", "F", several="append")] = ()
    video: Annotated[tuple[str, ...], Option("an input video", "F", several="append")] = ()
    audio: Annotated[tuple[str, ...], Option("an input audio", "F", several="append")] = ()
    conversations: Annotated[
        str | None,
        Option(
            'instead of --prompt: one chat per line, {"messages": [...]}; a repeated run resumes where it stopped',
            "JSONL",
        ),
    ] = None
    media: Annotated[
        str | None, Option("folder of the media of --conversations (that of the file if omitted)", "DIR")
    ] = None
    gpus: Annotated[int | None, Option("GPUs for --conversations (those available if omitted)", "N")] = None
    out: Annotated[str, Option("where replies are written", "DIR")]
    require: Annotated[tuple[str, ...], Option("media that a reply must contain", choices=MODALITIES)] = ()
    reply: ReplyOptions
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=PATH where a frozen part has moved")] = ()


def run(options: GenerateOptions) -> None:
    """Runs the model on workers: the reply to a prompt is printed as it is generated, a file is answered in batches."""
    cli.check(options, _mistakes(options))

    from jobs.common.settings import checkpoint_model
    from jobs.replies.respond import ReplySettings
    from model.checkpoints.description import SHIPPED
    from model.checkpoints.hub import find_checkpoint
    from pipelines.sample import Modality

    checkpoint = find_checkpoint(options.model.checkpoint or SHIPPED)
    out = cli.new_folder(options.out)
    settings = ReplySettings(
        checkpoint=checkpoint,
        config=checkpoint_model(checkpoint, options.overrides),
        architecture=options.model.architecture,
        require=[Modality(name) for name in options.require],
        sampling=sampling(asdict(options.reply)),
        steps=options.reply.steps,
    )
    if options.conversations:
        _answer_file(options, options.conversations, settings, out)
    else:
        _answer_prompt(options, options.prompt or "", settings, out)


def _mistakes(options: GenerateOptions) -> Iterator[str]:
    if (options.prompt is None) == (options.conversations is None):
        yield "give --prompt TEXT, or --conversations JSONL"
    if options.prompt is not None and not options.prompt.strip():
        yield "--prompt: is empty"
    if options.conversations and (options.image or options.video or options.audio):
        yield "--image, --video and --audio go with --prompt; conversations name their media themselves"
    if not options.conversations and (options.media or options.gpus is not None):
        yield "--media and --gpus go with --conversations"
    if options.gpus is not None and options.gpus < 0:
        yield f"--gpus {options.gpus}: must be 0 or more"


def _answer_file(options: GenerateOptions, file: str, settings: "ReplySettings", out: "Path") -> None:
    from jobs.replies.batch_replies import REJECTS, REPLIES, answer_file

    conversations = cli.existing_file(file)
    media = cli.existing_folder(options.media) if options.media else conversations.parent
    cli.start_ray()
    summary = answer_file(conversations, media, out, settings, gpus=options.gpus)
    before = f", {summary.before} of them before" if summary.before else ""
    noun = "conversation" if summary.rows == 1 else "conversations"
    print(f"{summary.rows} {noun}: {summary.replies} answered{before}, {summary.rejects} rejected")
    print(f"  {out / REPLIES}")
    if summary.rejects:
        print(f"  {out / REJECTS}")
    cli.note_untrained(summary.untrained)


def _answer_prompt(options: GenerateOptions, prompt: str, settings: "ReplySettings", out: "Path") -> None:
    from jobs.replies.batch_replies import answer
    from pipelines.storage.files import write_json

    inputs = _inputs(options)
    cli.start_ray()
    said = list[str]()

    def say(piece: str) -> None:
        print(piece if said else f"reply: {piece}", end="", flush=True)
        said.append(piece)

    try:
        reply = answer(settings, prompt, inputs, say)
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
        {"prompt": prompt, "text": reply.text, "files": names, "checkpoint": str(settings.checkpoint)}
        | ({"notes": notes} if notes else {}),
    )
    for name in names:
        print(f"  {out / name}" + (f" ({notes[name]})" if name in notes else ""))
    if not names:
        print("  no media; --require image asks for one")
    cli.note_untrained(reply.untrained)


def _inputs(options: GenerateOptions) -> "list[Media]":
    """The input media, each decoded once: a file that cannot be read is reported before the model is loaded."""
    from pipelines.media import codecs
    from pipelines.sample import Modality

    given = {Modality.IMAGE: options.image, Modality.VIDEO: options.video, Modality.AUDIO: options.audio}
    inputs = []
    for modality in Modality:
        for name in given[modality]:
            medium = codecs.load(cli.existing_file(name), modality)
            try:
                codecs.decode(medium, fps=1.0)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            inputs.append(medium)
    return inputs


main = cli.command(GenerateOptions, run)

if __name__ == "__main__":
    cli.run(main)
