"""Tiny pipelines of each family, with the libraries' own classes and fresh weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.architectures import fresh
from model.architectures.tiny import CORPUS
from model.parts.library_logs import quiet_libraries
from pipelines.sample import Modality

MODALITIES = {
    "StableDiffusionXLPipeline": Modality.IMAGE,
    "StableDiffusion3Pipeline": Modality.IMAGE,
    "SanaPipeline": Modality.IMAGE,
    "FluxPipeline": Modality.IMAGE,
    "WanPipeline": Modality.VIDEO,
    "LTXPipeline": Modality.VIDEO,
    "StableAudioPipeline": Modality.AUDIO,
}
_LINES = CORPUS.read_text(encoding="utf-8").splitlines()
_KL: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}


def write_pipeline(kind: str, folder: Path, **others: Any) -> Path:
    """Saves a tiny pipeline of a family, with `others` of its components; latents are of 16 x 16 or less."""
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = getattr(diffusers, kind)(**{**_MAKERS[kind](), **others})
        for part in pipe.components.values():
            if isinstance(part, transformers.PreTrainedModel):
                _widen(part)
        pipe.save_pretrained(folder)
    return folder


def _widen(model: torch.nn.Module) -> None:
    """Draws larger weights: fresh text encoders give all captions nearly the same states."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)


def _words(*, begin: bool, length: int = 64) -> Any:
    """A tokenizer of words that ends captions as T5's does, or begins them as Gemma's does."""
    special = ["<pad>", "</s>", "<unk>", "<bos>"]
    words = sorted({word for line in _LINES for word in line.split()})
    vocab = {token: number for number, token in enumerate([*special, *words])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template, token = ("<bos> $A", "<bos>") if begin else ("$A </s>", "</s>")
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(token, vocab[token])])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<bos>",
        model_max_length=length,
    )


def _clip_tokenizer() -> Any:
    return fresh.clip_tokenizer(_LINES, 40, 64)


def _clip(tokenizer: Any, width: int, projection: int | None = None) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def _t5(tokenizer: Any, kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_encoder_decoder=False
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def _xl() -> Mapping[str, Any]:
    tokenizer = _clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=40,
        attention_head_dim=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 48,
    )
    return {
        "vae": diffusers.AutoencoderKL(**_KL),
        "text_encoder": _clip(tokenizer, 16),
        "text_encoder_2": _clip(tokenizer, 24, 48),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet,
        "scheduler": diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    }


def _sd3() -> Mapping[str, Any]:
    clip, words = _clip_tokenizer(), _words(begin=False)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=40,
        pos_embed_max_size=8,
    )
    return {
        "vae": diffusers.AutoencoderKL(**_KL, shift_factor=0.3, scaling_factor=1.5),
        "text_encoder": _clip(clip, 8, 16),
        "text_encoder_2": _clip(clip, 16, 24),
        "text_encoder_3": _t5(words),
        "tokenizer": clip,
        "tokenizer_2": clip,
        "tokenizer_3": words,
        "transformer": transformer,
        "scheduler": _flow(shift=3.0),
    }


def _sana() -> Mapping[str, Any]:
    words = _words(begin=True)
    gemma = transformers.Gemma2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    blocks = {
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
    }
    return {
        "vae": diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41, **blocks),
        "text_encoder": transformers.Gemma2Model(gemma),
        "tokenizer": words,
        "transformer": diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=16,
        ),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def _flux() -> Mapping[str, Any]:
    clip, words = _clip_tokenizer(), _words(begin=False)
    return {
        "vae": diffusers.AutoencoderKL(**_KL, shift_factor=0.1, scaling_factor=0.4),
        "text_encoder": _clip(clip, 16),
        "text_encoder_2": _t5(words),
        "tokenizer": clip,
        "tokenizer_2": words,
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        "scheduler": _flow(use_dynamic_shifting=True),
    }


def _wan() -> Mapping[str, Any]:
    words = _words(begin=False)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 1.0, 2.0],
    )
    return {
        "vae": vae,
        "text_encoder": _t5(words, "UMT5"),
        "tokenizer": words,
        "transformer": diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
        ),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def _ltx() -> Mapping[str, Any]:
    words = _words(begin=False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=1.2,
    )
    vae.latents_mean.normal_(std=0.2)
    vae.latents_std.uniform_(0.5, 2.0)
    return {
        "vae": vae,
        "text_encoder": _t5(words),
        "tokenizer": words,
        "transformer": diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        ),
        "scheduler": _flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
    }


def _stable_audio() -> Mapping[str, Any]:
    words = _words(begin=False, length=16)
    return {
        "vae": diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[2, 4],
            decoder_channels=3,
            decoder_input_channels=3,
            channel_multiples=[1, 2],
            audio_channels=2,
            sampling_rate=400,
        ),
        "text_encoder": _t5(words),
        "projection_model": diffusers.StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=24, min_value=0, max_value=512
        ),
        "tokenizer": words,
        "transformer": diffusers.StableAudioDiTModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            cross_attention_dim=24,
            cross_attention_input_dim=24,
            global_states_input_dim=48,
            time_proj_dim=8,
        ),
        "scheduler": diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    }


_MAKERS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "StableDiffusionXLPipeline": _xl,
    "StableDiffusion3Pipeline": _sd3,
    "SanaPipeline": _sana,
    "FluxPipeline": _flux,
    "WanPipeline": _wan,
    "LTXPipeline": _ltx,
    "StableAudioPipeline": _stable_audio,
}
