"""The table of decoder families, keyed by the pipeline's class: what differs between them, as data.

No weights are loaded and no deep learning library is imported. `Read` gives the content of a component's `config.json`,
or of any other JSON file of the pipeline.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

from pipelines.sample import Modality

# How many tokens their own pipelines give to an encoder; a T5 or a Gemma itself takes any number.
_T5_XXL, _T5_OF_THREE, _T5_OF_LTX, _GEMMA = 512, 256, 128, 300

Settings = dict[str, Any]
Read = Callable[[str], dict[str, Any]]

# What the pipelines call the three parts of a condition; a negative one has the same names after `negative_`.
SEQUENCE, MASK, POOLED = "prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"
_GUIDED = (SEQUENCE, f"negative_{SEQUENCE}", POOLED, f"negative_{POOLED}")
_MASKED = (SEQUENCE, MASK, f"negative_{SEQUENCE}", f"negative_{MASK}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionShape:
    """What a decoder is told: `length` positions of width `dim`, and a vector of width `pooled`; 0 for neither.

    `masked` says that the decoder does not look at positions that are zeros. `rows` is the shape of both as one array,
    the form in which conditions are stored, predicted and given to a decoder: the pooled vector fills up rows of width
    `dim` with zeros. They stand after the first position: losses count that one, which is the same for all captions of
    most encoders, and what follows the caption, for less.
    """

    length: int
    dim: int
    pooled: int = 0
    masked: bool = False

    @property
    def pooled_rows(self) -> int:
        """How many rows the pooled vector takes."""
        return ceil(self.pooled / self.dim)

    @property
    def rows(self) -> tuple[int, int]:
        """The shape (L, D) of a condition as one array: `num_queries` and `dim` of an output's settings."""
        return self.length + self.pooled_rows, self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """How a pipeline's own `encode_prompt` is called, and the names of what it returns, in order.

    `max_tokens` is its `max_sequence_length`; `counted` the tokenizer whose tokens are the caption's own positions,
    without one they are those that are not zeros. `zeros_if` is a flag of the pipeline with which the condition of no
    caption is zeros.
    """

    returns: tuple[str, ...]
    max_tokens: int | None = None
    counted: str = ""
    zeros_if: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between decoders; classes are given by name, since importing them takes seconds.

    `condition` gives the shape of what it is told, `prompts` how the pipeline embeds captions; without, `text_encoder`
    makes the condition of the ids of `tokenizer`, and it is one L2-normalised vector if `pooled`. `native` gives the
    media size from the configuration, `full_size` the settings of released weights, `small_guidance` the guidance scale
    of narrow ones, and `grid` the frames (of a video), rows and columns that the VAE encodes at such a size. `names`
    are those of settings where the pipeline has others, `fixed` further arguments of it.
    """

    pipeline: str
    modality: Modality
    denoiser: str
    vae: str = "AutoencoderKL"
    condition: Callable[[Read], ConditionShape]
    prompts: Prompts | None = None
    tokenizer: str = ""
    text_encoder: str = ""
    pooled: bool = False
    native: Callable[[Read], Settings]
    small_guidance: float = 2.0
    full_size: Mapping[str, Any]
    grid: Callable[[Settings, Read], tuple[int, ...]]
    packing: int = 1  # the denoiser takes squares of so many latents on each side, as channels of one
    fps: float = 8.0
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    has_negative: bool = True  # whether the pipeline is given the condition of no caption
    safety_checker: bool = False  # whether released weights come with a safety classifier

    @property
    def denoiser_part(self) -> str:
        """The component that denoises."""
        return "unet" if self.denoiser.startswith("UNet") else "transformer"


def scale(read: Read) -> int:
    """A VAE's downsampling factor along one side."""
    vae = read("vae")
    if "downsampling_ratios" in vae:
        return int(prod(vae["downsampling_ratios"]))
    if "spatio_temporal_scaling" in vae:
        return int(vae.get("patch_size", 1) * 2 ** sum(vae["spatio_temporal_scaling"]))
    if "temperal_downsample" in vae:
        return int(vae.get("scale_factor_spatial") or 8)
    widths = vae.get("encoder_block_out_channels") or vae["block_out_channels"]
    return int(2 ** (len(widths) - 1))


def frame_scale(read: Read) -> int:
    """How many frames a VAE makes one of; the first stands alone."""
    vae = read("vae")
    if "spatio_temporal_scaling" in vae:
        return int(vae.get("patch_size_t", 1) * 2 ** sum(vae["spatio_temporal_scaling"]))
    return int(vae.get("scale_factor_temporal") or 4) if "temperal_downsample" in vae else 1


