"""Answers a prompt in text and media: `jobs/generate.py --checkpoint RUN --prompt TEXT --out DIR`."""

from collections.abc import Sequence

from jobs import cli

MODALITIES = ("image", "video", "audio")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the model on a worker, prints the reply's text as it comes, and writes it with its files."""
    parser = cli.parser("Answer a prompt with text and, where the model asks for them, a picture, a video, a sound.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a checkpoint, a run, or a hub id")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to say to the model")
    for modality in MODALITIES:
        parser.add_argument(f"--{modality}", metavar="F", action="append", default=[], help=f"an input {modality}")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the reply goes")
    parser.add_argument("--require", nargs="+", choices=MODALITIES, default=[], help="media the reply must hold")
    parser.add_argument("--max-items", type=int, default=4, metavar="N", help="the most media a reply may hold")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="length limit of the reply")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens that add up to it")
    parser.add_argument("--seed", type=int, default=0, help="of the text and of the decoders")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps, instead of each decoder's own number")
    arguments = parser.parse_args(argv)

    from jobs.reply import Request, answer
    from model.description import latest_checkpoint
    from model.hub import is_repo_id
    from model.query import Sampling
    from pipelines import media as media_files
    from pipelines.files import write_json
    from pipelines.sample import Modality

    mistakes = []
    if not arguments.prompt.strip():
        mistakes.append("--prompt: is empty")
    if arguments.max_new_tokens < 1:
        mistakes.append(f"--max-new-tokens {arguments.max_new_tokens}: must be at least 1")
    if arguments.max_items < 0:
        mistakes.append(f"--max-items {arguments.max_items}: must be 0 or more")
    if arguments.temperature < 0:
        mistakes.append(f"--temperature {arguments.temperature}: must be 0 or more")
    if not 0 < arguments.top_p <= 1:
        mistakes.append(f"--top-p {arguments.top_p}: must be more than 0, and 1 at most")
    if arguments.steps is not None and arguments.steps < 1:
        mistakes.append(f"--steps {arguments.steps}: must be at least 1")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))
    checkpoint = arguments.checkpoint if is_repo_id(arguments.checkpoint) else latest_checkpoint(arguments.checkpoint)
    out = cli.new_folder(arguments.out)
    inputs = []
    for modality in Modality:
        for name in getattr(arguments, modality.value):
            medium = media_files.load(cli.existing_file(name), modality)
            try:
                media_files.decode(medium, fps=1.0)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            inputs.append(medium)

    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        max_items=arguments.max_items,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    cli.start_ray()
    request = Request(
        checkpoint=checkpoint,
        prompt=arguments.prompt,
        inputs=inputs,
        require=[Modality(name) for name in arguments.require],
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
    write_json(
        out / "reply.json",
        {"prompt": arguments.prompt, "text": reply.text, "files": names, "checkpoint": str(checkpoint)},
    )
    for name in names:
        print(f"  {out / name}")
    if not names:
        print("  no media; --require image asks for one")
    cli.note_untrained(reply.untrained)


if __name__ == "__main__":
    cli.run(main)
