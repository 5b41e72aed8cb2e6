"""The families of diffusion decoders, one a modality: shapes, defaults and sizes from their configuration files.

No weights are loaded and no deep learning library is imported, so that shapes can be checked before anything starts.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

from model.parts.builtin import resolve
from pipelines.sample import Modality
from pipelines.storage.files import read_json

FULL_SIZE_CHANNELS = 128  # the narrowest first UNet block among released decoders (AudioLDM s-full)
# Best for the decoders in model/foundations: more steps or other guidance score lower.
_SMALL_STEPS = 5

# The components of a pipeline that have weights; a safety checker is loaded only on request.
MODELS = ("text_encoder", "unet", "vae", "vocoder")
# Of the schedulers' prediction types, those with a denoising loss; the first is diffusers' default.
DENOISED = ("epsilon", "v_prediction", "sample")

Settings = dict[str, Any]
Read = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between modalities; classes are given by name, since importing them takes seconds.

    `native` gives the media size from the UNet's configuration, `full_size` the settings of released weights,
    `small_guidance` the guidance scale of narrow ones, and `grid` the frames (for video), rows and columns that the VAE
    encodes at such a size.
    """

    pipeline: str
    tokenizer: str
    text_encoder: str
    unet: str
    pooled: bool  # the condition is one L2-normalised vector, not one vector per position
    native: Callable[[Read], Settings]
    small_guidance: float
    full_size: Mapping[str, Any]
    grid: Callable[[Settings, Read], tuple[int, ...]]
    safety_checker: bool = False  # whether released weights come with a safety classifier


def _square(read: Read) -> Settings:
    side = read("unet")["sample_size"] * _scale(read)
    return {"height": side, "width": side}


def _square_clip(read: Read) -> Settings:
    return {**_square(read), "num_frames": 8}


def _seconds(read: Read) -> Settings:
    return {"audio_length_in_s": read("unet")["sample_size"] * _scale(read) * _frame_seconds(read)}


def _frame_seconds(read: Read) -> float:
    vocoder = read("vocoder")
    return float(prod(vocoder["upsample_rates"]) / vocoder["sampling_rate"])


def _mel_grid(settings: Settings, read: Read) -> tuple[int, ...]:
    return round(settings["audio_length_in_s"] / _frame_seconds(read)), read("vocoder")["model_in_dim"]


_CLIP: dict[str, Any] = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}
FAMILIES = {
    Modality.IMAGE: Family(
        **_CLIP,
        pipeline="StableDiffusionPipeline",
        unet="UNet2DConditionModel",
        pooled=False,
        native=_square,
        small_guidance=2.0,
        full_size={"num_inference_steps": 50, "guidance_scale": 7.5},
        grid=lambda settings, _: (settings["height"], settings["width"]),
        safety_checker=True,
    ),
    Modality.VIDEO: Family(
        **_CLIP,
        pipeline="TextToVideoSDPipeline",
        unet="UNet3DConditionModel",
        pooled=False,
        native=_square_clip,
        small_guidance=2.0,
        # ZeroScope was fine-tuned at this size; its configuration still has the square size of its base model.
        full_size={
            "height": 320,
            "width": 576,
            "num_frames": 16,
            "num_inference_steps": 40,
            "guidance_scale": 9.0,
        },
        grid=lambda settings, _: (settings["num_frames"], settings["height"], settings["width"]),
    ),
    Modality.AUDIO: Family(
        pipeline="AudioLDMPipeline",
        tokenizer="RobertaTokenizer",
        text_encoder="ClapTextModelWithProjection",
        unet="UNet2DConditionModel",
        pooled=True,
        native=_seconds,
        small_guidance=5.0,
        full_size={"audio_length_in_s": 5.0, "num_inference_steps": 50, "guidance_scale": 2.5},
        grid=_mel_grid,
    ),
}


def locate(modality: Modality, name: str) -> str:
    """Resolves a name (built-in part, directory or hub id) and checks that it is a pipeline of the modality.

    Raises FileNotFoundError if there is no pipeline, ValueError if it belongs to another modality.
    """
    path, wanted = resolve(name), FAMILIES[modality].pipeline
    try:
        found = _read_json(path, "model_index.json")["_class_name"]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name}: no diffusers pipeline (model_index.json) found; give the directory or hub id of a {wanted}"
        ) from error
    if found != wanted:
        raise ValueError(f"{name}: is a {found}, but {modality} needs a {wanted}")
    return path


