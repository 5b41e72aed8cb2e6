"""Media take the policy's form, are left alone where nothing is gained, and ImageBind sees in them what it should."""

import io
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from model.encoders.mel import audio_inputs
from pipelines.media.codecs import decode, encode
from pipelines.media.folder import load_rows
from pipelines.media.policy import AudioPolicy, ImagePolicy, Limits, MediaPolicy, VideoPolicy
from pipelines.media.stored import Stored, store
from pipelines.sample import Audio, Item, Media, Modality, Sample, Turn, Video

POLICY = MediaPolicy(image=ImagePolicy(short_side=64, quality=80), video=VideoPolicy(short_side=32, max_seconds=2))
ORIGINALS = POLICY.model_copy(update={"keep_originals": True})
IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO


def photo(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    """Something smooth with detail, which a PNG cannot make small."""
    y, x = np.mgrid[:height, :width]
    waves = (
        128
        + 80 * np.sin(9 * x / width) * np.cos(7 * y / height)
        + np.random.default_rng(0).normal(0, 6, (height, width))
    )
    return PIL.Image.fromarray(
        np.stack([waves, waves[:, ::-1], 255 - waves], -1).clip(0, 255).astype(np.uint8)
    ).convert(mode)


def picture(image: PIL.Image.Image, format: str, suffix: str = "bin", **options: Any) -> Media:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return Media(modality=IMAGE, data=buffer.getvalue(), format=suffix)


def sound(waveform: np.ndarray, sample_rate: int, format: str = "WAV", subtype: str = "PCM_16") -> Media:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.T, sample_rate, format=format, subtype=subtype)
    return Media(modality=AUDIO, data=buffer.getvalue(), format=format.lower())


def film(frames: int, fps: float, width: int = 96, height: int = 64) -> Media:
    """Grey frames that grow brighter."""
    levels = np.linspace(0, 240, frames).astype(np.uint8)
    shape = (frames, height, width, 3)
    return encode(Video(frames=np.broadcast_to(levels[:, None, None, None], shape), fps=fps))


def kept(media: Media, policy: MediaPolicy = POLICY) -> bool:
    return store(media, policy).media.data is media.data


def opened(stored: Stored) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(stored.media.data))


# --- Images ----------------------------------------------------------------------------------------------------------


def test_a_large_image_shrinks_by_its_short_side_to_a_jpeg_of_the_quality() -> None:
    stored = store(picture(photo(300, 200), "PNG"), POLICY)
    assert stored.media.format == "jpg"
    assert stored.facts == {"width": 96, "height": 64}
    assert (opened(stored).format, opened(stored).size) == ("JPEG", (96, 64))
    exact = np.asarray(photo(300, 200).resize((96, 64), PIL.Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.asarray(opened(stored)) - exact).mean() < 4
    better = MediaPolicy(image=ImagePolicy(short_side=64, quality=95))
    assert len(store(picture(photo(300, 200), "PNG"), better).media.data) > len(stored.media.data)


@pytest.mark.parametrize("size", [(1000, 700), (260, 1900), (64, 64), (63, 900), (129, 128)])
def test_a_jpeg_decoded_at_a_part_of_its_size_shows_the_same(size: tuple[int, int]) -> None:
    source = picture(photo(*size), "JPEG", quality=95)
    stored = store(source, POLICY)
    width, height = opened(stored).size
    assert min(width, height) == min(64, *size)
    whole = PIL.Image.open(io.BytesIO(source.data)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(opened(stored)).astype(int) - np.asarray(whole)).mean() < 3


def test_a_jpeg_that_is_small_enough_keeps_its_bytes() -> None:
    assert kept(picture(photo(80, 64), "JPEG", quality=30))
    assert kept(picture(photo(80, 64, "L"), "JPEG", progressive=True))
    assert store(picture(photo(80, 64), "JPEG", suffix="png"), POLICY).media.format == "jpg"


def test_what_other_tools_would_show_wrongly_does_not_keep_its_bytes() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = store(picture(photo(80, 64), "JPEG", exif=exif), POLICY)
    assert turned.facts == {"width": 64, "height": 80}
    assert opened(turned).size == (64, 80)
    assert not opened(turned).getexif()
    assert opened(store(picture(photo(80, 64, "CMYK"), "JPEG"), POLICY)).mode == "RGB"


def test_what_follows_or_hides_in_a_picture_is_not_carried_along() -> None:
    jpeg = picture(photo(80, 64), "JPEG", comment=b"<script>")
    polyglot = Media(modality=IMAGE, data=jpeg.data + b"PK\x03\x04 an archive", format="jpg")
    stored = store(polyglot, POLICY)
    assert b"PK\x03\x04" not in stored.media.data
    assert b"<script>" not in stored.media.data


def test_flat_drawings_stay_lossless_and_photos_become_jpeg() -> None:
    drawing = PIL.Image.new("RGB", (60, 60), "red")
    drawing.paste("blue", (10, 10, 30, 30))
    assert kept(picture(drawing, "PNG"))
    assert kept(picture(drawing, "WEBP", lossless=True))
    assert store(picture(drawing, "WEBP", lossless=True), POLICY).media.format == "webp"
    assert store(picture(photo(60, 60), "PNG"), POLICY).media.format == "jpg"
    assert store(picture(drawing, "BMP"), POLICY).media.format == "jpg"


@pytest.mark.parametrize("size", [(30, 30), (300, 300)])
def test_what_is_transparent_lies_on_white(size: tuple[int, int]) -> None:
    image = PIL.Image.new("RGBA", size, (0, 0, 0, 0))
    media = picture(image, "PNG")
    assert np.asarray(opened(store(media, POLICY))).min() > 250
    decoded: Any = decode(media)
    assert decoded.pixels.min() == 255


# --- Sounds ----------------------------------------------------------------------------------------------------------


def test_sounds_become_mono_flac_at_the_rate() -> None:
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(66_150) / 44_100)
    stored = store(sound(np.stack([tone, tone]), 44_100), POLICY)
    assert stored.media.format == "flac"
    assert stored.facts == {"seconds": 1.5, "sample_rate": 16_000}
    info = soundfile.info(io.BytesIO(stored.media.data))
    assert (info.format, info.subtype, info.channels, info.samplerate, info.frames) == (
        "FLAC",
        "PCM_24",
        1,
        16_000,
        24_000,
    )
    decoded: Any = decode(stored.media)
    exact = 0.4 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 16_000)
    assert np.abs(decoded.waveform[0] - exact)[100:-100].max() < 1e-4


