import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from model.architectures.imagebind import ImageBind, ImageBindConfig
from model.encoders.imagebind_encoder import PIXEL_MEAN, PIXEL_STD, ImageBindEncoder, image_inputs, video_inputs
from model.encoders.imagebind_inputs import MediaInputs
from model.encoders.mel import audio_inputs, log_mel
from pipelines.sample import Audio, Decoded, Image, Video

TINY = ImageBindConfig(
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    audio_width=16,
    audio_layers=2,
    audio_heads=2,
    embed_dim=8,
    image_size=28,
    audio_stride=16,
)
PAD = 4.268 / 9.138


def noise_image(seed: int, height: int, width: int) -> Image:
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def noise_video(seed: int, num_frames: int, height: int, width: int, fps: float = 8.0) -> Video:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Video(frames=frames, fps=fps)


def noise_audio(seed: int, seconds: float, sample_rate: int = 16_000, channels: int = 1) -> Audio:
    shape = (channels, round(seconds * sample_rate))
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)
    return Audio(waveform=noise, sample_rate=sample_rate)


def counting_video(num_frames: int, fps: float) -> Video:
    """Frame i is painted with grey value i."""
    frames = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 32, 32, 3))
    return Video(frames=np.ascontiguousarray(frames), fps=fps)


def denormalised(pixels: Tensor) -> Tensor:
    """Undoes the normalisation of (..., 3, H, W): values of 0 to 255."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (PIXEL_MEAN, PIXEL_STD))
    return (pixels * std + mean) * 255


def frame_numbers(video: Video) -> list[list[int]]:
    """First and last frame of each of the 5 clips, as a counting video's inputs show them."""
    pixels = video_inputs(video, size=32)[::3]
    return denormalised(pixels.transpose(1, 2))[..., 0, 0, 0].round().int().tolist()


def test_the_log_mel_meets_the_golden_figures(shared: Path) -> None:
    golden = json.loads((shared / "facts" / "imagebind_golden.json").read_text())
    t = np.arange(32_000) / 16_000
    wave = 0.4 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * (200 + 900 * t) * t)
    wave += 0.05 * np.random.default_rng(14).standard_normal(32_000)
    mel = audio_inputs(Audio(waveform=wave[None].astype(np.float32), sample_rate=16_000))[0]
    assert list(mel.shape) == golden["mel_shape"]
    assert mel.mean().item() == pytest.approx(golden["mel_mean"], abs=1e-3)
    assert mel.std().item() == pytest.approx(golden["mel_std"], abs=1e-3)
    for bin_, frame, value in golden["mel_samples"]:
        assert mel[0, bin_, frame].item() == pytest.approx(value, abs=1e-3), (bin_, frame)


def test_three_clips_reach_from_the_start_to_the_end_of_a_sound() -> None:
    audio = noise_audio(0, 7.0)
    clips = audio_inputs(audio)
    assert clips.shape == (3, 1, 128, 204)
    assert clips.dtype == torch.float32
    wave = torch.from_numpy(audio.waveform[0])
    for clip, start in zip(clips, (0, 40_000, 80_000), strict=True):
        torch.testing.assert_close(clip, log_mel(wave[start : start + 32_000]))


@pytest.mark.parametrize(("seconds", "num_frames"), [(1.0, 98), (0.025, 1), (0.01, 1)])
def test_a_short_sound_fills_what_it_can_and_is_padded_after_the_log(seconds: float, num_frames: int) -> None:
    clips = audio_inputs(noise_audio(0, seconds))
    assert torch.equal(clips[0], clips[2])
    torch.testing.assert_close(clips[..., num_frames:], torch.full_like(clips[..., num_frames:], PAD))
    assert not torch.isclose(clips[..., :num_frames], torch.tensor(PAD)).all()