def _square(read: Read) -> Settings:
    side = read("unet")["sample_size"] * scale(read)
    return {"height": side, "width": side}


def _transformer_square(read: Read) -> Settings:
    side = read("transformer")["sample_size"] * scale(read)
    return {"height": side, "width": side}


def _four_by_four(read: Read) -> Settings:
    """The size of narrow decoders whose configuration has none."""
    return {"height": 4 * scale(read), "width": 4 * scale(read)}


def _square_clip(read: Read) -> Settings:
    return {**_square(read), "num_frames": 8}


def _short_clip(read: Read) -> Settings:
    return {**_four_by_four(read), "num_frames": frame_scale(read) + 1}


def _mel_seconds(read: Read) -> Settings:
    return {"audio_length_in_s": read("unet")["sample_size"] * scale(read) * _frame_seconds(read)}


def _frame_seconds(read: Read) -> float:
    return float(frame_samples(read) / read("vocoder")["sampling_rate"])


def frame_samples(read: Read) -> int:
    """Samples of a sound that a vocoder makes of a frame of the spectrogram."""
    return prod(read("vocoder")["upsample_rates"])


def _mel_grid(settings: Settings, read: Read) -> tuple[int, ...]:
    return round(settings["audio_length_in_s"] / _frame_seconds(read)), read("vocoder")["model_in_dim"]


def _seconds(read: Read) -> Settings:
    return {"audio_length_in_s": num_samples(read) / read("vae")["sampling_rate"]}


def num_samples(read: Read) -> int:
    """The samples of a sound that an autoencoder of waveforms encodes: as many as its denoiser has places for."""
    return int(read("transformer")["sample_size"] * scale(read))


def _image_grid(settings: Settings, read: Read) -> tuple[int, ...]:
    return settings["height"], settings["width"]


def _video_grid(settings: Settings, read: Read) -> tuple[int, ...]:
    return settings["num_frames"], settings["height"], settings["width"]


def _num_tokens(read: Read) -> int:
    longest = read("tokenizer/tokenizer_config.json").get("model_max_length")
    positions = read("text_encoder")["max_position_embeddings"]
    return int(min(positions, longest or positions))


def _clip(read: Read) -> ConditionShape:
    return ConditionShape(length=_num_tokens(read), dim=read("text_encoder")["hidden_size"])


def _clap(read: Read) -> ConditionShape:
    width = read("text_encoder")["projection_dim"]
    return ConditionShape(length=0, dim=width, pooled=width)


def _two_clips(read: Read) -> ConditionShape:
    first, second = read("text_encoder"), read("text_encoder_2")
    return ConditionShape(
        length=_num_tokens(read), dim=first["hidden_size"] + second["hidden_size"], pooled=second["projection_dim"]
    )


def _two_clips_and_t5(read: Read) -> ConditionShape:
    pooled = sum(read(part)["projection_dim"] for part in ("text_encoder", "text_encoder_2"))
    width = read("transformer")["joint_attention_dim"]  # the T5's, which may be left out
    return ConditionShape(length=_num_tokens(read) + _T5_OF_THREE, dim=width, pooled=pooled)


def _t5_and_clip(read: Read) -> ConditionShape:
    width = read("text_encoder")["hidden_size"]
    return ConditionShape(length=_T5_XXL, dim=read("text_encoder_2")["d_model"], pooled=width)


def _t5(length: int, *, masked: bool = False) -> Callable[[Read], ConditionShape]:
    return lambda read: ConditionShape(length=length, dim=read("text_encoder")["d_model"], masked=masked)


def _gemma(read: Read) -> ConditionShape:
    return ConditionShape(length=_GEMMA, dim=read("text_encoder")["hidden_size"], masked=True)


def _projected_t5(read: Read) -> ConditionShape:
    length = read("tokenizer/tokenizer_config.json")["model_max_length"]
    return ConditionShape(length=length, dim=read("projection_model")["conditioning_dim"])


_CLIP: dict[str, Any] = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel", "condition": _clip}
_IMAGE: dict[str, Any] = {"modality": Modality.IMAGE, "grid": _image_grid}
_VIDEO: dict[str, Any] = {"modality": Modality.VIDEO, "grid": _video_grid}