def test_a_sound_already_so_keeps_its_bytes_and_sixteen_bits_are_kept_exactly() -> None:
    noise = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    flac = store(sound(noise[None], 16_000), POLICY).media
    decoded: Any = decode(flac)
    assert np.array_equal(decoded.waveform[0] * 32768, noise)
    assert kept(flac)
    assert not kept(flac, MediaPolicy(audio=AudioPolicy(sample_rate=8000)))


def test_imagebind_hears_in_the_stored_sound_what_the_golden_figures_say(shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "facts" / "imagebind_golden.json").read_text())
    t = np.arange(32_000) / 16_000
    wave = 0.4 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * (200 + 900 * t) * t)
    wave += 0.05 * np.random.default_rng(14).standard_normal(32_000)
    (tmp_path / "a.wav").write_bytes(sound(wave[None], 16_000, subtype="FLOAT").data)
    item = Item(modality=AUDIO, name="a.wav", caption="tones")
    [sample] = load_rows(
        [Sample(key="a", source="a", turns=(Turn(role="user", parts=(item,)),))], tmp_path, MediaPolicy()
    )
    assert isinstance(sample, Sample)
    heard: Any = decode(sample.media["flac"])
    mel = audio_inputs(heard)[0]
    assert mel.mean().item() == pytest.approx(golden["mel_mean"], abs=1e-3)
    assert mel.std().item() == pytest.approx(golden["mel_std"], abs=1e-3)
    for bin_, frame, value in golden["mel_samples"]:
        assert mel[0, bin_, frame].item() == pytest.approx(value, abs=1e-3), (bin_, frame)
    untouched = audio_inputs(Audio(waveform=wave[None].astype(np.float32), sample_rate=16_000))[0]
    assert (mel - untouched).abs().max() < 1e-3


def test_real_sounds_lose_nothing_imagebind_could_hear(sample_root: Path) -> None:
    for path in sorted((sample_root / "T-X_pair_data" / "audiocap" / "audios").iterdir())[:4]:
        media = Media(modality=AUDIO, data=path.read_bytes(), format="wav")
        before, after = (audio_inputs(decoded) for decoded in (decode(media), decode(store(media, POLICY).media)))  # type: ignore[arg-type]
        assert (before - after).abs().mean() < 1e-3


# --- Videos ----------------------------------------------------------------------------------------------------------


