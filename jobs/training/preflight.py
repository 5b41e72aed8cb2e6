"""Checks of a stage before it starts; one line per mistake."""

import re
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from jobs.common.encoders import known_ids
from model.checkpoints.description import check_compatible, read_config
from model.parts.builtin import BUILTIN
from model.parts.families import caption_shape, latent_shape, noise_kind
from model.parts.published import described, is_here
from model.runs.trackers import check_tracker
from model.training.train_settings import TrainSettings
from pipelines.handover.stage_samples import PlannedView, sidecar_of
from pipelines.sample import Modality
from pipelines.storage.files import is_local
from pipelines.storage.sidecars import ENCODER, LATENTS, input_modality, is_features, output_modality

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Per trained weight in a checkpoint: the weight, its float32 copy, and two moments of the optimizer.
_BYTES_PER_WEIGHT = 16
_LIBRARIES = ("torch", "deepspeed")


def mistakes(
    settings: TrainSettings,
    views: Sequence[PlannedView],
    run: Path,
    init: Path | None,
    remarks: list[str] | None = None,
) -> Iterator[str]:
    """What would make a stage fail later, or spoil its result; `remarks` on how the LLM is trained are added."""
    yield from _llm(settings, [] if remarks is None else remarks)
    for view in views:
        unfit = list(_shapes(settings, view))
        yield from unfit
        yield from _encoders(settings, view)
        yield from _captions(settings, view) if not unfit else ()
    yield from _decoders(settings)
    yield from _denoising(settings, views)
    yield from _batches(settings)
    yield from _start(settings, init)
    yield from _versions()
    yield from _tracker(settings)
    yield from _disk(settings, run)


def notes(checkpoint: Path) -> Iterator[str]:
    """What may change the last digits when a run is resumed from a checkpoint."""
    for library, there in read_config(checkpoint)["versions"].items():
        if library in _LIBRARIES and there != version(library):
            yield f"the run was begun with {library} {there}, here is {version(library)}: last digits may differ"


def _shapes(settings: TrainSettings, view: PlannedView) -> Iterator[str]:
    preset = settings.model.preset
    for kind in view.sidecars:
        manifest = sidecar_of(view, kind)
        flag = f"--modality {kind}"
        if is_features(kind):
            if not manifest.items:
                continue
            expected = list(settings.model.encoder.inputs[input_modality(kind)].shape)
            flag = f"--modality {ENCODER}"
        elif kind in LATENTS:
            if not manifest.items:
                continue
            modality = Modality(kind.removesuffix("_latents"))
            try:
                expected = list(latent_shape(modality, described(settings.model.outputs[modality].decoder)))
            except (ValueError, OSError):  # a decoder that only the workers can reach
                continue
            flag = f"--latents --modality {modality}"
        elif Modality(kind) in settings.model.outputs:
            output = settings.model.outputs[Modality(kind)]
            expected = [output.num_queries, output.dim]
        else:
            yield f"{view.name}: has {kind} outputs, but preset {preset} makes none"
            continue
        if manifest.shape != expected:
            yield (
                f"{view.name}: {kind} embeddings by {manifest.encoder_name} are {_by(manifest.shape)}, preset "
                f"{preset} takes {_by(expected)}; run jobs/embed.py --preset {preset} "
                f"{flag}, or train a preset that takes these"
            )


def _encoders(settings: TrainSettings, view: PlannedView) -> Iterator[str]:
    """Compares what embedded a view's input items with the preset's encoders, as far as this machine remembers them."""
    kinds = [kind for kind in view.sidecars if is_features(kind)]
    embedded = sum(sidecar_of(view, kind).items for kind in kinds)
    if kinds and embedded < view.manifest.input_items:
        missing = view.manifest.input_items - embedded
        yield (
            f"{view.name}: {missing} of its {view.manifest.input_items} input items are of a modality for which preset "
            f"{settings.model.preset} has no encoder; name one under model.encoder, or leave the dataset out"
        )
    for kind in kinds:
        manifest, known = sidecar_of(view, kind), known_ids(settings.model, kind)
        if manifest.items and known and manifest.made_by.removesuffix("-bfloat16") not in known:
            yield (
                f"{view.name}: {kind} embeddings are by {manifest.made_by}, the preset's encoder is {known[0]}; run "
                f"jobs/embed.py --preset {settings.model.preset} --modality {ENCODER}, or train a preset of the former"
            )


def _captions(settings: TrainSettings, view: PlannedView) -> Iterator[str]:
    """Compares what embedded a view's captions and latents with the preset's decoders, as `_encoders` does.

    The same weights may be in a folder of another name. What was imported is of nobody knows which encoder.
    """
    for kind in view.sidecars:
        modality = output_modality(kind)
        if modality is None or not is_here(settings.model.outputs[modality].decoder):
            continue
        manifest, known = sidecar_of(view, kind), known_ids(settings.model, kind)
        is_known = not known or _weights(manifest.made_by) in map(_weights, known)
        if manifest.items and not is_known and f"{kind}-imported-" not in manifest.encoder_id:
            flags = "--latents " * (kind in LATENTS) + f"--modality {modality}"
            if manifest.captions != "original":
                flags += f" --which-captions {manifest.captions}"
            yield (
                f"{view.name}: {kind} embeddings are by {manifest.made_by}, the preset's decoder has {known[0]}; "
                f"run jobs/embed.py --preset {settings.model.preset} {flags}, or train a preset of the former"
            )