_ALL = (
    Family(
        **_CLIP,
        **_IMAGE,
        pipeline="StableDiffusionPipeline",
        denoiser="UNet2DConditionModel",
        native=_square,
        full_size={"num_inference_steps": 50, "guidance_scale": 7.5},
        safety_checker=True,
    ),
    Family(
        **_CLIP,
        **_VIDEO,
        pipeline="TextToVideoSDPipeline",
        denoiser="UNet3DConditionModel",
        native=_square_clip,
        # ZeroScope was fine-tuned at this size; its configuration still has the square size of its base model.
        full_size={
            "height": 320,
            "width": 576,
            "num_frames": 16,
            "num_inference_steps": 40,
            "guidance_scale": 9.0,
        },
    ),
    Family(
        pipeline="AudioLDMPipeline",
        modality=Modality.AUDIO,
        denoiser="UNet2DConditionModel",
        tokenizer="RobertaTokenizer",
        text_encoder="ClapTextModelWithProjection",
        condition=_clap,
        pooled=True,
        native=_mel_seconds,
        small_guidance=5.0,
        full_size={"audio_length_in_s": 5.0, "num_inference_steps": 50, "guidance_scale": 2.5},
        grid=_mel_grid,
    ),
    Family(
        **_IMAGE,
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        condition=_two_clips,
        prompts=Prompts(returns=_GUIDED, counted="tokenizer", zeros_if="force_zeros_for_empty_prompt"),
        native=_square,
        full_size={"num_inference_steps": 50, "guidance_scale": 5.0},
    ),
    Family(
        **_IMAGE,
        pipeline="StableDiffusion3Pipeline",
        denoiser="SD3Transformer2DModel",
        condition=_two_clips_and_t5,
        prompts=Prompts(returns=_GUIDED, max_tokens=_T5_OF_THREE),
        native=_transformer_square,
        full_size={"num_inference_steps": 40, "guidance_scale": 4.5},  # as the card of 3.5 medium says
    ),
    Family(
        **_IMAGE,
        pipeline="SanaPipeline",
        denoiser="SanaTransformer2DModel",
        vae="AutoencoderDC",
        condition=_gemma,
        prompts=Prompts(returns=_MASKED, max_tokens=_GEMMA),
        native=_transformer_square,
        full_size={"num_inference_steps": 20, "guidance_scale": 4.5},
        # The sizes are those that are asked for; the condition of no caption is given, as of the others.
        fixed={"use_resolution_binning": False, "negative_prompt": None},
    ),
    Family(
        **_IMAGE,
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        condition=_t5_and_clip,
        prompts=Prompts(returns=(SEQUENCE, POOLED, "text_ids"), max_tokens=_T5_XXL, counted="tokenizer_2"),
        native=_four_by_four,
        full_size={
            "height": 1024,
            "width": 1024,
            "num_inference_steps": 28,
            "guidance_scale": 3.5,  # which the transformer is told; with a `true_cfg_scale` of 1 it is all
            "true_cfg_scale": 1.0,
        },
        packing=2,
    ),
    Family(
        **_VIDEO,
        pipeline="WanPipeline",
        denoiser="WanTransformer3DModel",
        vae="AutoencoderKLWan",
        condition=_t5(_T5_XXL),
        prompts=Prompts(returns=(SEQUENCE, f"negative_{SEQUENCE}"), max_tokens=_T5_XXL),
        native=_short_clip,
        full_size={
            "height": 480,
            "width": 832,
            "num_frames": 81,
            "num_inference_steps": 50,
            "guidance_scale": 5.0,
        },
        fps=16.0,
    ),
    Family(
        **_VIDEO,
        pipeline="LTXPipeline",
        denoiser="LTXVideoTransformer3DModel",
        vae="AutoencoderKLLTXVideo",
        condition=_t5(_T5_OF_LTX, masked=True),
        prompts=Prompts(returns=_MASKED, max_tokens=_T5_OF_LTX),
        native=_short_clip,
        full_size={
            "height": 512,
            "width": 704,
            "num_frames": 161,
            "num_inference_steps": 50,
            "guidance_scale": 3.0,
        },
        fps=25.0,
        fixed={"frame_rate": 25},
    ),
    Family(
        pipeline="StableAudioPipeline",
        modality=Modality.AUDIO,
        denoiser="StableAudioDiTModel",
        vae="AutoencoderOobleck",
        condition=_projected_t5,
        prompts=Prompts(returns=(SEQUENCE,)),
        native=_seconds,
        full_size={"num_inference_steps": 100, "guidance_scale": 7.0},
        grid=lambda settings, read: (num_samples(read),),
        names={"audio_length_in_s": "audio_end_in_s"},
        has_negative=False,  # zeros, of which the pipeline itself leads away
    ),
)
FAMILIES: dict[str, Family] = {family.pipeline: family for family in _ALL}