def test_videos_are_cut_to_rate_size_and_length() -> None:
    stored = store(film(90, fps=30), POLICY)
    assert stored.media.format == "mp4"
    assert stored.facts == {"width": 48, "height": 32, "seconds": 2.0, "fps": 8.0}
    decoded: Any = decode(stored.media)
    assert (decoded.frames.shape, decoded.fps) == ((16, 32, 48, 3), 8.0)
    brightness = decoded.frames.mean(axis=(1, 2, 3))
    assert np.allclose(np.diff(brightness), 240 / 90 * 30 / 8, atol=4)


@pytest.mark.parametrize("fps", [5.0, 7.5])
def test_a_slow_video_keeps_its_frames_and_rate(fps: float) -> None:
    stored = store(film(8, fps), POLICY)
    decoded: Any = decode(stored.media)
    assert (len(decoded.frames), decoded.fps, stored.facts["fps"]) == (8, fps, fps)


def test_a_video_already_so_keeps_its_bytes() -> None:
    once = store(film(90, fps=30), POLICY).media
    assert kept(once)
    assert kept(film(8, fps=8, width=50, height=32))
    assert not kept(film(8, fps=10, width=50, height=32))
    assert not kept(film(24, fps=8, width=50, height=32))


def turned(media: Media, degrees: int) -> Media:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(media.data)) as old, av.open(buffer, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return Media(modality=VIDEO, data=buffer.getvalue(), format="mp4")


@pytest.mark.parametrize(("degrees", "size"), [(90, (32, 48)), (180, (48, 32))])
def test_a_turned_video_is_stored_upright(degrees: int, size: tuple[int, int]) -> None:
    media = turned(film(8, fps=8, width=48, height=32), degrees)
    stored = store(media, POLICY)
    assert stored.media.data is not media.data
    assert (stored.facts["width"], stored.facts["height"]) == size
    original = store(media, ORIGINALS)
    assert (original.facts["width"], original.facts["height"]) == size


def test_frames_keep_their_time_where_some_are_missing() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in [*range(15), *range(45, 60)]:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    stored = store(Media(modality=VIDEO, data=buffer.getvalue(), format="mkv"), POLICY)
    with av.open(io.BytesIO(stored.media.data)) as container:
        times = [round(float(frame.time), 3) for frame in container.decode(video=0)]
    assert times == [0, 0.125, 0.25, 0.375, 1.5, 1.625, 1.75, 1.875]


# --- All -------------------------------------------------------------------------------------------------------------

MEDIA = [
    picture(photo(300, 200), "PNG", suffix="png"),
    sound(np.zeros((2, 44_100)), 44_100),
    film(30, fps=30),
]


@pytest.mark.parametrize("media", MEDIA, ids=lambda media: media.modality)
def test_originals_are_kept_as_they_came_on_request(media: Media) -> None:
    assert not kept(media)
    stored = store(media, ORIGINALS)
    assert stored.media == media
    assert stored.facts


@pytest.mark.parametrize("media", MEDIA, ids=lambda media: media.modality)
def test_an_original_that_is_broken_is_not_kept(media: Media) -> None:
    for policy in (POLICY, ORIGINALS):
        with pytest.raises(ValueError, match=r"^unreadable: "):
            store(Media(modality=media.modality, data=media.data[: len(media.data) // 2], format="bin"), policy)


@pytest.mark.parametrize("media", MEDIA, ids=lambda media: media.modality)
def test_equal_bytes_are_stored_as_equal_bytes_and_once_stored_stay(media: Media) -> None:
    first = store(media, POLICY)
    random.random()
    assert store(Media(modality=media.modality, data=bytes(bytearray(media.data)), format="x"), POLICY) == first
    again = store(first.media, POLICY)
    assert again == first


def test_limits_of_the_policy_hold() -> None:
    for media, limits in zip(
        MEDIA, (Limits(max_pixels=1000), Limits(max_seconds=0.5), Limits(max_frames=9)), strict=True
    ):
        with pytest.raises(ValueError, match=r"^too (large|long): "):
            store(media, MediaPolicy(limits=limits))


def test_a_policy_with_a_mistake_is_refused() -> None:
    for wrong in ({"image": {"quality": 0}}, {"video": {"fps": 0}}, {"pictures": {}}, {"video": {"fps": float("inf")}}):
        with pytest.raises(ValueError, match="1 validation error"):
            MediaPolicy.model_validate(wrong)
