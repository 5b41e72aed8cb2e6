"""Videos are stored and decoded as players show them: at their times, upright, in square pixels, cut by edit lists.

All are written by FFmpeg; brightness or the colour of a corner tells which frame is seen, and how it lies.
"""

import io
import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.media.codecs import decode, decode_frames
from pipelines.media.films import open_video
from pipelines.media.policy import Limits, MediaPolicy, Refused
from pipelines.media.stored import Stored, store
from pipelines.sample import Media, Modality, Video

POLICY = MediaPolicy()
ORIGINALS = MediaPolicy(keep_originals=True)
GRID = 1 / POLICY.video.fps
UNEVEN = (0.0, 0.1, 0.2, 0.25, 0.3, 2.0, 5.0, 9.5, 9.6, 14.0)
STEADY = tuple(index / 10 for index in range(40))
MILLISECONDS = Fraction(1, 1000)
QUARTERS = np.zeros((64, 96, 3), np.uint8)
QUARTERS[:32, :48], QUARTERS[:32, 48:], QUARTERS[32:, :48], QUARTERS[32:, 48:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
)


def medium(data: bytes) -> Media:
    return Media(modality=Modality.VIDEO, data=data, format="bin")


def written(
    frames: Sequence[tuple[float, np.ndarray]],
    format: str = "matroska",
    codec: str = "libx264",
    time_base: Fraction = MILLISECONDS,
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 30,
    gop: int = 12,
    muxer: dict[str, str] | None = None,
    prepare: Callable[[Any], object] = lambda stream: None,
    **options: str,
) -> bytes:
    """A video of frames, each with its time in seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0][1].shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        stream.codec_context.time_base = time_base
        prepare(stream)
        for time, pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def grey(times: Sequence[float], start: float = 0, slope: float = 10) -> list[tuple[float, np.ndarray]]:
    """A frame at each time, as bright as 20 and `slope` times the seconds since `start`."""
    return [(time, np.full((64, 96, 3), 20 + slope * (time - start), np.uint8)) for time in times]


def shown(data: bytes) -> list[tuple[float, float]]:
    """Time and brightness of each frame, as PyAV sees them."""
    with av.open(io.BytesIO(data)) as container:
        return [(frame.time, float(frame.to_ndarray(format="rgb24").mean())) for frame in container.decode(video=0)]  # type: ignore[misc]


def seen(data: bytes, fps: float | None = None) -> Any:
    return decode(medium(data), fps=fps)


def reason(data: bytes, policy: MediaPolicy = POLICY) -> str:
    with pytest.raises(Refused) as caught:
        store(medium(data), policy)
    return str(caught.value)


def once_stored_stays(stored: Stored) -> bool:
    return store(stored.media, POLICY) == stored


# --- Times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "codec", "time_base", "pix_fmt"),
    [
        ("matroska", "libx264", MILLISECONDS, "yuv420p"),
        ("webm", "libvpx-vp9", MILLISECONDS, "yuv420p"),
        ("mp4", "libx265", Fraction(1, 90_000), "yuv420p"),
        ("mov", "prores_ks", Fraction(1, 600), "yuv422p10le"),
        ("mpegts", "libx264", Fraction(1, 90_000), "yuv420p"),
        ("flv", "flv", MILLISECONDS, "yuv420p"),
        ("asf", "wmv2", MILLISECONDS, "yuv420p"),
        ("gif", "gif", Fraction(1, 100), "rgb8"),
    ],
)
def test_a_slow_video_of_uneven_rate_keeps_its_times(
    format: str, codec: str, time_base: Fraction, pix_fmt: str
) -> None:
    stored = store(medium(written(grey(UNEVEN), format, codec, time_base, pix_fmt)), POLICY)
    frames = shown(stored.media.data)
    assert [round(time, 3) for time, _ in frames] == [0, 0.125, 0.25, 2, 5, 9.5, 14]
    assert [level for _, level in frames] == pytest.approx([20, 21.5, 23, 40, 70, 116, 160], abs=4)
    assert 14 < stored.facts["seconds"] < 14.3
    assert stored.facts["fps"] == pytest.approx(7 / stored.facts["seconds"], abs=1e-3)
    assert once_stored_stays(stored)


@pytest.mark.parametrize("keep", [True, False])
def test_a_decoded_frame_is_what_is_shown_at_its_time(keep: bool) -> None:
    stored = store(medium(written(grey(UNEVEN))), ORIGINALS if keep else POLICY)
    video = seen(stored.media.data, fps=2)
    assert video.fps == 2
    shows = [20, 20, 20, 20, *[40] * 6, *[70] * 9, *[116] * 9, 160]
    assert video.frames.mean(axis=(1, 2, 3))[: len(shows)] == pytest.approx(shows, abs=5)
    assert len(video.frames) in (len(shows) - 1, len(shows))
    assert len(seen(stored.media.data, fps=10).frames) == pytest.approx(141, abs=1)


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(10, 4000), min_size=1, max_size=9),
    start=st.integers(0, 9000),
    layout=st.sampled_from([("matroska", Fraction(1, 1000)), ("mp4", Fraction(1, 90_000)), ("mov", Fraction(1, 600))]),
)
def test_any_spacing_from_any_first_time_stamp_is_kept(
    gaps: list[int], start: int, layout: tuple[str, Fraction]
) -> None:
    format, time_base = layout
    times = [sum(gaps[:count]) / 1000 for count in range(len(gaps) + 1)]
    frames = [
        (start / 1000 + time, np.full((32, 32, 3), 20 + 22 * index, np.uint8)) for index, time in enumerate(times)
    ]
    stored = store(medium(written(frames, format, time_base=time_base, pix_fmt="yuv444p", crf="4")), POLICY)
    found = shown(stored.media.data)
    delay = start / 1000 if format in ("mp4", "mov") else 0.0  # An mp4 whose frames begin late holds an empty edit.
    assert found[0][0] == pytest.approx(delay, abs=GRID)
    levels = [round((level - 20) / 22) for _, level in found]
    assert levels == sorted(set(levels))
    assert levels[0] == 0 or times[levels[0]] < GRID
    for (time, _), index in zip(found, levels, strict=True):
        assert abs(time - delay - times[index]) < GRID + 0.02
    assert levels[-1] == len(times) - 1 or times[-1] - times[levels[-1]] < GRID
    assert stored.facts["seconds"] >= delay + times[-1] - GRID
    # Its bytes; frames that were uneven may lie evenly on the grid now, at a rate instead of a mean.
    assert store(stored.media, POLICY).media == stored.media


def test_a_video_of_a_frame_in_ten_seconds_keeps_its_rate() -> None:
    data = written(grey([0, 10, 20, 30], slope=5), "mp4", "libx265", Fraction(1, 10), rate=Fraction(1, 10))
    stored = store(medium(data), POLICY)
    assert stored.facts == {"width": 96, "height": 64, "seconds": 40.0, "fps": 0.1}
    times, levels = zip(*shown(stored.media.data), strict=True)
    assert times == (0, 10, 20, 30)
    assert levels == pytest.approx([20, 70, 120, 170], abs=4)
    assert seen(stored.media.data, fps=8).fps == 0.1


def test_the_frame_that_stays_is_stored_and_not_one_that_flashed_by() -> None:
    """Ten frames in a tenth of a second, and the last of them is shown for three."""
    times = [index / 100 for index in range(10)] + [3, 6]
    levels = [20 + 10 * index for index in range(10)] + [150, 200]
    frames = [(time, np.full((64, 96, 3), level, np.uint8)) for time, level in zip(times, levels, strict=True)]
    found = shown(store(medium(written(frames)), POLICY).media.data)
    assert [time for time, _ in found] == [0, 3, 6]
    assert [level for _, level in found] == pytest.approx([110, 150, 200], abs=4)


def test_the_last_picture_of_a_gif_is_shown_as_long_as_it_says() -> None:
    buffer = io.BytesIO()
    pictures = [PIL.Image.new("RGB", (40, 30), (level,) * 3) for level in (20, 120, 220)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=[100, 1000, 5000])
    stored = store(medium(buffer.getvalue()), POLICY)
    assert stored.facts["seconds"] == pytest.approx(6.1, abs=GRID)
    assert [round(time, 3) for time, _ in shown(stored.media.data)] == [0, 1.0]
    video = seen(buffer.getvalue(), fps=10)
    levels = video.frames.mean(axis=(1, 2, 3))
    assert levels == pytest.approx([20] + [120] * 10 + [220] * 50, abs=3)
    assert once_stored_stays(stored)


def test_a_film_of_one_frame_lasts_as_long_as_it_says() -> None:
    for duration, seconds in ((500, 0.5), (5000, 5.0)):
        buffer = io.BytesIO()
        pictures = [PIL.Image.new("RGB", (40, 30), (level,) * 3) for level in (90, 91)]
        pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=[duration, 20])
        stored = store(medium(buffer.getvalue()), POLICY)
        assert stored.facts["seconds"] == pytest.approx(seconds, abs=GRID)
        single = io.BytesIO()
        pictures[0].save(single, "GIF", duration=duration)
        stored = store(medium(single.getvalue()), POLICY)
        assert stored.facts["seconds"] == seconds
        assert len(shown(stored.media.data)) == 1
        assert once_stored_stays(stored)


@pytest.mark.parametrize(("format", "codec"), [("mpegts", "libx264"), ("mpeg", "mpeg2video")])
def test_joined_streams_whose_clock_begins_anew_are_one_film(format: str, codec: str) -> None:
    rate = 25
    one = written(grey([index / rate for index in range(100)], slope=40), format, codec, Fraction(1, rate), rate=rate)
    stored = store(medium(one + one), POLICY)
    assert stored.facts["seconds"] == 8.0
    levels = [level for _, level in shown(stored.media.data)]
    assert len(levels) == 64
    assert levels[:32] == pytest.approx(levels[32:], abs=4)


def test_a_stream_that_begins_between_key_frames_is_shown_from_the_next_one() -> None:
    data = written(grey(STEADY, slope=40), "mpegts", time_base=Fraction(1, 10), rate=10)
    stored = store(medium(data[188 * 12 :]), POLICY)
    frames = shown(stored.media.data)
    assert frames[0][0] == 0
    assert frames[0][1] == pytest.approx(20 + 40 * 1.2, abs=3)
    assert stored.facts["seconds"] == pytest.approx(2.8, abs=GRID)


def test_a_transport_stream_may_end_at_any_of_its_packets() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        video: Any = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound: Any = container.add_stream("aac", rate=16_000, layout="mono")
        for index in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 + 4 * index, np.uint8), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(video.encode(picture))
            noise = np.random.default_rng(index).uniform(-1, 1, (1, 640)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 16_000, 640 * index, Fraction(1, 16_000)
            container.mux(sound.encode(heard))
        container.mux([*video.encode(), *sound.encode()])
    data = buffer.getvalue()
    packets = len(data) // 188
    for end in range(packets - 40, packets, 3):
        stored = store(medium(data[: 188 * end]), POLICY)
        assert 1 < stored.facts["seconds"] <= 2
        for time, level in shown(stored.media.data):
            assert level == pytest.approx(20 + 100 * time, abs=8)


# --- Edit lists, and how much there is -------------------------------------------------------------------------------


def edited(edits: Sequence[tuple[float, float | None]]) -> bytes:
    """Four seconds of mp4 with an edit list: each edit its length and its place in seconds, None for nothing shown."""
    data = written(grey(STEADY, slope=40), "mp4", "mpeg4", Fraction(1, 10), rate=10, bf="2")
    start = data.index(b"elst") - 4
    [size, _, _, _, _, offset] = struct.unpack_from(">IIIIIi", data, start)
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4])
    entries = [
        (round(1000 * length), -1 if place is None else offset + round(scale * place), 1 << 16)
        for length, place in edits
    ]
    body = b"elst" + struct.pack(">II", 0, len(entries)) + b"".join(struct.pack(">Iii", *entry) for entry in entries)
    made = bytearray(data[:start] + struct.pack(">I", 4 + len(body)) + body + data[start + size :])
    for name in (b"moov", b"trak", b"edts"):
        position = made.index(name) - 4
        [old] = struct.unpack_from(">I", made, position)
        struct.pack_into(">I", made, position, old + 4 + len(body) - size)
    return bytes(made)


@pytest.mark.parametrize(
    ("edits", "times", "levels"),
    [
        ([(4, 0)], (0, 3.875), (20, 176)),
        ([(2, 1.5)], (0, 1.875), (80, 156)),  # begins between key frames
        ([(1, 0)], (0, 0.875), (20, 56)),
        ([(1, None), (4, 0)], (1, 4.875), (20, 176)),
        ([(1, None), (2, 1)], (1, 2.875), (60, 136)),
        ([(60, 0)], (0, 3.875), (20, 176)),  # claims more than there is
    ],
)
def test_an_edit_list_says_what_is_shown_and_when(
    edits: list[tuple[float, float | None]], times: tuple[float, float], levels: tuple[float, float]
) -> None:
    stored = store(medium(edited(edits)), POLICY)
    frames = shown(stored.media.data)
    assert (frames[0][0], frames[-1][0]) == times
    assert (frames[0][1], frames[-1][1]) == pytest.approx(levels, abs=4)
    assert len(frames) == 1 + (times[1] - times[0]) / GRID
    assert stored.facts["seconds"] == times[1] + GRID
    assert once_stored_stays(stored)


def test_what_an_empty_edit_delays_is_decoded_late() -> None:
    levels = seen(edited([(1, None), (2, 1)]), fps=4).frames.mean(axis=(1, 2, 3))
    assert len(levels) == 12
    assert levels[:5] == pytest.approx([60] * 5, abs=3)
    assert levels[-1] == pytest.approx(60 + 40 * 1.75, abs=5)


@pytest.mark.parametrize("keep", [True, False])
def test_a_clip_cut_without_encoding_is_what_a_player_shows(keep: bool) -> None:
    whole, clip = written(grey(STEADY, slope=40), "mp4", time_base=Fraction(1, 10), rate=10), io.BytesIO()
    with av.open(io.BytesIO(whole)) as old, av.open(clip, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        early = round(1.7 / old.streams.video[0].time_base)  # type: ignore[operator]
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
                new.mux(packet)
    with av.open(io.BytesIO(clip.getvalue())) as container:
        assert container.streams.video[0].frames == 40  # of which 17 lie before the cut
    stored = store(medium(clip.getvalue()), ORIGINALS if keep else POLICY)
    assert stored.facts["seconds"] == pytest.approx(2.3, abs=GRID)
    video = seen(stored.media.data, fps=5)
    assert video.frames[0].mean() == pytest.approx(20 + 40 * 1.7, abs=4)
    assert len(video.frames) in (11, 12)


def test_lengths_that_headers_claim_are_not_believed() -> None:
    data = bytearray(written(grey(STEADY, slope=40), "mp4", time_base=Fraction(1, 10), rate=10))
    for name in (b"mvhd", b"mdhd"):
        position = data.index(name) + 4
        [scale] = struct.unpack_from(">I", data, position + 12)
        for seconds in (300, 1):
            struct.pack_into(">I", data, position + 16, seconds * scale)
            assert store(medium(bytes(data)), POLICY).facts["seconds"] == 4.0


def test_dropped_frames_are_no_damage() -> None:
    """Two of five frames of a second and a half are there; the index of an AVI counts places, not frames."""
    times = [index / 25 for index in range(50) if index % 5 < 2 or index < 10]
    data = written(grey(times, slope=100), "avi", "mpeg4", Fraction(1, 25), rate=25)
    stored = store(medium(data), POLICY)
    assert stored.facts["seconds"] == pytest.approx(1.88, abs=GRID)
    for time, level in shown(stored.media.data):
        assert level == pytest.approx(20 + 100 * time, abs=100 * GRID + 3)


def whole_files(folder: Path) -> dict[str, bytes]:
    """The same 60 frames in every container."""
    ramp = np.tile(np.arange(240, dtype=np.uint8)[:, None, None], (1, 160, 3))
    frames = [(index / 25, np.roll(ramp, index, 0)) for index in range(60)]

    def file(format: str, codec: str = "libx264", **muxer: str) -> bytes:
        return written(frames, format, codec, Fraction(1, 25), rate=25, muxer=muxer)

    whole = file("mp4")
    with (
        av.open(io.BytesIO(whole)) as old,
        av.open(str(folder / "fast.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return {
        "mp4": whole,
        "faststart": (folder / "fast.mp4").read_bytes(),
        "fragments": file("mp4", movflags="frag_keyframe+empty_moov"),
        "mkv": file("matroska"),
        "webm": file("webm", "libvpx"),
        "avi": file("avi", "mpeg4"),
        "flv": file("flv", "flv"),
        "gif": written(frames, "gif", "gif", Fraction(1, 100), "rgb8"),
        "ts": file("mpegts"),
        "mpg": file("mpeg", "mpeg2video"),
        "wmv": file("asf", "wmv2"),
    }


def test_a_file_that_was_cut_off_is_told_from_a_whole_one(tmp_path: Path) -> None:
    for name, data in whole_files(tmp_path).items():
        assert 2.3 < store(medium(data), POLICY).facts["seconds"] < 2.6, name
        for part in (0.45, 0.7):
            assert reason(data[: int(len(data) * part) | 1]).startswith("unreadable: "), (name, part)


# --- Pixels ----------------------------------------------------------------------------------------------------------


def corners(pixels: np.ndarray) -> str:
    """The colours of the four quarters, row by row."""
    height, width = pixels.shape[:2]
    names: dict[tuple[int, ...], str] = {(255, 0, 0): "R", (0, 255, 0): "G", (0, 0, 255): "B", (255, 255, 255): "W"}
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names[tuple(255 if value > 128 else 0 for value in pixels[place])] for place in places)


def aspect(ratio: Fraction) -> Callable[[Any], object]:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio
        if stream.codec_context.name != "mpeg2video":
            stream.sample_aspect_ratio = ratio

    return prepare


@pytest.mark.parametrize(
    ("format", "codec", "ratio", "size"),
    [
        ("mp4", "libx264", Fraction(64, 45), (136, 64)),
        ("mp4", "libx264", Fraction(1, 2), (48, 64)),
        ("matroska", "libx264", Fraction(16, 11), (140, 64)),
        ("mpegts", "libx264", Fraction(16, 11), (140, 64)),
        ("avi", "mpeg4", Fraction(16, 11), (140, 64)),
        ("mpeg", "mpeg2video", Fraction(8, 9), (86, 64)),
        ("mov", "mjpeg", Fraction(2, 1), (192, 64)),
    ],
)
def test_pixels_that_are_not_square_become_so(format: str, codec: str, ratio: Fraction, size: tuple[int, int]) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = [(index / 25, QUARTERS) for index in range(8)]
    data = written(frames, format, codec, Fraction(1, 25), pix_fmt, 25, prepare=aspect(ratio))
    for policy in (POLICY, ORIGINALS):
        stored = store(medium(data), policy)
        assert (stored.facts["width"], stored.facts["height"]) == size
        first = seen(stored.media.data).frames[0]
        assert first.shape == (size[1], size[0], 3)
        assert corners(first) == "RGBW"
    with av.open(io.BytesIO(store(medium(data), POLICY).media.data)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


def test_an_anamorphic_film_shrinks_by_the_side_that_is_shown() -> None:
    wide = np.zeros((576, 720, 3), np.uint8)
    data = written([(0, wide), (0.04, wide)], "mp4", prepare=aspect(Fraction(64, 45)))
    facts = store(medium(data), POLICY).facts
    assert (facts["width"], facts["height"]) == (568, 320)


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "seen_as"),
    [
        ((0, ONE, -ONE, 0), "BRWG"),  # a quarter clockwise
        ((-ONE, 0, 0, -ONE), "WBGR"),
        ((0, -ONE, ONE, 0), "GWRB"),
        ((-ONE, 0, 0, ONE), "GRWB"),  # mirrored
        ((ONE, 0, 0, -ONE), "BWRG"),
        ((0, ONE, ONE, 0), "RBGW"),
    ],
)
@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(2)])
def test_a_film_is_turned_and_mirrored_as_its_display_matrix_says(
    matrix: tuple[int, int, int, int], seen_as: str, ratio: Fraction
) -> None:
    a, b, c, d = matrix

    def prepare(stream: Any) -> None:
        aspect(ratio)(stream)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])

    data = written([(index / 8, QUARTERS) for index in range(8)], "mp4", prepare=prepare)
    width = 96 * ratio
    for stored in (store(medium(data), POLICY), store(medium(data), ORIGINALS)):
        pixels = seen(stored.media.data).frames[0]
        assert corners(pixels) == seen_as
        assert pixels.shape[:2] == ((width, 64) if b else (64, width))


def smooth(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + x, 60 + 2 * y, 200 - x], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("format", "codec", "pix_fmt", "space", "full"),
    [
        ("matroska", "libx264", "yuv420p", "ITU601", False),
        ("matroska", "libx264", "yuv420p", "ITU709", False),
        ("mp4", "libx264", "yuv420p", "ITU709", True),
        ("mp4", "libx264", "yuv444p", "ITU709", True),
        ("mp4", "libx264", "yuv420p10le", "ITU709", False),
        ("mp4", "libx265", "yuv420p10le", "BT2020", False),
        ("mp4", "libx264", "yuv422p", "ITU601", False),
        ("webm", "libvpx-vp9", "yuva420p", "ITU601", False),
        ("avi", "mjpeg", "yuvj420p", "ITU601", True),
        ("avi", "rawvideo", "bgr24", None, False),
        ("mov", "png", "rgba", None, False),
        ("mov", "prores_ks", "yuva444p10le", "ITU601", False),
        ("matroska", "ffv1", "yuv420p", "ITU601", False),
    ],
)
@pytest.mark.parametrize("size", [(110, 70), (109, 69)])
def test_colours_are_what_was_filmed(
    format: str, codec: str, pix_fmt: str, space: str | None, full: bool, size: tuple[int, int]
) -> None:
    if size[0] % 2 and (pix_fmt.startswith("yuv42") and codec.startswith("libx26")):
        size = (108, 68)  # x264 and x265 take no odd size where they halve one.
    true, buffer = smooth(*size), io.BytesIO()
    tags = {"ITU709": 1, "ITU601": 6, "BT2020": 9}
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=8, options={"crf": "6"} if codec.startswith("lib") else {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if space:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags[space], 2 if full else 1
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(true, format="rgb24")
            if space:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range="JPEG" if full else "MPEG")
                frame.colorspace, frame.color_range = tags[space], 2 if full else 1
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    stored = store(medium(buffer.getvalue()), POLICY)
    for data, limit in ((buffer.getvalue(), 3.5), (stored.media.data, 4.5)):
        pixels = seen(data).frames[0][: size[1], : size[0]].astype(int)
        off = np.abs(pixels - true)
        assert off.mean() < limit
        assert abs((pixels - true).mean(axis=(0, 1))).max() < 4


def test_fields_of_interlaced_films_are_stored_as_they_lie() -> None:
    frames = [(index / 25, smooth(96, 64)) for index in range(8)]
    data = written(frames, "mpegts", "mpeg2video", Fraction(1, 25), rate=25, flags="+ildct+ilme", qmin="1", qmax="2")
    with av.open(io.BytesIO(data)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert np.abs(seen(store(medium(data), POLICY).media.data).frames[0].astype(int) - smooth(96, 64)).mean() < 5


def test_a_tiny_film_is_stored_in_even_sides() -> None:
    data = written([(index / 8, smooth(3, 1)) for index in range(8)], codec="ffv1", pix_fmt="yuv444p")
    stored = store(medium(data), POLICY)
    assert (stored.facts["width"], stored.facts["height"]) == (4, 2)
    assert math.isclose(stored.facts["seconds"], 1.0)


# --- Some frames of a film -------------------------------------------------------------------------------------------


def moving(times: Sequence[float]) -> list[tuple[float, np.ndarray]]:
    """Frames that differ all over: noise that moves, so that a wrong one shows."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return [(time, np.roll(noise, 3 * number, axis=1)) for number, time in enumerate(times)]


