"""Writes caption embeddings and encoder features beside the shards: `jobs/embed.py --shards SHARDS --preset PRESET`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.storage.precision import DTYPES
from pipelines.storage.sidecars import ENCODER, KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from model.parts.config import ModelConfig
    from pipelines.embed.embedding import Embedded, Pool
    from pipelines.embed.encoding import EmbedTask

# Captions, and clips of media, that are encoded and kept together: as many as keep a GPU busy for a quarter of a
# second, or a core for no longer than is soon repeated.
GPU_CAPTIONS, CPU_CAPTIONS = 256, 64
GPU_CLIPS, CPU_CLIPS = 240, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Embed captions with each decoder's own text encoder and media with their encoders, as sidecar shards; or, with
    --import, import the .npy files of NExT-GPT's own tool; or, with --captions, embed one captions file into .npy
    files as that tool does.
    """

    shards: Annotated[str | None, Option("the --out of jobs/prepare.py", "SHARDS")] = None
    preset: Annotated[str, Option("preset that names the encoders, or your own .yaml file")] = "world"
    modality: Annotated[tuple[str, ...] | None, Option("what to embed (all if omitted)", choices=KINDS)] = None
    latents: Annotated[
        bool,
        Option("instead, encode the media in answers with each decoder's own VAE, for loss.denoising_weights"),
    ] = False
    which_captions: Annotated[
        Literal["original", "new", "both"],
        Option("the captions to embed: the datasets' own, those of jobs/recaption.py, or both; `captions` of a stage"),
    ] = "original"
    datasets: Annotated[tuple[str, ...] | None, Option("prepared datasets (all if omitted)", "NAME")] = None
    model: Annotated[
        str | None, Option("an encoder other than the preset's, for a single --modality", "NAME_OR_PATH")
    ] = None
    dtype: Annotated[
        str, Option("how captions, latents and patches are stored; int8 has one scale per vector", choices=DTYPES)
    ] = "float16"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("precision of matrix products in all encoders; auto is bfloat16 on a GPU, float32 on a CPU"),
    ] = "auto"
    batch_size: Annotated[
        int | None,
        Option(f"captions per batch (if omitted, {GPU_CAPTIONS} on a GPU, {CPU_CAPTIONS} on a CPU)", "N", least=1),
    ] = None
    gpus: Annotated[int | None, Option("GPUs to use (those available if omitted)", "N")] = None
    imported: Annotated[
        str | None, Option("a folder of <medium's name>.npy files to import", "DIR", flag="--import")
    ] = None
    captions: Annotated[str | None, Option("a captions file (cc3m.json ...) instead of --shards", "JSON")] = None
    out: Annotated[str | None, Option("where the .npy files of --captions go", "DIR")] = None
    overrides: Annotated[tuple[str, ...], cli.overrides("model.encoder.name=PATH")] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What --modality names, or all that there is to embed."""
        return self.modality or tuple(kind for kind in KINDS if not self.latents or kind != ENCODER)


def run(options: EmbedOptions) -> None:
    """Embeds all prepared datasets with items of the given modalities, or one captions file."""
    cli.check(options, _mistakes(options))
    config = _model(options)
    if options.captions:
        _embed_captions(options, config)
    elif options.imported:
        _import(options, options.imported)
    else:
        _embed_shards(options, config)


def _mistakes(options: EmbedOptions) -> Iterator[str]:
    if bool(options.shards) == bool(options.captions):
        yield "give --shards SHARDS, or --captions JSON with --out DIR"
    if bool(options.captions) != bool(options.out):
        yield "--captions and --out belong together"
    if options.imported and options.captions:
        yield "--import needs --shards, --captions needs --out"
    if (options.model or options.captions or options.imported) and len(options.kinds) != 1:
        yield "--model, --captions and --import are for one encoder; give exactly one --modality"
    if (options.captions or options.imported) and ENCODER in options.kinds:
        yield "--modality encoder: --captions and --import are for image, video or audio"
    if options.latents and ENCODER in options.kinds:
        yield "--modality encoder: --latents is for image, video or audio"
    if options.latents and (options.captions or options.imported):
        yield "--latents encodes the media of --shards; leave out --captions and --import"
    if options.which_captions != "original" and (options.captions or options.imported):
        yield "--which-captions is for the captions of --shards; leave out --captions and --import"
    if options.captions and options.dtype == "int8":
        yield "--dtype int8: the .npy files of --captions are float32 or float16"
    if options.gpus is not None and options.gpus < 0:
        yield f"--gpus {options.gpus}: must be 0 or more"


def _model(options: EmbedOptions) -> "ModelConfig":
    """The model whose encoders embed; those that are used have been located."""
    from jobs.common.settings import load_model
    from model.parts.sources import ENCODER as ENCODER_KEY
    from model.parts.sources import decoder_key, encoder_key
    from pipelines.sample import Modality
    from pipelines.storage.sidecars import output_modality

    modalities = {kind: output_modality(kind) for kind in options.kinds}
    keys = [decoder_key(m) if m else ENCODER_KEY for m in modalities.values()]
    more = map(encoder_key, Modality) if ENCODER in modalities else ()
    named = [f"{keys[0]}={options.model}"] if options.model and not options.imported else []
    return load_model(options.preset, [*options.overrides, *named], [] if options.imported else [*keys, *more])


def _embed_shards(options: EmbedOptions, config: "ModelConfig") -> None:
    from pipelines.embed.embedding import embed, plan_pool

    directories = cli.prepared_datasets(options.shards or "", options.datasets)
    kinds = _sidecar_kinds(options, config)
    cli.start_ray()
    pool = plan_pool(options.gpus)
    results = embed(directories, [_task(options, config, kind, pool) for kind in kinds], pool, options.which_captions)
    _report(results, kinds, "embedded")
    cli.note_untrained(result.manifest.encoder_name for result in results if result.manifest.untrained)
    _note_unencoded(directories, results, kinds)
    _account(results, cli.existing_folder(options.shards or ""))


def _sidecar_kinds(options: EmbedOptions, config: "ModelConfig") -> list[str]:
    """The kinds of sidecars that are asked for: `encoder` is one for each of the model's encoders."""
    from jobs.common.encoders import feature_kinds

    if options.latents:
        return [f"{modality}_latents" for modality in options.kinds]
    return [one for kind in options.kinds for one in (feature_kinds(config) if kind == ENCODER else [kind])]


