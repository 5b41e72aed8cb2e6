"""The real frozen parts' architectures at any size, with fresh weights, and tokenizers trained on a corpus.

Components are always built in the same order, so that a seed gives the same weights.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import diffusers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT_WIDTH = {"image": 64, "video": 48, "audio": 32}  # three widths, as 768, 1024 and 512 in the real system
_NORM_GROUPS = 8


def llama(tokenizer: Any, *, width: int, feed_forward: int, layers: int) -> Any:
    """A Llama of four heads for a tokenizer, with 1,024 positions."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def image_pipeline(
    tokenizer: Any,
    *,
    channels: Sequence[int],
    attends: Sequence[bool],
    vae_widths: Sequence[int],
) -> Any:
    """Stable Diffusion of 32 x 32 pixels, latents of 4 x 8 x 8; `attends` says which blocks attend to the caption."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=TEXT_WIDTH["image"],
        attention_head_dim=4,
        **_blocks("2D", channels, attends),
    )
    return diffusers.StableDiffusionPipeline(
        vae=_vae(channels=3, latent_channels=4, widths=vae_widths),
        text_encoder=_clip_text_encoder(tokenizer, TEXT_WIDTH["image"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def video_pipeline(
    tokenizer: Any,
    *,
    channels: Sequence[int],
    attends: Sequence[bool],
    head_width: int,
    vae_widths: Sequence[int],
) -> Any:
    """Text-to-video of 32 x 32 pixels, latents of 4 x 8 x 8 per frame; `attends` as in `image_pipeline`."""
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        cross_attention_dim=TEXT_WIDTH["video"],
        attention_head_dim=head_width,
        **_blocks("3D", channels, attends),
    )
    return diffusers.TextToVideoSDPipeline(
        vae=_vae(channels=3, latent_channels=4, widths=vae_widths),
        text_encoder=_clip_text_encoder(tokenizer, TEXT_WIDTH["video"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
    )


def audio_pipeline(
    tokenizer: Any,
    *,
    channels: Sequence[int],
    frames: int,
    initializer_factor: float,
    vae_widths: Sequence[int],
    vocoder: dict[str, Any],
) -> Any:
    """AudioLDM for spectrograms of `frames` x 64 bands at 16 kHz; the latents are a quarter of that on each side.

    `vocoder` holds settings of a HiFi-GAN. With an initializer factor of 1, an untrained text encoder maps all captions
    to nearly the same vector.
    """
    unet = diffusers.UNet2DConditionModel(
        sample_size=frames // 4,
        in_channels=8,
        out_channels=8,
        # AudioLDM has only self-attention; the caption enters as a class embedding.
        cross_attention_dim=tuple(channels),
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT_WIDTH["audio"],
        class_embeddings_concat=True,
        **_blocks("2D", channels, (False, True)),
    )
    return diffusers.AudioLDMPipeline(
        vae=_vae(channels=1, latent_channels=8, widths=vae_widths),
        text_encoder=_clap_text_encoder(tokenizer, TEXT_WIDTH["audio"], initializer_factor),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        vocoder=transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(model_in_dim=64, sampling_rate=16_000, normalize_before=False, **vocoder)
        ),
    )


def _blocks(kind: str, channels: Sequence[int], attends: Sequence[bool]) -> dict[str, Any]:
    down = [f"CrossAttnDownBlock{kind}" if attend else f"DownBlock{kind}" for attend in attends]
    up = [f"CrossAttnUpBlock{kind}" if attend else f"UpBlock{kind}" for attend in reversed(attends)]
    return {
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": tuple(channels),
        "layers_per_block": 1,
        "norm_num_groups": _NORM_GROUPS,
    }


def clip_tokenizer(corpus: Iterable[str], max_length: int, num_merges: int) -> Any:
    """CLIP's tokenizer, its merges trained on a corpus."""
    vocab, merges = _byte_pairs(transformers.CLIPTokenizer().backend_tokenizer, num_merges, corpus, suffix="</w>")
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(_ids(vocab), merges, model_max_length=max_length)


def roberta_tokenizer(corpus: Iterable[str], max_length: int, num_merges: int) -> Any:
    """RoBERTa's tokenizer, which CLAP uses, its merges trained on a corpus."""
    vocab, merges = _byte_pairs(transformers.RobertaTokenizer().backend_tokenizer, num_merges, corpus)
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *vocab, "<mask>"]
    return transformers.RobertaTokenizer(_ids(vocab), merges, model_max_length=max_length)


def llm_tokenizer(corpus: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer that prepends `<s>` and numbers special tokens as Llama's does."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    blank = Tokenizer(models.BPE())
    blank.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    num_bytes = len(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = _byte_pairs(blank, vocab_size - len(special) - num_bytes, corpus)
    trained = Tokenizer(models.BPE(_ids(special + vocab), merges, unk_token="<unk>"))
    trained.pre_tokenizer = blank.pre_tokenizer
    trained.decoder = decoders.ByteLevel()
    trained.add_special_tokens([AddedToken(token, special=True) for token in special])
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", special.index("<s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _byte_pairs(
    blank: Tokenizer, num_merges: int, corpus: Iterable[str], suffix: str = ""
) -> tuple[list[str], list[tuple[str, str]]]:
    """Trains byte-pair merges on a corpus; returns the vocabulary (all bytes, then the merges) and the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = alphabet + [byte + suffix for byte in alphabet if suffix]
    trainee = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    trainee.normalizer, trainee.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(vocab) + num_merges,
        # As special tokens, bytes with a suffix get fixed ids; otherwise ties between pairs are broken at random.
        special_tokens=vocab,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    trainee.train_from_iterator(corpus, trainer)
    merges = [(left, right) for left, right in json.loads(trainee.to_str())["model"]["merges"]]
    return vocab + [left + right for left, right in merges], merges


def _ids(tokens: list[str]) -> dict[str, int]:
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}


def _clip_text_encoder(tokenizer: Any, width: int) -> Any:
    """A CLIP text model of two layers for a tokenizer."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.CLIPTextModel(config)


def _clap_text_encoder(tokenizer: Any, width: int, initializer_factor: float) -> Any:
    """A CLAP text model of two layers for a tokenizer, projected to `width`."""
    config = transformers.ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        # RoBERTa numbers positions from the padding id onwards.
        max_position_embeddings=tokenizer.model_max_length + tokenizer.pad_token_id + 1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=initializer_factor,
    )
    return transformers.ClapTextModelWithProjection(config)


def _vae(channels: int, latent_channels: int, widths: Sequence[int]) -> Any:
    """A VAE that downsamples by 4 per side, as AudioLDM's; `channels` is 3 for pixels, 1 for a mel spectrogram."""
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=_NORM_GROUPS,
        sample_size=32,
    )


def _scheduler() -> Any:
    """Stable Diffusion's noise schedule with zero terminal SNR, and velocity prediction.

    Lin et al. 2023, arXiv:2305.08891; at this size epsilon-prediction learns shapes but loses colours.
    """
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # has no effect on trailing timesteps, but the pipelines warn about 0
        clip_sample=False,
    )