def _weights(encoder_id: str) -> str:
    """The part of an encoder's id that is a hash of its weights and settings."""
    return encoder_id.removesuffix("-bfloat16").rpartition("-")[2]


def _decoders(settings: TrainSettings) -> Iterator[str]:
    """Compares the preset's widths with the decoders' own, where these are on this machine or described."""
    for modality, output in settings.model.outputs.items():
        decoder = described(output.decoder)
        if not _can_be_read(decoder):
            continue
        try:
            shape = caption_shape(modality, decoder)
        except (ValueError, OSError) as error:
            yield f"model.outputs.{modality}.decoder: {str(error).replace(decoder, output.decoder)}"
            continue
        if shape != (output.num_queries, output.dim):
            yield (
                f"model.outputs.{modality}: {output.num_queries}x{output.dim}, but {output.decoder} takes "
                f"{_by(shape)}; set num_queries and dim to these"
            )


def _denoising(settings: TrainSettings, views: Sequence[PlannedView]) -> Iterator[str]:
    """Denoising without latents, or with a scheduler whose prediction has no loss, if that is known here."""
    for modality in settings.loss.denoised:
        kind = f"{modality}_latents"
        if views and not any(sidecar_of(view, kind).items for view in views if kind in view.sidecars):
            yield (
                f"loss.denoising_weights: {modality}, but no dataset has {modality} media in its answers; leave it out"
            )
        name = settings.model.outputs[modality].decoder
        decoder = described(name)
        if _can_be_read(decoder):
            try:
                noise_kind(modality, decoder)
            except (ValueError, OSError) as error:
                if _is_known(modality, decoder):  # of another family, `_decoders` tells
                    yield f"loss.denoising_weights: {modality}: {str(error).replace(decoder, name)}"


def _can_be_read(decoder: str) -> bool:
    return decoder.startswith(BUILTIN) or Path(decoder).is_dir()


def _is_known(modality: Modality, decoder: str) -> bool:
    try:
        caption_shape(modality, decoder)
    except (ValueError, OSError):
        return False
    return True


def _batches(settings: TrainSettings) -> Iterator[str]:
    workers = settings.workers
    if isinstance(workers, tuple):
        if workers[0] > workers[1]:
            yield f"workers: [{workers[0]}, {workers[1]}] must be the fewest, then the most"
        workers = workers[1]
    if workers is not None and workers > settings.num_micro_batches:
        yield (
            f"workers: {workers}, but batch_size={settings.batch_size} in micro-batches of "
            f"{settings.micro_batch_size} gives work to {settings.num_micro_batches}; use "
            f"workers={settings.num_micro_batches} or micro_batch_size={max(1, settings.batch_size // workers)}"
        )


def _llm(settings: TrainSettings, remarks: list[str]) -> Iterator[str]:
    """Why the LLM cannot be trained, if it is at hand."""
    from model.core.probe import probe_llm

    try:
        remarks += probe_llm(settings.model, adapter=settings.stage == 3)
    except ValueError as error:
        yield from str(error).splitlines()
    except OSError:  # an LLM that only the workers can reach
        return


def _start(settings: TrainSettings, init: Path | None) -> Iterator[str]:
    if init is not None:
        try:
            check_compatible(settings.model, init)
        except (ValueError, FileNotFoundError) as error:
            yield str(error)


def _tracker(settings: TrainSettings) -> Iterator[str]:
    try:
        check_tracker(settings.tracker)
    except ValueError as error:
        yield str(error)


def _versions() -> Iterator[str]:
    """Compares installed packages with the project's requirements."""
    if not PROJECT.is_file():
        return
    for text in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        wanted = Requirement(text)
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield f"{wanted.name}: not installed; the project takes {wanted}"
            continue
        if not wanted.specifier.contains(re.sub(r"\+.*", "", found), prereleases=True):
            yield f"{wanted.name}: {found} is installed, the project takes {wanted.specifier}"


def _disk(settings: TrainSettings, run: Path) -> Iterator[str]:
    """Checks the disk space for checkpoints that exist at once: those kept, the best, and the one being written."""
    if not is_local(run):
        return
    from model.footprint.footprint import trained_weights

    place = next(folder for folder in (run, *run.parents) if folder.is_dir())
    try:
        needed = trained_weights(settings.model) * _BYTES_PER_WEIGHT * (settings.keep_last + 2)
    except (ValueError, OSError):  # an LLM that is no use, or that only the workers can reach
        return
    free = shutil.disk_usage(place).free
    if free < needed:
        yield (
            f"{run}: {free / 1e9:.1f} GB free, but its checkpoints may take {needed / 1e9:.1f} GB; free some, or use "
            f"keep_last=1"
        )


def _by(shape: Sequence[Any]) -> str:
    return "x".join(map(str, shape))
