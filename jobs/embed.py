"""Writes caption embeddings and encoder features beside the shards: `jobs/embed.py --shards SHARDS --preset PRESET`."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common import cli

if TYPE_CHECKING:
    from pathlib import Path

    from model.parts.config import ModelConfig
    from pipelines.embed.embedding import Embedded, Pool
    from pipelines.embed.encoding import EmbedTask

# Captions, and clips of media, that are encoded and kept together: as many as keep a GPU busy for a quarter of a
# second, or a core for no longer than is soon repeated.
GPU_CAPTIONS, CPU_CAPTIONS = 256, 64
GPU_CLIPS, CPU_CLIPS = 240, 15


def main(argv: Sequence[str] | None = None) -> None:
    """Embeds all prepared datasets with items of the given modalities, or one captions file."""
    from pipelines.storage.precision import DTYPES
    from pipelines.storage.sidecars import ENCODER, KINDS

    parser = cli.parser(
        "Embed captions with each decoder's own text encoder and media with ImageBind, as sidecar shards; "
        "or, with --import, import the .npy files of NExT-GPT's own tool; "
        "or, with --captions, embed one captions file into .npy files as that tool does."
    )
    parser.add_argument("--shards", metavar="SHARDS", help="the --out of jobs/prepare.py")
    parser.add_argument("--preset", default="world", help="preset that names the encoders, or your own .yaml file")
    parser.add_argument("--modality", nargs="+", choices=KINDS, help="what to embed (all if omitted)")
    parser.add_argument(
        "--latents",
        action="store_true",
        help="instead, encode the media in answers with each decoder's own VAE, for loss.denoising_weights",
    )
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="prepared datasets (all if omitted)")
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="an encoder other than the preset's, for a single --modality"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float16",
        help="how captions and latents are stored; int8 has one scale per vector",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of matrix products in all encoders; auto is bfloat16 on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"captions per batch (if omitted, {GPU_CAPTIONS} on a GPU, {CPU_CAPTIONS} on a CPU)",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use (those available if omitted)")
    parser.add_argument(
        "--import", dest="imported", metavar="DIR", help="a folder of <medium's name>.npy files to import"
    )
    parser.add_argument("--captions", metavar="JSON", help="a captions file (cc3m.json ...) instead of --shards")
    parser.add_argument("--out", metavar="DIR", help="where the .npy files of --captions go")
    cli.add_overrides(parser, "model.encoder.name=PATH")
    arguments = parser.parse_args(argv)
    arguments.modality = arguments.modality or [m for m in KINDS if not arguments.latents or m != ENCODER]
    _check(arguments)
    if arguments.captions:
        _embed_captions(arguments)
    elif arguments.imported:
        _import(arguments)
    else:
        _embed_shards(arguments)


def _check(arguments: Namespace) -> None:
    mistakes = []
    if bool(arguments.shards) == bool(arguments.captions):
        mistakes.append("give --shards SHARDS, or --captions JSON with --out DIR")
    if bool(arguments.captions) != bool(arguments.out):
        mistakes.append("--captions and --out belong together")
    if arguments.imported and arguments.captions:
        mistakes.append("--import needs --shards, --captions needs --out")
    if (arguments.model or arguments.captions or arguments.imported) and len(arguments.modality) != 1:
        mistakes.append("--model, --captions and --import are for one encoder; give exactly one --modality")
    if (arguments.captions or arguments.imported) and "encoder" in arguments.modality:
        mistakes.append("--modality encoder: --captions and --import are for image, video or audio")
    if arguments.latents and "encoder" in arguments.modality:
        mistakes.append("--modality encoder: --latents is for image, video or audio")
    if arguments.latents and (arguments.captions or arguments.imported):
        mistakes.append("--latents encodes the media of --shards; leave out --captions and --import")
    if arguments.captions and arguments.dtype == "int8":
        mistakes.append("--dtype int8: the .npy files of --captions are float32 or float16")
    if arguments.gpus is not None and arguments.gpus < 0:
        mistakes.append(f"--gpus {arguments.gpus}: must be 0 or more")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        mistakes.append(f"--batch-size {arguments.batch_size}: must be at least 1")
    try:
        if not mistakes:
            arguments.config = _model(arguments)
    except cli.UsageError as error:
        mistakes.append(str(error))
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _model(arguments: Namespace) -> "ModelConfig":
    """The model whose encoders embed; those that are used have been located."""
    from jobs.common.settings import load_model
    from model.parts.sources import ENCODER as ENCODER_KEY
    from model.parts.sources import decoder_key
    from pipelines.storage.sidecars import output_modality

    modalities = {kind: output_modality(kind) for kind in arguments.modality}
    keys = [decoder_key(m) if m else ENCODER_KEY for m in modalities.values()]
    named = [f"{keys[0]}={arguments.model}"] if arguments.model and not arguments.imported else []
    return load_model(arguments.preset, [*arguments.overrides, *named], [] if arguments.imported else keys)


def _embed_shards(arguments: Namespace) -> None:
    from pipelines.embed.embedding import embed, plan_pool

    directories = _datasets(arguments)
    kinds = [f"{modality}_latents" for modality in arguments.modality] if arguments.latents else arguments.modality
    cli.start_ray()
    pool = plan_pool(arguments.gpus)
    results = embed(directories, [_task(arguments, kind, pool) for kind in kinds], pool)
    _report(results, kinds, "embedded")
    cli.note_untrained(result.manifest.encoder_name for result in results if result.manifest.untrained)
    _account(results, cli.existing_folder(arguments.shards))


def _import(arguments: Namespace) -> None:
    from pipelines.embed.legacy_embeddings import import_embeddings

    directories, source = _datasets(arguments), cli.existing_folder(arguments.imported)
    (kind,) = arguments.modality
    cli.start_ray()
    results = import_embeddings(directories, source, kind, arguments.dtype, arguments.model or "imported")
    _report(results, [kind], "imported")


def _datasets(arguments: Namespace) -> "list[Path]":
    from pipelines.storage.shards import list_datasets

    shards = cli.existing_folder(arguments.shards)
    datasets = list_datasets(shards)
    unknown = sorted(set(arguments.datasets or ()) - set(datasets))
    if unknown:
        raise cli.UsageError(f"--datasets: {', '.join(unknown)} not in {shards}; it holds {', '.join(datasets)}")
    return [shards / name for name in arguments.datasets or datasets]


def _report(results: "Sequence[Embedded]", kinds: Sequence[str], verb: str) -> None:
    for result in results:
        manifest = result.manifest
        what = f"{manifest.items} {manifest.kind} embeddings of {'x'.join(map(str, manifest.shape))}"
        loss = f"error at most {manifest.max_error:.2g}, cosine at least {manifest.min_cosine:.8f}"
        state = f"{result.made} of {len(manifest.shards)} shards {verb} now"
        line = f"{result.dataset}: {what} by {manifest.encoder_id} ({state}); as {manifest.dtype}: {loss}"
        if manifest.precision_cosine is not None:
            line += f"; in {manifest.precision}: cosine to float32 at least {manifest.precision_cosine:.6f} in a sample"
        print(line)
    for kind in sorted(set(kinds) - {result.manifest.kind for result in results}):
        print(f"{kind}: nothing to embed")


def _account(results: "Sequence[Embedded]", shards: "Path") -> None:
    """Says how many media could not be encoded, and fails where any could not."""
    items = sum(result.manifest.items for result in results)
    failed = sum(len(result.manifest.failed) for result in results)
    print(f"all: {items} in = {items - failed} encoded + {failed} failed")
    lines = [_failure(result, shards) for result in results if result.manifest.failed]
    if lines:
        raise cli.Failures("\n".join(lines))


def _failure(result: "Embedded", shards: "Path") -> str:
    from pipelines.storage.shards import MANIFEST
    from pipelines.storage.sidecars import sidecar_folder

    first, *more = result.manifest.failed
    path = sidecar_folder(shards / result.dataset, result.manifest.encoder_id) / MANIFEST
    what = f"{len(more) + 1} of {result.manifest.items} {result.manifest.kind} embeddings could not be made"
    example = f"{result.dataset}/{first.key}: {first.reason}{' ...' * bool(more)}"
    return f"{what} ({example}); training leaves their samples out; all are listed in {path}"


def _task(arguments: Namespace, kind: str, pool: "Pool") -> "EmbedTask":
    from jobs.common.encoders import clips, encoder_factory, preprocess_factory
    from pipelines.embed.encoding import EmbedTask
    from pipelines.storage.sidecars import ENCODER, takes_media

    on_gpu = bool(pool.num_gpus)
    precision = arguments.precision
    if precision == "auto":
        precision = "bfloat16" if on_gpu else "float32"
    captions = arguments.batch_size or (GPU_CAPTIONS if on_gpu else CPU_CAPTIONS)
    factory = encoder_factory(arguments.config, kind, precision)
    return EmbedTask(
        kind=kind,
        factory=factory,
        dtype="float32" if kind == ENCODER else arguments.dtype,  # features are small, so they are stored exactly
        batch_size=(GPU_CLIPS if on_gpu else CPU_CLIPS) if takes_media(kind) else captions,
        clips=clips(kind),
        preprocess=preprocess_factory(arguments.config, kind),
        exact=factory.exact,
        memory=factory.memory,
    )


def _embed_captions(arguments: Namespace) -> None:
    from pipelines.embed.caption_files import embed_captions
    from pipelines.embed.embedding import plan_pool

    source, out = cli.existing_file(arguments.captions), cli.new_folder(arguments.out)
    (kind,) = arguments.modality
    cli.start_ray()
    pool = plan_pool(arguments.gpus)
    written, rejects = embed_captions(source, out, _task(arguments, kind, pool), pool)
    for reject in rejects:
        print(f"  rejected {reject.source}: {reject.reason}")
    total = written + len(rejects)
    print(f"{source.name}: {total} in = {written} out + {len(rejects)} rejected; {kind} embeddings in {out}")


if __name__ == "__main__":
    cli.run(main)