def _note_unencoded(directories: "Sequence[Path]", results: "Sequence[Embedded]", kinds: Sequence[str]) -> None:
    """Says of which datasets some input items are of a modality that has no encoder."""
    from pipelines.storage.shards import Manifest
    from pipelines.storage.sidecars import is_features

    for directory in directories if any(map(is_features, kinds)) else ():
        of_dataset = [one.manifest for one in results if one.dataset == directory.name]
        items = sum(manifest.items for manifest in of_dataset if is_features(manifest.kind))
        if missing := Manifest.read(directory).input_items - items:
            what = f"{missing} input items are of a modality without an encoder under model.encoder"
            print(f"note: {directory.name}: {what}")


def _import(options: EmbedOptions, folder: str) -> None:
    from pipelines.embed.legacy_embeddings import import_embeddings

    directories, source = cli.prepared_datasets(options.shards or "", options.datasets), cli.existing_folder(folder)
    (kind,) = options.kinds
    cli.start_ray()
    results = import_embeddings(directories, source, kind, options.dtype, options.model or "imported")
    _report(results, [kind], "imported")


def _report(results: "Sequence[Embedded]", kinds: Sequence[str], verb: str) -> None:
    for result in results:
        manifest = result.manifest
        if not manifest.items:
            print(f"{result.dataset}: holds nothing for {manifest.kind}")
            continue
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


def _task(options: EmbedOptions, config: "ModelConfig", kind: str, pool: "Pool") -> "EmbedTask":
    from jobs.common.encoders import chosen_precision, clips, encoder_factory, is_pooled, preprocess_factory
    from pipelines.embed.encoding import EmbedTask
    from pipelines.storage.sidecars import takes_media

    on_gpu = bool(pool.num_gpus)
    captions = options.batch_size or (GPU_CAPTIONS if on_gpu else CPU_CAPTIONS)
    factory = encoder_factory(config, kind, chosen_precision(options.precision, pool))
    return EmbedTask(
        kind=kind,
        factory=factory,
        dtype="float32" if is_pooled(config, kind) else options.dtype,  # these are small, so they are stored exactly
        batch_size=(GPU_CLIPS if on_gpu else CPU_CLIPS) if takes_media(kind) else captions,
        clips=clips(kind),
        preprocess=preprocess_factory(config, kind),
        exact=factory.exact,
        memory=factory.memory,
    )


def _embed_captions(options: EmbedOptions, config: "ModelConfig") -> None:
    from pipelines.embed.caption_files import embed_captions
    from pipelines.embed.embedding import plan_pool

    source, out = cli.existing_file(options.captions or ""), cli.new_folder(options.out or "")
    (kind,) = options.kinds
    cli.start_ray()
    pool = plan_pool(options.gpus)
    written, rejects = embed_captions(source, out, _task(options, config, kind, pool), pool)
    for reject in rejects:
        print(f"  rejected {reject.source}: {reject.reason}")
    total = written + len(rejects)
    print(f"{source.name}: {total} in = {written} out + {len(rejects)} rejected; {kind} embeddings in {out}")


main = cli.command(EmbedOptions, run)

if __name__ == "__main__":
    cli.run(main)
