"""The families of diffusion decoders: shapes, defaults and sizes from their configuration files.

No weights are loaded and no deep learning library is imported, so that shapes can be checked before anything starts.
"""

import json
import struct
from functools import partial
from itertools import chain
from math import ceil, prod
from pathlib import Path
from typing import Any

from model.parts.builtin import resolve
from model.parts.family_table import FAMILIES, ConditionShape, Family, Read, Settings, frame_samples, frame_scale, scale
from pipelines.sample import Modality
from pipelines.storage.files import read_json

FULL_SIZE_CHANNELS = 128  # the narrowest first UNet block among released decoders (AudioLDM s-full)
_CHANNELS = 8  # of a transformer's width count as one: the narrowest released one has 1,152 (Sana 0.6B)
# Best for the decoders in model/foundations: more steps or other guidance score lower.
_SMALL_STEPS = 5

# The components of a pipeline that have weights; a safety checker is loaded only on request.
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_PROJECTION = "projection_model"  # of text and seconds (Stable Audio)
MODELS = (*TEXTS, _PROJECTION, "unet", "transformer", "transformer_2", "vae", "vocoder")
# Of the diffusion schedulers' prediction types, those with a denoising loss; the first is diffusers' default.
_PREDICTED = ("epsilon", "v_prediction", "sample")


def wanted(modality: Modality) -> str:
    """The pipelines that a modality's decoder may be, in words."""
    *others, last = (family.pipeline for family in FAMILIES.values() if family.modality is modality)
    return f"{', '.join(others)} or {last}" if others else last


def family_of(modality: Modality, name: str) -> Family:
    """The family of a decoder; raises as `locate` does."""
    return FAMILIES[_read_json(locate(modality, name), "model_index.json")["_class_name"]]


def components(modality: Modality, name: str) -> dict[str, tuple[str, str]]:
    """A decoder's components that are there, each with library and class; raises as `locate` does."""
    index = _read_json(locate(modality, name), "model_index.json")
    return {part: (said[0], said[1]) for part, said in index.items() if isinstance(said, list) and said[0]}


def locate(modality: Modality, name: str) -> str:
    """Resolves a name (built-in part, directory or hub id) and checks that it is a pipeline of the modality.

    Raises FileNotFoundError if there is no pipeline, ValueError if it belongs to another modality.
    """
    path = resolve(name)
    try:
        found = _read_json(path, "model_index.json")["_class_name"]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name}: no diffusers pipeline (model_index.json) found; "
            f"give the directory or hub id of a {wanted(modality)}"
        ) from error
    if found not in FAMILIES or FAMILIES[found].modality is not modality:
        raise ValueError(f"{name}: is a {found}, but {modality} needs a {wanted(modality)}")
    return path


def text_files(modality: Modality, name: str) -> list[Path]:
    """The files that embed a decoder's captions; none where some are not on this machine. Raises as `locate` does."""
    path = locate(modality, name)
    index = _local(path, "model_index.json")
    folders = [index.parent / part for part in components(modality, name) if part in (*TEXTS, *TOKENIZERS, _PROJECTION)]
    found = [sorted(file for file in folder.glob("*") if file.is_file()) for folder in folders]
    is_whole = all(
        any(folder.name in TOKENIZERS or file.suffix in (".safetensors", ".bin") for file in files)
        for folder, files in zip(folders, found, strict=True)
    )
    return [index, *chain.from_iterable(found)] if is_whole else []


def condition_shape(modality: Modality, name: str) -> ConditionShape:
    """What a decoder is told; raises as `locate` does."""
    return family_of(modality, name).condition(_reader(modality, name))


def caption_shape(modality: Modality, name: str) -> tuple[int, int]:
    """The shape (L, D) of a decoder's condition as one array; raises as `locate` does."""
    return condition_shape(modality, name).rows