def caption_shape(modality: Modality, name: str) -> tuple[int, int]:
    """The shape (L, D) of a decoder's condition; raises as `locate` does."""
    path = locate(modality, name)
    text_encoder = _read_json(path, "text_encoder/config.json")
    if FAMILIES[modality].pooled:
        return 1, text_encoder["projection_dim"]
    longest = _read_json(path, "tokenizer/tokenizer_config.json").get("model_max_length")
    positions = text_encoder["max_position_embeddings"]
    return min(positions, longest or positions), text_encoder["hidden_size"]


def latent_shape(modality: Modality, name: str, sizes: Settings | None = None) -> tuple[int, ...]:
    """The shape of one item's latents at the decoder's default size, overridden by `sizes`; raises as `locate`.

    Image (C, H, W), video (C, T, H, W), audio (C, frames, mel bands), measured in latents.
    """
    read = partial(_read_config, locate(modality, name))
    settings = {**default_settings(modality, name), **(sizes or {})}
    *frames, height, width = FAMILIES[modality].grid(settings, read)
    scale = _scale(read)
    return read("unet")["in_channels"], *frames, ceil(height / scale), ceil(width / scale)


def denoising_target(modality: Modality, name: str) -> str:
    """What a decoder's UNet was trained to predict: `epsilon`, `v_prediction` or `sample`; raises as `locate`.

    Raises ValueError for another one, which has no denoising loss.
    """
    kind = _read_json(locate(modality, name), "scheduler/scheduler_config.json").get("prediction_type", DENOISED[0])
    if kind not in DENOISED:
        raise ValueError(f"{name}: its scheduler has prediction_type {kind}, and a loss needs {', '.join(DENOISED)}")
    return str(kind)


def latent_grid(modality: Modality, name: str) -> tuple[int, ...]:
    """Frames (1 unless a video), rows and columns of what a decoder's VAE takes; raises as `locate`."""
    _, *frames, height, width = latent_shape(modality, name)
    scale = _scale(partial(_read_config, locate(modality, name)))
    return (frames[0] if frames else 1, height * scale, width * scale)


def default_settings(modality: Modality, name: str) -> Settings:
    """A decoder's default settings: sizes in pixels and seconds, steps, guidance."""
    family, read = FAMILIES[modality], partial(_read_config, locate(modality, name))
    native = family.native(read)
    if not _is_full_size(read):
        return {"num_inference_steps": _SMALL_STEPS, "guidance_scale": family.small_guidance, **native}
    return {**native, **family.full_size}


def is_full_size(modality: Modality, name: str) -> bool:
    """Whether a decoder is as wide as released ones, unlike our small ones; raises as `locate`."""
    return _is_full_size(partial(_read_config, locate(modality, name)))


def has_safety_checker(modality: Modality, name: str) -> bool:
    """Whether a decoder comes with a safety classifier; raises as `locate`."""
    return bool((_read_json(locate(modality, name), "model_index.json").get("safety_checker") or [None])[0])


def _is_full_size(read: Read) -> bool:
    return bool(read("unet")["block_out_channels"][0] >= FULL_SIZE_CHANNELS)


def _scale(read: Read) -> int:
    """The VAE's downsampling factor along one side."""
    return int(2 ** (len(read("vae")["block_out_channels"]) - 1))


def _read_config(path: str, part: str) -> dict[str, Any]:
    return _read_json(path, f"{part}/config.json")


def _read_json(path: str, file: str) -> dict[str, Any]:
    """Reads a small file of a pipeline, from a folder or a hub repository."""
    if Path(path).is_dir():
        local = Path(path) / file
    else:
        from huggingface_hub import hf_hub_download

        local = Path(hf_hub_download(path, file))
    content: dict[str, Any] = read_json(local)
    return content


# Counted from the files on the hub: UNet, VAE, text encoder, vocoder; no safety checker.
_PUBLISHED = {
    "stable-diffusion-v1-5": 1_066_000_000,
    "zeroscope_v2_576w": 1_836_000_000,
    "audioldm-l-full": 975_000_000,
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
