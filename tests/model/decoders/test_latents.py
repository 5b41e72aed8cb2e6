import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from decoder_cases import each_modality, name_of
from safetensors.torch import load_file, save_file
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from model.decoders.denoising import Denoiser
from model.decoders.latents import LatentEncoder
from model.decoders.spectrograms import log_mel
from model.parts import families
from model.parts.builtin import resolve
from model.parts.families import latent_shape
from pipelines.sample import Audio, Image, Modality, Video

SHAPES = {Modality.IMAGE: (4, 8, 8), Modality.VIDEO: (4, 8, 8, 8), Modality.AUDIO: (8, 32, 16)}


@pytest.fixture(scope="module")
def encoders():
    return {modality: LatentEncoder(modality, name_of(modality)) for modality in Modality}


@pytest.fixture
def copied(modality, tmp_path):
    return Path(shutil.copytree(resolve(name_of(modality)), tmp_path / "decoder"))


def image(seed, height=40, width=60):
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def video(seed, num_frames=20, fps=8.0):
    return Video(frames=np.random.default_rng(seed).integers(0, 256, (num_frames, 40, 60, 3), np.uint8), fps=fps)


def sound(seed, num_samples=30_000, sample_rate=16_000):
    waveform = 0.3 * np.random.default_rng(seed).standard_normal((2, num_samples), np.float32)
    return Audio(waveform=waveform.clip(-1, 1), sample_rate=sample_rate)


MEDIA = {Modality.IMAGE: image, Modality.VIDEO: video, Modality.AUDIO: sound}


@each_modality
def test_shapes_are_those_the_decoder_renders_and_need_no_weights(modality, encoders, copied):
    for file in copied.rglob("*.safetensors"):
        file.unlink()
    assert latent_shape(modality, str(copied)) == encoders[modality].shape == SHAPES[modality]
    assert Denoiser(modality, name_of(modality)).latent_shape == SHAPES[modality]


def test_full_size_decoders_have_the_released_models_shapes(monkeypatch):
    """At four pixels a place, as the tiny VAEs have it, where released image and video VAEs have eight."""
    monkeypatch.setattr(families, "FULL_SIZE_CHANNELS", 1)
    assert latent_shape(Modality.VIDEO, name_of(Modality.VIDEO)) == (4, 16, 80, 144)
    assert latent_shape(Modality.AUDIO, name_of(Modality.AUDIO)) == (8, 125, 16)


@each_modality
def test_a_medium_has_the_same_latents_alone_and_among_others(modality, encoders):
    media = [MEDIA[modality](seed) for seed in range(3)]
    together = encoders[modality](media)
    assert together.dtype == np.float32
    assert together.shape == (3, *SHAPES[modality])
    np.testing.assert_allclose(together, np.concatenate([encoders[modality]([one]) for one in media]), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert encoders[modality]([]).shape == (0, *SHAPES[modality])


def test_an_image_is_the_mean_the_vae_gives_in_its_scaling(encoders):
    vae = diffusers.AutoencoderKL.from_pretrained(resolve(name_of(Modality.IMAGE)), subfolder="vae")
    pixels = image(0, 32, 32).pixels
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(values).latent_dist.mean * vae.config.scaling_factor
    np.testing.assert_allclose(encoders[Modality.IMAGE]([Image(pixels=pixels)]), expected, atol=1e-5)


def test_of_a_wide_image_the_centre_is_kept(encoders):
    centre = image(0, 32, 32).pixels
    wide = np.pad(centre, ((0, 0), (16, 16), (0, 0)))
    one, two = encoders[Modality.IMAGE]([Image(pixels=centre), Image(pixels=wide)])
    np.testing.assert_array_equal(one, two)


def test_a_video_is_its_frames_eight_a_second_and_its_last_one_again(encoders):
    film = video(0, num_frames=5)
    twice = Video(frames=film.frames.repeat(2, axis=0), fps=16.0)
    latents, fast = encoders[Modality.VIDEO]([film, twice])
    np.testing.assert_array_equal(latents, fast)
    stills = LatentEncoder(Modality.IMAGE, name_of(Modality.IMAGE))
    stills._vae = encoders[Modality.VIDEO]._vae
    frames = stills([Image(pixels=film.frames[min(index, 4)]) for index in range(8)])
    np.testing.assert_allclose(latents, frames.transpose(1, 0, 2, 3), atol=1e-5)


def test_a_video_without_frames_and_a_sound_without_samples_are_refused(encoders):
    with pytest.raises(ValueError, match="0 frames"):
        encoders[Modality.VIDEO]([Video(frames=np.zeros((0, 8, 8, 3), np.uint8), fps=8.0)])
    with pytest.raises(ValueError, match="no samples"):
        encoders[Modality.AUDIO]([Audio(waveform=np.zeros((1, 0), np.float32), sample_rate=16_000)])


def test_the_spectrogram_is_the_one_of_another_implementation():
    time = np.arange(16_000) / 16_000
    waveform = (0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * (200 + 900 * time) * time)) + 0.1
    centred = waveform - waveform.mean()
    filters = mel_filter_bank(513, 64, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    expected = spectrogram(
        0.5 * centred / np.abs(centred).max(),
        window_function(1024, "hann"),
        frame_length=1024,
        hop_length=160,
        power=1.0,
        mel_filters=filters,
        mel_floor=1e-5,
        log_mel="log",
    ).T
    found = log_mel(torch.from_numpy(waveform).float(), 100, 64)
    np.testing.assert_allclose(found, expected[:100], atol=5e-3)  # in float32, which shows where it is nearly silent


def test_a_sound_is_mixed_resampled_and_followed_by_silence(encoders):
    quiet = log_mel(torch.randn(1600), 40, 64)
    assert quiet[20:].eq(np.log(np.float32(1e-5))).all()
    low = sound(0)
    doubled = Audio(waveform=np.repeat(low.waveform.mean(0, keepdims=True), 2, axis=0), sample_rate=16_000)
    one, two = encoders[Modality.AUDIO]([low, doubled])
    np.testing.assert_allclose(one, two, atol=1e-5)


@each_modality
def test_the_id_names_the_vae_and_its_weights(modality, encoders, copied):
    original = LatentEncoder(modality, str(copied)).id
    assert original.startswith("decoder-")
    assert original.rsplit("-", 1)[1] == encoders[modality].id.rsplit("-", 1)[1]
    file = next(copied.glob("vae/*.safetensors"))
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, file, {"format": "pt"})
    assert LatentEncoder(modality, str(copied)).id != original