def test_sounds_are_mixed_to_mono_and_resampled() -> None:
    t = np.arange(3 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    stereo = audio_inputs(Audio(waveform=np.stack([tone * 1.5, tone * 0.5]), sample_rate=44_100))
    at_16k = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(48_000) / 16_000).astype(np.float32)
    mono = audio_inputs(Audio(waveform=at_16k[None], sample_rate=16_000))
    # The tone's own bins agree; elsewhere there is only the floor of the resampler.
    loud = mono > mono.max() - 0.5
    torch.testing.assert_close(stereo[loud], mono[loud], atol=0.01, rtol=0)


def test_silence_is_finite_and_nothing_is_refused() -> None:
    assert audio_inputs(Audio(waveform=np.zeros((1, 16_000), np.float32), sample_rate=16_000)).isfinite().all()
    with pytest.raises(ValueError, match="no samples"):
        audio_inputs(Audio(waveform=np.zeros((1, 0), np.float32), sample_rate=16_000))
    with pytest.raises(ValueError, match="0 frames"):
        video_inputs(Video(frames=np.zeros((0, 8, 8, 3), np.uint8), fps=8.0))


@pytest.mark.parametrize(("height", "width"), [(300, 401), (401, 300), (224, 224), (97, 60), (511, 225)])
def test_an_image_is_resized_by_its_short_side_then_cropped(height: int, width: int) -> None:
    # Faint noise: Pillow picks the order of its two passes by size, and clips overshoot after the first.
    image = Image(pixels=noise_image(1, height, width).pixels // 4 + 96)
    short = min(height, width)
    scaled = PIL.Image.fromarray(image.pixels).resize(
        (224 * width // short, 224 * height // short), PIL.Image.Resampling.BICUBIC
    )
    left, top = round((scaled.width - 224) / 2), round((scaled.height - 224) / 2)
    expected = torch.from_numpy(np.asarray(scaled.crop((left, top, left + 224, top + 224))).copy()).permute(2, 0, 1)
    inputs = image_inputs(image)
    assert inputs.shape == (3, 224, 224)
    # Pillow rounds to a whole grey value after each axis.
    torch.testing.assert_close(denormalised(inputs), expected.float(), atol=1.01, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(300, 401), (401, 300), (60, 97)])
def test_video_frames_are_resized_bilinearly_and_cropped_at_both_ends_and_the_centre(height: int, width: int) -> None:
    video = noise_video(2, 1, height, width)
    short = min(height, width)
    size = (224 * height // short, 224 * width // short)
    frame = torch.from_numpy(video.frames).permute(0, 3, 1, 2).float()
    scaled = F.interpolate(frame, size=size, mode="bilinear", align_corners=False)[0]
    rest = max(size) - 224
    crops = [scaled.narrow(1 if height > width else 2, start, 224) for start in (0, -(-rest // 2), rest)]
    inputs = denormalised(video_inputs(video).transpose(1, 2))
    assert inputs.shape == (15, 2, 3, 224, 224)
    for crop, expected in enumerate(crops):
        torch.testing.assert_close(inputs[crop, 0], expected, atol=0.05, rtol=0)


def test_five_clips_show_their_first_and_last_frame() -> None:
    assert frame_numbers(counting_video(100, fps=10.0)) == [[0, 19], [20, 39], [40, 59], [60, 79], [80, 99]]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 20])
def test_every_clip_of_a_short_video_is_the_whole_video(num_frames: int) -> None:
    assert frame_numbers(counting_video(num_frames, fps=10.0)) == [[0, num_frames - 1]] * 5


@pytest.mark.parametrize("fps", [0.2, 1.0, 23.976, 29.97])
def test_clips_stay_within_a_video_of_any_frame_rate(fps: float) -> None:
    for num_frames in (1, 3, 50, 71):
        for first, last in frame_numbers(counting_video(num_frames, fps)):
            assert 0 <= first <= last < num_frames


def test_a_very_long_and_thin_frame_costs_no_more() -> None:
    assert image_inputs(noise_image(3, 2, 20_000)).shape == (3, 224, 224)
    assert video_inputs(noise_video(3, 2, 20_000, 2)).shape == (15, 3, 2, 224, 224)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("parts") / "tiny-bind"
    ImageBind(TINY).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mixed_items() -> list[Decoded]:
    return [
        noise_image(1, 40, 50),
        noise_audio(2, 5.0, 22_050, channels=2),
        noise_video(3, 30, 36, 64),
        noise_image(4, 90, 30),
        noise_audio(5, 0.5),
        noise_image(6, 28, 28),
        noise_video(7, 3, 30, 30),
    ]


def test_embeddings_stand_in_the_order_of_their_items_and_depend_on_nothing_else(
    part: Path, mixed_items: list[Decoded]
) -> None:
    encoder = ImageBindEncoder(str(part), batch_size=31)
    together = encoder(mixed_items)
    assert together.shape == (7, encoder.dim) == (7, 8)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder([item]) for item in mixed_items])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(encoder(mixed_items[::-1])[::-1], together, atol=1e-6)
    assert len(np.unique(together.round(5), axis=0)) == 7
    assert encoder([]).shape == (0, 8)


def test_bfloat16_stays_near_float32_with_norms_and_sums_in_float32(part: Path, mixed_items: list[Decoded]) -> None:
    exact, fast = ImageBindEncoder(str(part)), ImageBindEncoder(str(part), precision="bfloat16")
    expected, found = exact(mixed_items), fast(mixed_items)
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    assert ((expected * found).sum(axis=-1) / norms).min() > 0.999
    assert fast.id == f"{exact.id}-bfloat16"
    kinds = {name.rpartition(".")[0].rpartition(".")[2]: p.dtype for name, p in fast.model.named_parameters()}
    assert kinds["norm_1"] == torch.float32
    assert kinds["fc1"] == kinds["attn"] == torch.bfloat16


def test_what_is_handed_on_is_small_and_gives_the_same_as_at_once(part: Path, mixed_items: list[Decoded]) -> None:
    encoder = ImageBindEncoder(str(part))
    prepared = MediaInputs(TINY.image_size)(mixed_items)
    assert [(array.dtype.name, array.shape) for array in prepared[:3]] == [
        ("uint8", (28, 28, 3)),
        ("float32", (3, 1, 128, 204)),
        ("uint8", (10, 36, 64, 3)),
    ]
    np.testing.assert_array_equal(encoder.embed(encoder.send(prepared)), encoder(mixed_items))


def test_an_encoders_id_follows_its_weights_and_dtype(part: Path, tmp_path: Path) -> None:
    first = ImageBindEncoder(str(part))
    slug, _, digest = first.id.rpartition("-")
    assert slug == "tiny-bind"
    assert len(digest) == 12
    assert first.id == ImageBindEncoder(f"{part}/").id
    assert first.id != ImageBindEncoder(str(part), dtype=torch.bfloat16).id
    first.model.get_parameter("modality_trunks.vision.blocks.0.norm_1.weight")[0] += 1
    first.model.save_pretrained(tmp_path / "tiny-bind")
    assert ImageBindEncoder(str(tmp_path / "tiny-bind")).id != first.id


def test_real_media_embed_apart(part: Path, sample_root: Path) -> None:
    pairs = sample_root / "T-X_pair_data"
    items: list[Decoded] = []
    for path in sorted((pairs / "cc3m" / "images").iterdir())[:3]:
        items.append(Image(pixels=np.asarray(PIL.Image.open(path).convert("RGB"))))
    for path in sorted((pairs / "audiocap" / "audios").iterdir())[:3]:
        waveform, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        items.append(Audio(waveform=np.ascontiguousarray(waveform.T), sample_rate=sample_rate))
    embeddings = ImageBindEncoder(str(part))(items)
    assert np.isfinite(embeddings).all()
    assert len(np.unique(embeddings.round(5), axis=0)) == len(items)
