"""Writes caption embeddings and encoder features beside the shards: `jobs/embed.py --shards SHARDS --preset PRESET`."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import cli

if TYPE_CHECKING:
    from pipelines.embed import EmbedTask

MEDIA_BATCH = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Embeds every prepared dataset that has items of the modalities asked for, or one captions file."""
    from pipelines.sidecars import KINDS

    parser = cli.parser(
        "Embed captions with each decoder's own text encoder and media with ImageBind, as sidecar shards; "
        "or, with --captions, one captions file into .npy files as NExT-GPT's own tool does."
    )
    parser.add_argument("--shards", metavar="SHARDS", help="the --out of jobs/prepare.py")
    parser.add_argument("--preset", default="tiny", help="names the encoders")
    parser.add_argument("--modality", nargs="+", choices=KINDS, default=list(KINDS), help="what to embed")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="prepared datasets; without it, all")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="another encoder than the preset's, for one --modality")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float16", help="how captions are stored")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="captions encoded at once")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use; without it, those that are up")
    parser.add_argument("--captions", metavar="JSON", help="a captions file (cc3m.json ...) instead of --shards")
    parser.add_argument("--out", metavar="DIR", help="where the .npy files of --captions go")
    arguments = parser.parse_args(argv)
    _check(arguments)
    if arguments.captions:
        _embed_captions(arguments)
    else:
        _embed_shards(arguments)


def _check(arguments: Namespace) -> None:
    from model.config import load_preset

    mistakes = []
    try:
        arguments.config = load_preset(arguments.preset)
    except ValueError as error:
        mistakes.append(f"--preset: {error}")
    if bool(arguments.shards) == bool(arguments.captions):
        mistakes.append("give --shards SHARDS, or --captions JSON with --out DIR")
    if bool(arguments.captions) != bool(arguments.out):
        mistakes.append("--captions and --out belong together")
    if (arguments.model or arguments.captions) and len(arguments.modality) != 1:
        mistakes.append("--model and --captions are of one encoder, so give one --modality with them")
    if arguments.captions and "encoder" in arguments.modality:
        mistakes.append("--modality encoder: --captions are embedded for image, video or audio")
    if arguments.gpus is not None and arguments.gpus < 0:
        mistakes.append(f"--gpus {arguments.gpus}: must be 0 or more")
    if arguments.batch_size < 1:
        mistakes.append(f"--batch-size {arguments.batch_size}: must be at least 1")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _embed_shards(arguments: Namespace) -> None:
    from pipelines.embed import embed, plan_pool
    from pipelines.shards import list_datasets

    shards = cli.existing_folder(arguments.shards)
    datasets = list_datasets(shards)
    unknown = sorted(set(arguments.datasets or ()) - set(datasets))
    if unknown:
        raise cli.UsageError(f"--datasets: {', '.join(unknown)} not in {shards}; it holds {', '.join(datasets)}")

    cli.start_ray()
    tasks = [_task(arguments, kind) for kind in arguments.modality]
    results = embed([shards / name for name in arguments.datasets or datasets], tasks, plan_pool(arguments.gpus))
    for result in results:
        manifest = result.manifest
        what = f"{manifest.items} {manifest.kind} embeddings of {'x'.join(map(str, manifest.shape))}"
        state = f"{result.made} of {len(manifest.shards)} shards embedded now"
        print(f"{result.dataset}: {what} by {manifest.encoder_id} ({state})")
    for kind in sorted(set(arguments.modality) - {result.manifest.kind for result in results}):
        print(f"{kind}: nothing to embed")
    cli.note_untrained(result.manifest.encoder_name for result in results if result.manifest.untrained)


def _task(arguments: Namespace, kind: str) -> "EmbedTask":
    from jobs.encoders import encoder_factory
    from pipelines.embed import EmbedTask
    from pipelines.sidecars import ENCODER

    # Features are small and media large: they are kept exact, and encoded few at a time.
    dtype, size = ("float32", MEDIA_BATCH) if kind == ENCODER else (arguments.dtype, arguments.batch_size)
    factory = encoder_factory(arguments.config, kind, arguments.model)
    return EmbedTask(kind=kind, factory=factory, dtype=dtype, batch_size=size)


def _embed_captions(arguments: Namespace) -> None:
    from pipelines.captions import embed_captions
    from pipelines.embed import plan_pool

    source, out = cli.existing_file(arguments.captions), cli.new_folder(arguments.out)
    (kind,) = arguments.modality
    cli.start_ray()
    pool = plan_pool(arguments.gpus)
    written, rejects = embed_captions(source, out, _task(arguments, kind), pool)
    for reject in rejects:
        print(f"  rejected {reject.source}: {reject.reason}")
    total = written + len(rejects)
    print(f"{source.name}: {total} in = {written} out + {len(rejects)} rejected; {kind} embeddings in {out}")


if __name__ == "__main__":
    cli.run(main)
