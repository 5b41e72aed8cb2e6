"""How each foundation of the preset `world` is trained: data, steps and output folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import TemporalConvLayer
from safetensors.torch import save_file
from torch import Tensor

from model.bootstrap import blank
from model.bootstrap.contrastive import Pairs, train_imagebind, train_text_encoder
from model.bootstrap.diffusion import from_latents, to_latents, train_autoencoder, train_pipeline
from model.bootstrap.language import train_llm
from model.bootstrap.vocoder import train_vocoder
from model.decoders.spectrograms import small_spectrogram
from model.encoders.imagebind_encoder import image_inputs, video_inputs
from model.encoders.mel import audio_inputs
from model.parts.family_table import FAMILIES
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Decoded, Image, Item, Modality, Turn, Video
from pipelines.views import CAPTION_PROMPT
from pipelines.world.bank import SEED, Bank, bank, half_named_sounds, joined
from pipelines.world.captions import caption
from pipelines.world.conversations import KINDS, converse_by_turns
from pipelines.world.planning import converse_in_plans
from pipelines.world.render import FPS, SAMPLE_RATE, render
from pipelines.world.scenes import ATTRIBUTES, Subject, draw, modality_of

SEED_HELD_OUT = SEED + 1
CORPUS_SIZE = 2000  # captions that a tokenizer is trained on
# Copying from distant turns is learned last, so it is repeated.
_REPEATED_KINDS = (
    *("everything", "change", "remember", "question") * 2,
    *("remember", "remember", "two", "alike", "alter", "beyond", "decline"),
)


def _corpus(*modalities: Modality) -> list[str]:
    banks = [bank(modality, CORPUS_SIZE, num_captions=3) for modality in modalities]
    return [text for found in banks for captions in found.captions for text in captions]


def _steps(number: int, scale: float) -> int:
    return max(2, round(number * scale))


def _pixels(pictures: Bank) -> Tensor:
    """uint8 (..., H, W, 3) to [-1, 1], (..., 3, H, W)."""
    return torch.from_numpy(pictures.media).movedim(-1, -3).float() / 127.5 - 1


def _autoencoder(vae: Any, out: Path, scale: float) -> None:
    """The autoencoder of pictures and videos; half of its training data are frames."""
    frames = _pixels(bank(Modality.VIDEO, 500, num_captions=1)).flatten(0, 1)
    media = torch.cat([_pixels(bank(Modality.IMAGE, 6000, num_captions=1)), frames])
    train_autoencoder(vae, media, steps=_steps(1600, scale), batch_size=32, state=out / "state" / "autoencoder.pt")


def _text_encoder(modality: Modality, pipe: Any, pairs: Pairs, out: Path, steps: int) -> None:
    train_text_encoder(
        pipe.text_encoder,
        pipe.tokenizer,
        pairs,
        pooled=FAMILIES[type(pipe).__name__].pooled,
        steps=steps,
        batch_size=96,
        state=out / "state" / f"{modality}-text.pt",
    )
    pipe.text_encoder.requires_grad_(False)


def _train(pipe: Any, latents: Tensor, captions: Any, steps: int, state: Path, batch_size: int = 64) -> None:
    train_pipeline(pipe, latents, captions, steps=steps, batch_size=batch_size, learning_rate=1.5e-3, state=state)


def image_decoder(out: Path, scale: float) -> None:
    """Stable Diffusion."""
    torch.manual_seed(0)
    pipe = blank.image_pipeline(_corpus(Modality.IMAGE))
    _autoencoder(pipe.vae, out, scale)
    pictures = bank(Modality.IMAGE, 8000)
    latents = to_latents(pipe.vae, _pixels(pictures))
    _text_encoder(Modality.IMAGE, pipe, _pairs(pictures, latents), out, _steps(800, scale))
    _train(pipe, latents, pictures.captions, _steps(2600, scale), out / "state" / "image.pt")
    pipe.to(torch.float16).save_pretrained(out / "image_decoder")


def video_decoder(out: Path, scale: float) -> None:
    """The text-to-video pipeline, with the autoencoder for pictures."""
    torch.manual_seed(0)
    pipe = blank.video_pipeline(_corpus(Modality.VIDEO))
    _autoencoder(pipe.vae, out, scale)
    videos = bank(Modality.VIDEO, 4000)
    frames = _pixels(videos)
    flat = to_latents(pipe.vae, frames.flatten(0, 1))
    by_clip = flat.view(*frames.shape[:2], *flat.shape[1:])
    _text_encoder(Modality.VIDEO, pipe, _pairs(videos, by_clip), out, _steps(800, scale))
    # First single frames, in large batches, then their order in time.
    over_time = [module for module in pipe.unet.modules() if isinstance(module, TemporalConvLayer)]
    for module in over_time:
        module.requires_grad_(False)
    of_frames = [captions for captions in videos.captions for _ in range(frames.shape[1])]
    state = out / "state"
    _train(pipe, flat[:, :, None], of_frames, _steps(1500, scale), state / "video-frames.pt")
    for module in over_time:
        module.requires_grad_(True)
    by_clip = by_clip.transpose(1, 2).contiguous()
    _train(pipe, by_clip, videos.captions, _steps(2200, scale), state / "video.pt", batch_size=16)
    pipe.to(torch.float16).save_pretrained(out / "video_decoder")


def audio_decoder(out: Path, scale: float) -> None:
    """AudioLDM, with a vocoder that is also trained on the autoencoder's reconstructions."""
    torch.manual_seed(0)
    pipe = blank.audio_pipeline(_corpus(Modality.AUDIO))
    sounds = bank(Modality.AUDIO, 3000)
    waveforms = torch.from_numpy(sounds.media).float()
    spectrograms, state = small_spectrogram(waveforms), out / "state"
    train_autoencoder(
        pipe.vae, spectrograms[:, None], steps=_steps(600, scale), batch_size=32, state=state / "audio-autoencoder.pt"
    )
    given_back = from_latents(pipe.vae, to_latents(pipe.vae, spectrograms[:, None]))[:, 0]
    heard = torch.cat([spectrograms, given_back])
    steps = _steps(900, scale)
    train_vocoder(pipe.vocoder, waveforms.repeat(2, 1), heard, steps=steps, batch_size=32, state=state / "vocoder.pt")
    more = _sounds(3000)
    spectrograms = small_spectrogram(torch.from_numpy(more.media).float())
    _text_encoder(Modality.AUDIO, pipe, _pairs(more, spectrograms), out, _steps(600, scale))
    latents = to_latents(pipe.vae, spectrograms[:, None])
    _train(pipe, latents, more.captions, _steps(2600, scale), state / "audio.pt")
    pipe.to(torch.float16).save_pretrained(out / "audio_decoder")


