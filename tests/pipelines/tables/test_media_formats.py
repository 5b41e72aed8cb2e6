"""A file is what its content says, in a folder, a tar and a column alike; its name counts where that is silent."""

import io
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipelines.media.codecs import decode
from pipelines.media.folder import load_rows
from pipelines.media.policy import MediaPolicy
from pipelines.sample import Item, Modality, Reject, Sample, Turn
from pipelines.sources.entry import Entry
from pipelines.sources.pairs import read
from pipelines.tables.media_formats import SUFFIXES, media_format, modalities_of, sniff, suffix_of

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)


def picture(format: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, format=format)
    return buffer.getvalue()


def sound(format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, 16_000, format=format, subtype=subtype)
    return buffer.getvalue()


def muxed_sound(format: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=16_000, layout="mono")
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 16_000, frame_size=1152)
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for given in (frame, None):
            for piece in resampler.resample(given):
                container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return buffer.getvalue()


def muxed_video(format: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
        for _ in range(50):
            red = np.broadcast_to(np.array([200, 30, 30], np.uint8), (48, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(red), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return buffer.getvalue()


PICTURES = {name: picture(format) for name, format in {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "avif": "AVIF",
}.items()}  # fmt: skip
SOUNDS = {
    **{name: sound(name.upper()) for name in ("wav", "flac", "mp3", "ogg", "aiff", "au", "w64", "caf")},
    "opus": sound("OGG", "OPUS"),
    "aac": muxed_sound("adts", "aac"),
    "m4a": muxed_sound("ipod", "aac"),
    "webm": muxed_sound("webm", "libopus") if "libopus" in av.codecs_available else b"\x1aE\xdf\xa3",
}
# By what they are, those whose names or headers are another format's.
DISGUISED = {"rf64": sound("RF64"), "mp3 in riff": muxed_sound("wav", "libmp3lame")}
VIDEOS = {
    "mp4": muxed_video("mp4", "mpeg4"),
    "mov": muxed_video("mov", "mpeg4"),
    "mkv": muxed_video("matroska", "mpeg4"),
    "avi": muxed_video("avi", "mpeg4"),
    "flv": muxed_video("flv", "flv"),
    "mpg": muxed_video("mpeg", "mpeg1video"),
    "ts": muxed_video("mpegts", "mpeg2video"),
    "gif": muxed_video("gif", "gif"),
}
MEDIA = [
    *[(IMAGE, name, data) for name, data in PICTURES.items()],
    *[(AUDIO, name, data) for name, data in (SOUNDS | DISGUISED).items()],
    *[(VIDEO, name, data) for name, data in VIDEOS.items()],
]


# Named: some writers put random numbers into a file, and the processes of xdist must agree on a test's name.
@pytest.mark.parametrize(
    ("name", "data"), [pytest.param(name, data, id=name) for _, name, data in MEDIA if name not in DISGUISED]
)
def test_what_other_programs_wrote_is_known_by_its_first_bytes(name: str, data: bytes) -> None:
    assert sniff(data) == name
    assert media_format(data, "x.JPEG", "x") == name
    assert sniff(data[:512]) == name


@pytest.mark.parametrize(
    ("data", "original", "suffix"),
    [
        (b"RIFF1234WEBPx", "", "webp"),
        (b"1234ftypisom", "", "mp4"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "", "avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "", "heic"),
        (b"\0\0\0\x14ftypheix\0\0\0\0mif1", "", "heic"),
        (b"\xff\x0a\0\0", "", "jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "", "jxl"),
        (b"\x1aE\xdf\xa3", "a.b/c", "webm"),
        (b"OggS", "", "ogg"),
        (b"\xff\xfb\x90", "", "mp3"),
        (b"\xff\xf1\x50", "", "aac"),
        (b"anything", "C:\\x\\y.JPEG", "jpeg"),
        (b"anything", "photo.webp?w=640&h=4.5", "webp"),
        (b"anything", "what?.png", "png"),
        (b"\xff\xfeb\0", "x.txt", "txt"),  # UTF-16
    ],
)
def test_a_format_is_known_by_the_first_bytes_or_the_name(data: bytes, original: str, suffix: str) -> None:
    assert media_format(data, original, "x") == suffix


def test_what_neither_tells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unreadable: x is of no known format$"):
        media_format(b"anything", "photo.jpg_640x480", "x")
    with pytest.raises(ValueError, match=r"^empty file: x is of no known format$"):
        media_format(b"", "photo", "x")


def test_names_say_what_a_file_may_hold() -> None:
    assert modalities_of("a/b.GIF") == (IMAGE, VIDEO)
    assert modalities_of("b.mp4?x=1") == (VIDEO, AUDIO)
    assert modalities_of("0001.opus") == (AUDIO,)
    assert modalities_of("flac") == (AUDIO,)
    assert modalities_of("0001.txt") == modalities_of("0001") == modalities_of("") == ()
    assert suffix_of("x.tar.gz#t=1") == "gz"
    for suffixes in SUFFIXES.values():
        assert len(set(suffixes)) == len(suffixes)


def stored_of(samples: list[Sample | Reject], root: Path) -> Any:
    [sample] = samples
    assert isinstance(sample, Sample), sample
    [loaded] = load_rows([sample], root, MediaPolicy())
    assert isinstance(loaded, Sample), loaded
    [medium] = loaded.media.values()
    return decode(medium)


def check(modality: Modality, decoded: Any) -> None:
    """What was written comes out: the colour, or the tone."""
    if modality == AUDIO:
        wave = decoded.waveform[0]
        assert decoded.sample_rate == 16_000
        assert abs(len(wave) - 32_000) < 2500
        middle = wave[8000:24_000]
        assert abs(int(np.abs(np.fft.rfft(middle)).argmax()) - 440) <= 1
        assert 0.4 < np.abs(middle).max() < 0.6
        return
    pixels = decoded.pixels if modality == IMAGE else decoded.frames[len(decoded.frames) // 2]
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels[24, 32].astype(int) - [200, 30, 30]).max() <= 32  # GIF has few colours.
    if modality == VIDEO:
        assert len(decoded.frames) >= 14


def entry(modality: Modality) -> Entry:
    return Entry(name="x", reader="pairs", modality=modality, paths=["x"], views={})


@pytest.mark.parametrize(("modality", "name", "data"), MEDIA, ids=[f"{kind}-{name}" for kind, name, _ in MEDIA])
@pytest.mark.parametrize("called", ["medium.{}", "nothing", "medium.wrong", "medium.{}?w=640&h=480"])
def test_a_folder_and_a_tar_take_the_same_formats_under_any_name(
    tmp_path: Path, modality: Modality, name: str, data: bytes, called: str
) -> None:
    called = called.format("wav" if name in DISGUISED else name)
    (tmp_path / called).write_bytes(data)
    item = Item(modality=modality, name=called)
    row = Sample(key="k", source="x#0", turns=(Turn(role="user", parts=(item,)),))
    check(modality, stored_of([row], tmp_path))

    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        stem = called.partition(".")[0]
        for member, body in ((called, data), (f"{stem}.txt", b"a caption")):
            info = tarfile.TarInfo(member)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    check(modality, stored_of(list(read(entry(modality), path)), tmp_path))


@pytest.mark.parametrize("modality", list(Modality))
def test_a_column_takes_the_same_formats(tmp_path: Path, modality: Modality) -> None:
    chosen = [(name, data) for kind, name, data in MEDIA if kind == modality]
    values = [{"bytes": data, "path": "x/medium.wrong"} for _, data in chosen]
    pq.write_table(pa.table({str(modality): values, "caption": ["a"] * len(values)}), tmp_path / "0.parquet")
    samples = list(read(entry(modality), tmp_path / "0.parquet"))
    assert len(samples) == len(chosen)
    for sample in samples:
        check(modality, stored_of([sample], tmp_path))
