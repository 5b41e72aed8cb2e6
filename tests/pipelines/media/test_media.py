"""Media decode within limits, whatever the bytes; what is refused says why in one line that a ledger can count."""

import io
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from pipelines.media import codecs as media
from pipelines.media.codecs import encode, load
from pipelines.media.policy import Limits
from pipelines.sample import Audio, Image, Media, Modality, Video

decode: Callable[..., Any] = media.decode  # What it returns depends on the modality, which each test knows.
IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO


def black_png(width: int, height: int) -> bytes:
    """A PNG of zeros: a few hundred KB of file may hold 500 MB of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(1)
    rows = bytes((1 + 3 * width) * 100)
    pixels = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def wav(waveform: np.ndarray, sample_rate: int = 16_000, subtype: str = "PCM_16", format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=format, subtype=subtype)
    return buffer.getvalue()


def m4a(seconds: float = 1.0, sample_rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=sample_rate, layout="mono")
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * sample_rate)) / sample_rate, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def video(frames: int = 20, fps: float = 10, side: int = 32) -> Media:
    """Grey frames that grow brighter, so a decoded frame tells which one it was."""
    levels = np.linspace(0, 240, frames).astype(np.uint8)
    return encode(Video(frames=np.broadcast_to(levels[:, None, None, None], (frames, side, side, 3)), fps=fps))


def reason(data: bytes, modality: Modality, limits: Limits | None = None) -> str:
    with pytest.raises(ValueError, match=r"^\w.*$") as caught:
        decode(Media(modality=modality, data=data, format="bin"), limits or Limits())
    message = str(caught.value)
    assert "\n" not in message
    assert " at 0x" not in message
    return message


@pytest.mark.parametrize(
    ("folder", "modality", "count"),
    [("cc3m/images", IMAGE, 14), ("webvid/videos", VIDEO, 3), ("audiocap/audios", AUDIO, 14)],
)
def test_real_media_decode(sample_root: Path, folder: str, modality: Modality, count: int) -> None:
    paths = sorted((sample_root / "T-X_pair_data" / folder).iterdir(), key=lambda path: path.stat().st_size)[:count]
    decoded = [decode(load(path, modality), fps=1) for path in paths]
    assert len(decoded) == count
    for value in decoded:
        if isinstance(value, Image):
            assert value.pixels.dtype == np.uint8
            assert value.pixels.shape == (256, 256, 3)
        elif isinstance(value, Video):
            assert value.frames.dtype == np.uint8
            assert value.frames.shape[1:] == (336, 596, 3)
            assert value.fps == 1
            assert 7 <= len(value.frames) <= 30
        else:
            assert value.waveform.dtype == np.float32
            assert value.waveform.shape[0] == 2
            assert np.abs(value.waveform).max() <= 1
            assert value.sample_rate in (44_100, 48_000)


def test_png_round_trips_exactly() -> None:
    pixels = noise(7, 5, 3)
    assert np.array_equal(decode(encode(Image(pixels=pixels))).pixels, pixels)


def test_wav_round_trips_within_one_step() -> None:
    waveform = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    decoded = decode(encode(Audio(waveform=waveform, sample_rate=48_000)))
    assert decoded.sample_rate == 48_000
    assert np.abs(decoded.waveform - waveform).max() < 2 / 32768


def test_mp4_keeps_length_rate_and_pads_odd_sizes() -> None:
    smooth = np.broadcast_to(np.arange(33, dtype=np.uint8)[None, :, None, None] * 4, (5, 33, 47, 3))
    decoded = decode(encode(Video(frames=smooth, fps=7.5)))
    assert (decoded.frames.shape, decoded.fps) == ((5, 34, 48, 3), 7.5)
    assert np.abs(decoded.frames[:, :33, :47].astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(
    "decoded",
    [
        Image(pixels=noise(9, 9, 3)),
        Video(frames=noise(6, 16, 16, 3), fps=8),
        Audio(waveform=np.zeros((1, 100), np.float32), sample_rate=16_000),
    ],
)
def test_equal_arrays_encode_to_equal_bytes(decoded: Image | Video | Audio) -> None:
    assert encode(decoded) == encode(decoded)


def test_nan_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="NaN"):
        encode(Audio(waveform=np.full((1, 4), np.nan, np.float32), sample_rate=16_000))


@pytest.mark.parametrize(("fps", "kept"), [(None, 20), (20.0, 20), (10.0, 20), (5.0, 10), (2.0, 4), (0.5, 1)])
def test_fps_keeps_at_most_that_many_frames_a_second(fps: float | None, kept: int) -> None:
    decoded = decode(video(frames=20, fps=10), fps=fps)
    assert len(decoded.frames) == kept
    assert decoded.fps == min(10, fps or 10)
    brightness = decoded.frames.mean(axis=(1, 2, 3))
    assert np.all(np.diff(brightness) > 0)
    assert brightness[0] < 3


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_an_impossible_fps_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="fps is"):
        decode(video(), fps=fps)


def test_skipped_frames_are_not_held() -> None:
    clip = video(frames=200, fps=50, side=128)
    tracemalloc.start()
    decode(clip, fps=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 128 * 128 * 3  # A fifth of what all 200 frames take.


def test_exif_orientation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise.
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    decoded = decode(Media(modality=IMAGE, data=jpeg(pixels, exif=exif), format="jpg")).pixels
    assert decoded.shape == (16, 8, 3)
    assert decoded[:6].mean() > 240
    assert decoded[10:].mean() < 15


def test_a_turned_video_stands_upright() -> None:
    source = io.BytesIO(encode(Video(frames=np.zeros((3, 16, 32, 3), np.uint8), fps=8)).data)
    turned = io.BytesIO()
    with av.open(source) as old, av.open(turned, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(90)
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert decode(Media(modality=VIDEO, data=turned.getvalue(), format="mp4")).frames.shape == (3, 32, 16, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_picture_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    grey = PIL.Image.new("L", (6, 4), 128)
    picture = PIL.Image.fromarray(np.full((4, 6), 128 << 8, np.uint16)) if mode == "I;16" else grey.convert(mode)
    picture.save(buffer, format="TIFF" if mode == "CMYK" else "PNG")
    pixels = decode(Media(modality=IMAGE, data=buffer.getvalue(), format="png")).pixels
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    if mode != "1":
        assert np.abs(pixels.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_compressed_sound_decodes(format: str) -> None:
    tone = 0.5 * np.sin(np.arange(16_000) * 0.1)
    subtype = {"FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}[format]
    decoded = decode(Media(modality=AUDIO, data=wav(tone, subtype=subtype, format=format), format=format.lower()))
    assert decoded.waveform.shape[0] == 1
    assert decoded.sample_rate == 16_000
    assert abs(decoded.waveform.shape[1] - 16_000) < 2500
    assert 0.4 < np.abs(decoded.waveform).max() <= 1


def test_m4a_decodes_though_soundfile_cannot() -> None:
    decoded = decode(Media(modality=AUDIO, data=m4a(), format="m4a"))
    assert decoded.sample_rate == 16_000
    assert abs(decoded.waveform.shape[1] - 16_000) < 2500
    assert 0.4 < np.abs(decoded.waveform).max() < 0.6


def test_loud_float_sound_is_clipped() -> None:
    data = wav(np.array([0.5, 1.5, -3.0]), subtype="FLOAT")
    assert decode(Media(modality=AUDIO, data=data, format="wav")).waveform.tolist() == [[0.5, 1.0, -1.0]]


@pytest.mark.parametrize("modality", list(Modality))
@pytest.mark.parametrize("data", [b"not a medium", b"\0" * 1000, b"RIFF\x10\0\0\0WAVEjunk", b"\x89PNG\r\n\x1a\n"])
def test_garbage_is_unreadable(modality: Modality, data: bytes) -> None:
    assert reason(data, modality).startswith("unreadable: ")


@pytest.mark.parametrize("modality", list(Modality))
def test_nothing_is_an_empty_file(modality: Modality) -> None:
    assert reason(b"", modality) == "empty file"


@pytest.mark.parametrize("modality", list(Modality))
def test_more_bytes_than_the_limit_are_refused(modality: Modality) -> None:
    assert reason(b"12345", modality, Limits(max_bytes=4)) == "too large: 5 bytes, the limit is 4"


def test_a_small_png_of_500_mb_is_refused_before_its_pixels_are_made() -> None:
    data = black_png(13_000, 13_000)
    assert len(data) < 3_000_000
    tracemalloc.start()
    message = reason(data, IMAGE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == "too large: 13000x13000 pixels, the limit is 64000000"
    assert peak < 20_000_000


def test_a_picture_pillow_itself_refuses_is_too_large() -> None:
    assert reason(black_png(13_800, 13_800), IMAGE).startswith("too large: ")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_unreadable(part: float) -> None:
    data = jpeg(noise(64, 64, 3))
    assert reason(data[: int(len(data) * part)], IMAGE).startswith("unreadable: ")


def test_a_truncated_mp4_is_unreadable() -> None:
    data = video().data
    assert reason(data[: len(data) // 2], VIDEO).startswith("unreadable: ")


def test_an_mp4_without_video_has_no_video_stream() -> None:
    assert reason(m4a(), VIDEO) == "no video stream"


def test_a_sound_with_a_cover_picture_has_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    picture = jpeg(noise(8, 8, 3))
    body = b"\0image/jpeg\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + frame + wav(np.zeros(16_000), subtype="MPEG_LAYER_III", format="MP3"))
    assert reason(path.read_bytes(), VIDEO) == "no video stream"


def test_a_silent_video_has_no_audio_stream() -> None:
    assert reason(video().data, AUDIO) == "no audio stream"


def test_a_playlist_does_not_open_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.mp4").write_bytes(video().data)
    monkeypatch.chdir(tmp_path)
    assert reason(b"ffconcat version 1.0\nfile secret.mp4\n", VIDEO).startswith("unreadable: ")


def test_a_long_video_is_refused_by_its_header() -> None:
    limits = Limits(max_seconds=1.5)
    assert reason(video(frames=20, fps=10).data, VIDEO, limits) == "too long: 2 s, the limit is 1.5 s"


def test_frames_and_decoded_bytes_of_a_video_are_limited() -> None:
    data = video(frames=20).data
    assert reason(data, VIDEO, Limits(max_frames=19)) == "too long: more than 19 frames"
    assert reason(data, VIDEO, Limits(max_pixels=1000)).startswith("too large: 32x32")
    assert reason(data, VIDEO, Limits(max_decoded_bytes=19 * 32 * 32 * 3)).startswith("too large: ")
    kept = decode(Media(modality=VIDEO, data=data, format="mp4"), Limits(max_decoded_bytes=4 * 32 * 32 * 3), fps=2)
    assert len(kept.frames) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_that_is_not_finite_is_unreadable(value: float) -> None:
    data = wav(np.array([0.0, value, 0.0]), subtype="FLOAT")
    assert reason(data, AUDIO) == "unreadable: NaN or infinite samples"


def test_a_wav_header_that_claims_ten_hours_is_refused() -> None:
    data = bytearray(wav(np.zeros(16_000)))
    position = data.index(b"data") + 4
    data[position : position + 4] = struct.pack("<I", 36_000 * 16_000 * 2)
    assert reason(bytes(data), AUDIO) == "unreadable: cut off after 32000 of 1152000000 bytes of samples"


def test_ten_hours_of_sound_in_a_small_file_are_too_long() -> None:
    assert reason(wav(np.zeros(36_000), sample_rate=1), AUDIO) == "too long: 36000 s, the limit is 600 s"
    assert reason(m4a(seconds=3), AUDIO, Limits(max_seconds=2)).startswith("too long: ")


def test_a_wav_written_to_a_pipe_is_read_to_its_end() -> None:
    data = bytearray(wav(np.full(100, 0.5)))
    position = data.index(b"data") + 4
    data[position : position + 4] = b"\xff\xff\xff\xff"
    assert decode(Media(modality=AUDIO, data=bytes(data), format="wav")).waveform.shape == (1, 100)


def test_many_channels_are_too_large() -> None:
    data = wav(np.zeros((1000, 16)))
    assert reason(data, AUDIO, Limits(max_decoded_bytes=1000 * 15 * 4)).startswith("too large: ")


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_truncated_sound_is_unreadable(format: str) -> None:
    data = wav(np.random.default_rng(0).uniform(-1, 1, 16_000), format=format)
    assert reason(data[: len(data) // 2], AUDIO).startswith("unreadable: ")


def test_sound_without_samples_is_unreadable() -> None:
    assert reason(wav(np.zeros(0)), AUDIO) == "unreadable: no samples"


def test_flipped_bits_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(0)
    originals = [(IMAGE, jpeg(noise(32, 32, 3))), (VIDEO, video(frames=4).data), (AUDIO, wav(np.zeros(500)))]
    outcomes: Counter[str] = Counter()
    for modality, original in originals:
        for _ in range(60):
            data = bytearray(original)
            for position in rng.integers(0, len(data), 8):
                data[position] ^= int(rng.integers(1, 256))
            try:
                decode(Media(modality=modality, data=bytes(data), format="bin"))
            except ValueError as error:
                outcomes[str(error).split(":")[0]] += 1
            else:
                outcomes["decoded"] += 1
    known = {"decoded", "unreadable", "too large", "too long", "no video stream", "no audio stream"}
    assert set(outcomes) <= known
    assert outcomes["unreadable"]


def test_load_reads_bytes_and_takes_the_format_from_the_content_or_else_from_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.b.JPG"
    path.write_bytes(b"123")
    assert load(path, IMAGE) == Media(modality=IMAGE, data=b"123", format="jpg")
    for name in ("plain", "photo.jpg?w=640&h=480", "photo.jpg_640x480", "wrong.jpg", "0a" * 32):
        path = tmp_path / name
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
        assert load(path, IMAGE).format == "png"


def test_load_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "big.jpg").write_bytes(b"12345")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "plain").write_bytes(b"1")
    expected = {
        "empty.jpg": "empty file",
        "big.jpg": "too large: 5 bytes, the limit is 4",
        "folder.jpg": "unreadable: not a regular file",
        "absent.jpg": "missing file",
        "plain": "unreadable: plain is of no known format",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=f"^{message}$"):
            load(tmp_path / name, IMAGE, Limits(max_bytes=4))