def _sounds(count: int) -> Bank:
    """Named sounds, and twice as many whose caption names only the note or only the instrument."""
    return joined(bank(Modality.AUDIO, count, hard_every=4), half_named_sounds(2 * count))


def imagebind(out: Path, scale: float) -> None:
    """ImageBind with its text tower; videos are trained on as decoded from MP4."""
    torch.manual_seed(0)
    model, text, tokenizer = blank.imagebind(_corpus(*Modality))
    size = model.config.image_size
    pairs = {}
    for modality in Modality:
        media: list[Decoded]
        if modality is Modality.AUDIO:
            found = _sounds(2000)
            media = [
                Audio(waveform=samples[None], sample_rate=SAMPLE_RATE) for samples in found.media.astype("float32")
            ]
        else:
            found = bank(modality, 2000)
            media = [decode(encode(render(subject, index)), fps=FPS) for index, subject in enumerate(found.subjects)]
        pairs[modality.value] = _pairs(found, torch.stack([_encoder_input(medium, size) for medium in media]))
    state = out / "state" / "imagebind.pt"
    train_imagebind(model, text, tokenizer, pairs, steps=_steps(1200, scale), batch_size=40, state=state)
    folder = out / "imagebind"
    model.to(torch.float16).save_pretrained(folder)
    tensors = {**model.state_dict(), **text.to(torch.float16).state_dict()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    tokenizer.save_pretrained(folder / "tokenizer")


def _pairs(found: Bank, inputs: Tensor) -> Pairs:
    numbers: dict[Subject, int] = {}
    return Pairs(
        inputs=inputs,
        captions=found.captions,
        topics=torch.tensor([numbers.setdefault(subject, len(numbers)) for subject in found.subjects]),
        aspects=[
            (
                [aspect(name, value) for value in values],
                torch.tensor([_number(subject, name, values) for subject in found.subjects]),
            )
            for name, values in ATTRIBUTES[modality_of(found.subjects[0])].items()
        ],
    )


def aspect(name: str, value: str) -> str:
    """A text about a single attribute."""
    return f"{name} {value}"


def _number(subject: Subject, name: str, values: Sequence[str]) -> int:
    """The index of a subject's value; -100 (ignored) where it is unnamed or there are two objects."""
    value = "" if getattr(subject, "other", None) else getattr(subject, name)
    return values.index(value) if value else -100


def _encoder_input(medium: Decoded, size: int) -> Tensor:
    """One clip as ImageBind takes it; media of the world are shorter than a clip, so all clips are equal."""
    match medium:
        case Image():
            return image_inputs(medium, size).half()
        case Video():
            return video_inputs(medium, size)[0].half()
        case Audio():
            return audio_inputs(medium)[0].half()


def llm(out: Path, scale: float) -> None:
    """A Llama trained on text about the world, without media, and on plans of tool calls."""
    torch.manual_seed(0)
    said = [*dialogues(12_000), *captioned(4_000), *planned(8_000)]
    corpus = [part for turns in said[::4] for turn in turns for part in turn.parts if isinstance(part, str)]
    model, tokenizer = blank.llama(corpus)
    texts = [*dialogues(96_000, (*KINDS, *_REPEATED_KINDS)), *captioned(16_000), *planned(12_000)]
    state = out / "state" / "llm.pt"
    train_llm(model, tokenizer, texts, steps=_steps(10_000, scale), batch_size=32, state=state)
    model.to(torch.float16).save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")


def dialogues(count: int, kinds: Sequence[str] = KINDS, *, held_out: bool = False) -> Iterator[Sequence[Turn]]:
    """Conversations, cycling through the kinds."""
    seed = SEED_HELD_OUT if held_out else SEED
    for index in range(count):
        yield converse_by_turns(kinds, seed, index, held_out=held_out).turns


def planned(count: int) -> Iterator[Sequence[Turn]]:
    """Prompts and answers of an LLM that schedules tools."""
    for number in range(count):
        yield converse_in_plans(SEED, number).turns


def captioned(count: int, *, held_out: bool = False) -> Iterator[Sequence[Turn]]:
    """The tasks of the first two stages: captioning an item, and repeating a caption."""
    seed = SEED_HELD_OUT if held_out else SEED
    for index in range(count):
        subject = draw(seed, index, held_out=held_out)[list(Modality)[index % 3]]
        said = caption(subject, 37 * index)
        item = Item(modality=modality_of(subject), name="0", caption=caption(subject, 0))
        asked = (item, CAPTION_PROMPT) if index % 2 else (said,)
        yield Turn(role="user", parts=asked), Turn(role="assistant", parts=(said,))


TRAINERS: dict[str, Callable[[Path, float], None]] = {
    "image_decoder": image_decoder,
    "video_decoder": video_decoder,
    "audio_decoder": audio_decoder,
    "imagebind": imagebind,
    "llm": llm,
}