def every_third(count: int, fps: float) -> list[int]:
    return list(range(0, count, 3))


def two_near_the_end(count: int, fps: float) -> list[int]:
    return [max(0, count - 4), count - 1, count - 1]


@pytest.mark.parametrize("places", [every_third, two_near_the_end])
@pytest.mark.parametrize("fps", [None, 5.0, 10.0])
@pytest.mark.parametrize(
    ("times", "options"),
    [
        (STEADY, {"format": "mp4", "rate": 10, "gop": 8, "bf": "3"}),
        (STEADY, {"format": "mp4", "rate": 10, "gop": 8, "x264-params": "open-gop=1:bframes=3:b-pyramid=strict"}),
        (STEADY, {"format": "mp4", "rate": 10, "gop": 200, "bf": "2", "refs": "4"}),
        (STEADY, {"format": "mp4", "rate": 10, "gop": 8, "x264-params": "intra-refresh=1"}),
        (STEADY, {"format": "mp4", "rate": 10, "codec": "libx265", "gop": 8}),
        (STEADY, {"format": "mov", "rate": 10, "gop": 1}),
        (STEADY, {"format": "matroska", "rate": 10, "gop": 8, "bf": "3"}),
        (STEADY, {"format": "mpegts", "rate": 10, "gop": 8, "bf": "3", "time_base": Fraction(1, 90_000)}),
        (STEADY[:23], {"format": "webm", "codec": "libvpx-vp9", "rate": 10}),
        (UNEVEN, {"format": "mp4", "gop": 4, "time_base": Fraction(1, 1000)}),
        (UNEVEN, {"format": "matroska"}),
        ((0.0,), {"format": "mp4", "rate": 10}),
    ],
    ids=str,
)
def test_some_frames_are_what_they_are_among_all(
    times: Sequence[float], options: dict[str, Any], fps: float | None, places: Callable[[int, float], list[int]]
) -> None:
    film = medium(written(moving(times), **options))
    whole = decode(film, fps=fps)
    assert isinstance(whole, Video)
    chosen = places(len(whole.frames), whole.fps)
    np.testing.assert_array_equal(decode_frames(film, places, fps=fps), whole.frames[chosen])


def test_some_frames_of_a_clip_that_was_cut_without_encoding_are_what_a_player_shows() -> None:
    for edits in ([(1.3, 2.0)], [(0.5, None), (1.0, 2.0)], [(1.0, 1.05)]):
        film = medium(edited(edits))
        whole = decode(film)
        assert isinstance(whole, Video)
        np.testing.assert_array_equal(decode_frames(film, every_third), whole.frames[::3])


def test_frames_that_are_not_wanted_are_not_decoded() -> None:
    data = written(moving(STEADY), format="mp4", rate=10, gop=8, bf="3")
    with open_video(data, Limits()) as film:
        decoded = len(list(film._decode_only([25], 10.0)))
    assert decoded < 8, "of five groups of eight, one holds it"


def test_a_damaged_film_is_refused_as_it_is_when_decoded_whole() -> None:
    data = bytearray(written(moving(STEADY), format="mp4", rate=10, gop=8))
    for film in (bytes(data[: len(data) // 2]), b"no film at all"):
        with pytest.raises(Refused) as whole:
            decode(medium(film))
        with pytest.raises(Refused) as some:
            decode_frames(medium(film), every_third)
        assert str(some.value) == str(whole.value)
