"""Sounds by CLAP: as the library prepares and embeds them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from encoder_folders import write_clap
from transformers import ClapFeatureExtractor

from model.encoders.media_encoders import load_encoder
from model.encoders.media_inputs import media_inputs
from pipelines.sample import Audio, Image, Modality


@pytest.fixture(scope="module")
def sounds(sample_root: Path) -> list[Audio]:
    """Recordings of up to ten seconds, read by soundfile."""
    read = [
        soundfile.read(path, dtype="float32", always_2d=True)
        for path in sorted((sample_root / "T-X_pair_data" / "audiocap" / "audios").iterdir())[:3]
    ]
    return [Audio(waveform=np.ascontiguousarray(samples[: 9 * rate].T), sample_rate=rate) for samples, rate in read]


def at_48_khz(sound: Audio) -> np.ndarray:
    return soxr.resample(sound.waveform.mean(axis=0, dtype=np.float32), sound.sample_rate, 48_000)


@pytest.mark.parametrize("fused", [False, True])
def test_features_are_those_of_the_librarys_own_extractor(tmp_path: Path, sounds: list[Audio], fused: bool) -> None:
    write_clap(tmp_path, fused=fused)
    extractor = ClapFeatureExtractor.from_pretrained(tmp_path)
    for sound, ours in zip(sounds, media_inputs(str(tmp_path))(sounds), strict=True):
        theirs = extractor([at_48_khz(sound)], sampling_rate=48_000)["input_features"][0]
        assert ours.shape == (1, 1001, 64)
        np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("fused", [False, True])
def test_embeddings_are_the_librarys_pooled_and_in_patches(tmp_path: Path, sounds: list[Audio], fused: bool) -> None:
    model = write_clap(tmp_path, fused=fused)
    extractor = ClapFeatureExtractor.from_pretrained(tmp_path)
    pooled, whole = load_encoder(str(tmp_path)), load_encoder(str(tmp_path), patches=16)
    assert (pooled.shapes, whole.shapes) == ({Modality.AUDIO: (24,)}, {Modality.AUDIO: (16, 64)})
    vectors, patches = pooled(sounds), whole(sounds)
    for number, sound in enumerate(sounds):
        inputs = extractor([at_48_khz(sound)], sampling_rate=48_000, return_tensors="pt")
        with torch.no_grad():
            found = model.audio_model(
                input_features=inputs["input_features"].float(), is_longer=torch.tensor([[False]])
            )
            expected = model.audio_projection(found.pooler_output)
        np.testing.assert_allclose(vectors[number], expected[0].numpy(), atol=1e-5)
        cells = torch.nn.functional.adaptive_avg_pool2d(found.last_hidden_state, (1, 16))[0].flatten(1).T
        np.testing.assert_allclose(patches[number], cells.numpy(), atol=1e-5)


def test_of_a_long_sound_three_stretches_are_embedded_and_none_at_random(tmp_path: Path) -> None:
    write_clap(tmp_path)
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48_000 * 25)).astype(np.float32)
    long = Audio(waveform=waveform, sample_rate=48_000)
    parts = [
        Audio(waveform=waveform[:, start : start + 480_000], sample_rate=48_000) for start in (0, 360_000, 720_000)
    ]
    encoder = load_encoder(str(tmp_path))
    np.testing.assert_allclose(encoder([long])[0], encoder(parts).mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(encoder([long]), encoder([long]))
    # Patches of three stretches follow each other in time.
    whole = load_encoder(str(tmp_path), patches=64)
    thirds = whole(parts).reshape(3, 2, 32, 64).transpose(1, 0, 2, 3).reshape(2, 96, 64)
    np.testing.assert_allclose(whole([long])[0], thirds.reshape(2, 32, 3, 64).mean(axis=2).reshape(64, 64), atol=1e-5)


@pytest.mark.parametrize(
    ("medium", "reason"),
    [
        (Audio(waveform=np.zeros((1, 0), np.float32), sample_rate=48_000), "no samples"),
        (Image(pixels=np.zeros((8, 8, 3), np.uint8)), "a CLAP embeds sounds"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path: Path, medium, reason: str) -> None:
    write_clap(tmp_path)
    with pytest.raises(ValueError, match=reason):
        media_inputs(str(tmp_path))([medium])


def test_a_sound_of_one_sample_is_embedded_or_refused_by_its_reason(tmp_path: Path) -> None:
    write_clap(tmp_path)
    one = Audio(waveform=np.full((1, 1), 0.5, np.float32), sample_rate=48_000)
    assert np.isfinite(load_encoder(str(tmp_path))([one])).all()