def latent_shape(modality: Modality, name: str, sizes: Settings | None = None) -> tuple[int, ...]:
    """The shape of one item's latents at the decoder's default size, overridden by `sizes`; raises as `locate`.

    Image (C, H, W), video (C, T, H, W), audio (C, frames, mel bands) or (C, T), measured in latents.
    """
    family, read = family_of(modality, name), _reader(modality, name)
    grid = family.grid({**default_settings(modality, name), **(sizes or {})}, read)
    frames, sides = (grid[:1], grid[1:]) if modality is Modality.VIDEO else ((), grid)
    side, packing = scale(read) * family.packing, family.packing
    return (
        read(family.denoiser_part)["in_channels"] // packing**2,
        *((count - 1) // frame_scale(read) + 1 for count in frames),
        *(ceil(length / side) * packing for length in sides),
    )


def latent_grid(modality: Modality, name: str) -> tuple[int, ...]:
    """Frames (1 unless a video), rows and columns of what a decoder's VAE takes; raises as `locate`.

    An autoencoder of waveforms takes one row, whose columns are samples.
    """
    _, *axes = latent_shape(modality, name)
    read = _reader(modality, name)
    count = (axes.pop(0) - 1) * frame_scale(read) + 1 if modality is Modality.VIDEO else 1
    *rows, columns = (length * scale(read) for length in axes)
    return count, *(rows or [1]), columns


def default_settings(modality: Modality, name: str) -> Settings:
    """A decoder's default settings: sizes in pixels and seconds, steps, guidance."""
    family, read = family_of(modality, name), _reader(modality, name)
    native = family.native(read)
    if not _is_full_size(family, read):
        return {"num_inference_steps": _SMALL_STEPS, "guidance_scale": family.small_guidance, **native}
    return {**native, **family.full_size}


def is_full_size(modality: Modality, name: str) -> bool:
    """Whether a decoder is as wide as released ones, unlike our small ones; raises as `locate`."""
    return _is_full_size(family_of(modality, name), _reader(modality, name))


def text_components(modality: Modality, name: str) -> list[str]:
    """The text encoders and tokenizers that a decoder's index names, be they there or left out; raises as `locate`."""
    index = _read_json(locate(modality, name), "model_index.json")
    return [part for part in (*TEXTS, *TOKENIZERS) if part in index]


def sound_format(modality: Modality, name: str) -> tuple[int, int] | None:
    """Samples a second and channels of the waveforms that a decoder's VAE encodes; None if it encodes spectrograms."""
    vae = _reader(modality, name)("vae")
    return (vae["sampling_rate"], vae["audio_channels"]) if "downsampling_ratios" in vae else None


def vocoder_hop(modality: Modality, name: str) -> int | None:
    """Samples of a sound that a decoder's vocoder makes of a frame of the spectrogram; None if it has no vocoder."""
    read = _reader(modality, name)
    return frame_samples(read) if "vocoder" in read("model_index.json") else None


def denoising_sizes(modality: Modality, name: str) -> Settings:
    """What a denoiser is told of its latents' size: the default settings, and what makes of pixels a latent.

    Flags of the pipeline are among them; raises as `locate` does.
    """
    read = _reader(modality, name)
    flags = {key: value for key, value in read("model_index.json").items() if isinstance(value, bool)}
    scales = {"scale": scale(read), "frame_scale": frame_scale(read)}
    return {**flags, **default_settings(modality, name), **scales}


def noise_kind(modality: Modality, name: str) -> str:
    """What a decoder is trained to take away: `diffusion`, `flow` (matching) or `sigma` (noise of a deviation).

    Raises ValueError if no loss is known for the scheduler, and as `locate` does.
    """
    read = _reader(modality, name)
    if read("model_index.json").get("boundary_ratio") is not None:
        raise ValueError(
            f"{name}: denoises with two transformers, which no loss is known for; train by alignment alone"
        )
    config = read("scheduler/scheduler_config.json")
    kind = str(config.get("_class_name"))
    if kind.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    if "sigma_data" in config:
        return "sigma"
    if "beta_schedule" in config:
        predicted = config.get("prediction_type", _PREDICTED[0])
        if predicted not in _PREDICTED:
            known = ", ".join(_PREDICTED)
            raise ValueError(f"{name}: its scheduler has prediction_type {predicted}, and a loss needs {known}")
        return "diffusion"
    raise ValueError(f"{name}: no denoising loss is known for its scheduler, a {kind}; train by alignment alone")


def has_safety_checker(modality: Modality, name: str) -> bool:
    """Whether a decoder comes with a safety classifier; raises as `locate`."""
    return bool((_read_json(locate(modality, name), "model_index.json").get("safety_checker") or [None])[0])


def _is_full_size(family: Family, read: Read) -> bool:
    denoiser = read(family.denoiser_part)
    if "block_out_channels" in denoiser:
        return bool(denoiser["block_out_channels"][0] >= FULL_SIZE_CHANNELS)
    width = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]
    return bool(width // _CHANNELS >= FULL_SIZE_CHANNELS)


def _reader(modality: Modality, name: str) -> Read:
    return partial(_read_config, locate(modality, name))


def _read_config(path: str, part: str) -> dict[str, Any]:
    return _read_json(path, part if part.endswith(".json") else f"{part}/config.json")


def _read_json(path: str, file: str) -> dict[str, Any]:
    """Reads a small file of a pipeline, from a folder or a hub repository."""
    content: dict[str, Any] = read_json(_local(path, file))
    return content


def _local(path: str, file: str) -> Path:
    if Path(path).is_dir():
        return Path(path) / file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, file))


# Counted from the files on the hub: UNet, VAE, text encoder, vocoder; no safety checker. Of those in model/published,
# what stays loaded: denoiser and VAE.
_PUBLISHED = {
    "stable-diffusion-v1-5": 1_066_000_000,
    "zeroscope_v2_576w": 1_836_000_000,
    "audioldm-l-full": 975_000_000,
    "stable-diffusion-3.5-medium": 2_326_991_203,
    "Sana_1600M_1024px_BF16_diffusers": 1_916_713_027,
    "Wan2.1-T2V-1.3B-Diffusers": 1_545_889_331,
    "stable-audio-open-1.0": 1_213_448_194,
}


def decoder_weights(name: str) -> int | None:
    """The number of weights of a decoder, named as in a preset; None if neither its files nor its name tell."""
    folder = Path(resolve(name))
    if folder.is_dir():
        counts = [_stored(folder / model) for model in MODELS if (folder / model).is_dir()]
        return None if None in counts else sum(count for count in counts if count is not None)
    return _PUBLISHED.get(name.rpartition("/")[2])


def _stored(folder: Path) -> int | None:
    """The number of weights in a folder's main variant of safetensors files."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.name.count("."))
    if not files:
        return None
    plainest = files[0].name.count(".")  # diffusion_pytorch_model.fp16.safetensors holds the same weights again
    return sum(_numel(path) for path in files if path.name.count(".") == plainest)


def _numel(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(map(prod, shapes))
