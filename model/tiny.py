"""Builds the tiny parts: the real architectures at toy size, with seeded random weights and small tokenizers."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from model.parts import MARKER, quiet

CORPUS = Path(__file__).parent / "presets" / "tiny_corpus.txt"
LLM_VOCAB_SIZE = 512
NUM_MERGES = 256
TEXT_WIDTH = {"image": 64, "video": 48, "audio": 32}  # three widths, as 768, 1024 and 512 in the real system
UNET_CHANNELS = (16, 32)
NOTE = "Random weights in the real architecture at toy size: it runs and keeps its shapes, it has learnt nothing."


def build(part: str, directory: Path) -> None:
    """Writes one tiny part into a new directory; the caller's random state stays as it was."""
    directory.mkdir()
    with _seeded(part), quiet():
        _BUILDERS[part](directory)
    marker = json.dumps({"trained": False, "note": NOTE}, indent=2)
    (directory / MARKER).write_text(marker + "\n", encoding="utf-8")


@contextmanager
def _seeded(part: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reset the generators of the GPUs, which fork_rng leaves alone here.
        torch.default_generator.manual_seed(zlib.crc32(part.encode()))
        yield


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
        # Given as special tokens, bytes with a suffix get fixed ids; else ties between pairs fall at random.
        special_tokens=vocab,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    trainee.train_from_iterator(corpus, trainer)
    merges = [(left, right) for left, right in json.loads(trainee.to_str())["model"]["merges"]]
    return vocab + [left + right for left, right in merges], merges


def corpus_lines() -> list[str]:
    """The corpus of the untrained parts."""
    return CORPUS.read_text(encoding="utf-8").splitlines()


def clip_tokenizer(corpus: Iterable[str], max_length: int = 77, num_merges: int = NUM_MERGES) -> Any:
    """CLIP's tokenizer, its merges trained on a corpus."""
    vocab, merges = _byte_pairs(transformers.CLIPTokenizer().backend_tokenizer, num_merges, corpus, suffix="</w>")
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(_ids(vocab), merges, model_max_length=max_length)


def roberta_tokenizer(corpus: Iterable[str], max_length: int = 512, num_merges: int = NUM_MERGES) -> Any:
    """RoBERTa's tokenizer, which CLAP uses, its merges trained on a corpus."""
    vocab, merges = _byte_pairs(transformers.RobertaTokenizer().backend_tokenizer, num_merges, corpus)
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *vocab, "<mask>"]
    return transformers.RobertaTokenizer(_ids(vocab), merges, model_max_length=max_length)


def llm_tokenizer(corpus: Iterable[str], vocab_size: int = LLM_VOCAB_SIZE) -> Any:
    """Puts `<s>` before a text as Llama's own tokenizer does; special tokens have Llama's ids."""
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


def _ids(tokens: list[str]) -> dict[str, int]:
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}


def _build_llm(directory: Path) -> None:
    tokenizer = llm_tokenizer(corpus_lines())
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _build_imagebind(directory: Path) -> None:
    from model.imagebind import ImageBind, ImageBindConfig

    config = ImageBindConfig(
        vision_width=64,
        vision_layers=2,
        vision_heads=4,
        audio_width=48,
        audio_layers=2,
        audio_heads=4,
        embed_dim=32,
    )
    model = ImageBind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # At the usual 0.02 an untrained encoder gives every picture nearly the same vector.
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(directory)


def clip_text_encoder(tokenizer: Any, width: int) -> Any:
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


def clap_text_encoder(tokenizer: Any, width: int, initializer_factor: float = 10.0) -> Any:
    """A CLAP text model of two layers for a tokenizer, projected to `width`.

    With an initializer factor of 1 an untrained one gives every caption nearly the same vector.
    """
    config = transformers.ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        # RoBERTa numbers positions from the padding id on.
        max_position_embeddings=tokenizer.model_max_length + tokenizer.pad_token_id + 1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=initializer_factor,
    )
    return transformers.ClapTextModelWithProjection(config)


def vae(channels: int, latent_channels: int, widths: tuple[int, ...] = (8, 16, 16)) -> Any:
    """Downsamples four times per side, as AudioLDM's; `channels` 3 for pixels, 1 for a mel spectrogram."""
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=32,
    )


def scheduler() -> Any:
    """Noise levels as Stable Diffusion's, down to a zero signal, and predictions of the velocity.

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


def _build_image_decoder(directory: Path) -> None:
    tokenizer = clip_tokenizer(corpus_lines())
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH["image"],
        attention_head_dim=4,
        norm_num_groups=8,
    )
    diffusers.StableDiffusionPipeline(
        vae=vae(channels=3, latent_channels=4),
        text_encoder=clip_text_encoder(tokenizer, TEXT_WIDTH["image"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def _build_video_decoder(directory: Path) -> None:
    tokenizer = clip_tokenizer(corpus_lines())
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH["video"],
        attention_head_dim=4,
        norm_num_groups=8,
    )
    diffusers.TextToVideoSDPipeline(
        vae=vae(channels=3, latent_channels=4),
        text_encoder=clip_text_encoder(tokenizer, TEXT_WIDTH["video"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
    ).save_pretrained(directory)


def _build_audio_decoder(directory: Path) -> None:
    """Latents of 32 x 16 make 128 mel frames of 64 bands, 160 samples each: 1.28 s at 16 kHz."""
    tokenizer = roberta_tokenizer(corpus_lines())
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        # AudioLDM attends to nothing but itself; the caption comes in as a class embedding.
        cross_attention_dim=UNET_CHANNELS,
        attention_head_dim=4,
        norm_num_groups=8,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT_WIDTH["audio"],
        class_embeddings_concat=True,
    )
    diffusers.AudioLDMPipeline(
        vae=vae(channels=1, latent_channels=8),
        text_encoder=clap_text_encoder(tokenizer, TEXT_WIDTH["audio"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        vocoder=_vocoder(),
    ).save_pretrained(directory)


def _vocoder() -> Any:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16000,
        upsample_initial_channel=64,
        upsample_rates=[5, 4, 2, 2, 2],
        # (kernel - rate) must be even, else each layer makes a sample too many or too few.
        upsample_kernel_sizes=[15, 8, 4, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
        initializer_range=0.1,  # the default of 0.01 leaves an untrained vocoder silent
    )
    return transformers.SpeechT5HifiGan(config)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "llm": _build_llm,
    "imagebind": _build_imagebind,
    "image_decoder": _build_image_decoder,
    "video_decoder": _build_video_decoder,
    "audio_decoder": _build_audio_decoder,
}
