"""Encoded bytes opened as a picture, a film or a sound that is read piece by piece, so that little is held at a time.

Everything a header claims is checked before memory is taken, everything it may have hidden while the pieces come.
"""

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageOps
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin
import soundfile
from av.video.reformatter import VideoReformatter

from pipelines.media.policy import Limits, Refused

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
# Containers that carry their media themselves: a playlist (HLS, concat) would make FFmpeg open other files and hosts.
_DEMUXERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,gif,aac,mp3,wav,flac,amr,aiff,caf"
_STREAMED_WAV_BYTES = 0x7FFFF000  # A recorder that writes to a pipe cannot know the length and puts the largest one.
_BLOCK = 1 << 16  # samples read at a time
Block = npt.NDArray[np.float32]
Frame = npt.NDArray[np.uint8]


def open_image(data: bytes, limits: Limits) -> PIL.Image.Image:
    """Reads a picture's header; its pixels come with `load`. Raises Refused when it claims too many."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise Refused(f"too large: {' '.join(str(error).split())}") from None
    limits.check_pixels(picture.width, picture.height)
    return picture


def orientation(picture: PIL.Image.Image) -> int:
    """How EXIF says a picture is to be turned: 1 (not at all) to 8; damaged EXIF says nothing."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def upright_rgb(picture: PIL.Image.Image, size: tuple[int, int] | None = None) -> PIL.Image.Image:
    """Decodes a picture, shrunk to `size` (before it is turned), upright, over white where it is transparent: L or RGB.

    A JPEG is decoded at a half, a quarter or an eighth where that is at least twice `size`, and a picture of another
    format is averaged down to twice `size` before it is resampled.
    """
    turn = orientation(picture)
    if size:
        picture.draft(picture.mode, (2 * size[0], 2 * size[1]))
    picture.load()
    picture = _plain(picture)
    if size and size != picture.size:
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)
    if picture.mode == "RGBA":
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return PIL.ImageOps.exif_transpose(picture) if turn != 1 else picture


def _plain(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of any mode as L, RGB or RGBA."""
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white.
        return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


@dataclass(frozen=True, slots=True)
class Film:
    """An opened video: `rate` in frames per second, `seconds` and `size` (width, height) as its header says."""

    container: av.container.InputContainer
    stream: av.VideoStream
    limits: Limits
    rate: float
    seconds: float

    def is_turned(self) -> bool:
        """Whether players are told to turn it; to be asked before its frames are."""
        frame = next(self.container.decode(self.stream), None)
        self.container.seek(0)
        return frame is not None and frame.rotation != 0

    def frames(
        self, fps: float | None = None, short_side: int | None = None, seconds: float = math.inf
    ) -> Iterator[tuple[int, Frame]]:
        """Yields frames to keep, uint8 (H, W, 3), upright, all as large as the first, each with its place in time.

        With `fps`, at most one in each 1/fps seconds, and its place counts these; without, every frame, its place
        counted. `short_side` shrinks to even sizes; `seconds` ends it early.
        """
        count, last, start, size = 0, -1, 0.0, (0, 0)
        reformatter = VideoReformatter()  # one for all frames: its tables cost more than a frame
        for count, frame in enumerate(self.container.decode(self.stream), start=1):
            if count > self.limits.max_frames:
                raise Refused(f"too long: more than {self.limits.max_frames} frames")
            time = frame.time if frame.time is not None else start
            self.limits.check_pixels(frame.width, frame.height)
            if count == 1:
                start, size = time, _even_size(frame.width, frame.height, short_side)
            self.limits.check_seconds(time - start)
            if time - start >= seconds:
                return
            place = count - 1 if fps is None else math.floor((time - start) * fps + 1e-6)
            if place <= last:
                continue
            last = place
            rgb = reformatter.reformat(frame, *size, format="rgb24").to_ndarray()
            yield place, np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
        if last < 0:
            raise Refused("unreadable: no frames")
        if count < 0.9 * self.stream.frames:
            raise Refused(f"unreadable: cut off after {count} of {self.stream.frames} frames")


@contextmanager
def open_video(data: bytes, limits: Limits) -> Iterator[Film]:
    """Opens the first video stream that is no cover picture."""
    with _container(data) as container:
        stream = next((s for s in container.streams.video if not _is_cover(s)), None)
        if stream is None:
            raise Refused("no video stream")
        seconds = _header_seconds(container, stream)
        limits.check_seconds(max(seconds, _claimed_seconds(container, data)))
        limits.check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1  # Samples are decoded side by side; a codec's own threads only compete.
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if rate <= 0:
            raise Refused("unreadable: no frame rate")
        yield Film(container, stream, limits, rate, seconds)


@dataclass(frozen=True, slots=True)
class Sound:
    """An opened sound: `format` is libsndfile's name or empty; `blocks` are float32 (T, num_channels) in [-1, 1]."""

    format: str
    sample_rate: int
    num_channels: int
    blocks: Iterator[Block]


@contextmanager
def open_sound(data: bytes, limits: Limits) -> Iterator[Sound]:
    """Opens a sound file, or the first sound of any container."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:  # Not one of its formats: m4a, the sound of an mp4, ...
        with _container(data) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise Refused("no audio stream") from None
            limits.check_seconds(max(_header_seconds(container, stream), _claimed_seconds(container, data)))
            blocks = _checked(_stream_blocks(container, stream), stream.rate, limits)
            yield Sound("", stream.rate, stream.channels, blocks)
        return
    with file:
        limits.check_seconds(file.frames / file.samplerate)
        blocks = _checked(_file_blocks(file, data), file.samplerate, limits)
        yield Sound(file.format, file.samplerate, file.channels, blocks)


def _checked(blocks: Iterator[Block], sample_rate: int, limits: Limits) -> Iterator[Block]:
    samples = 0
    for block in blocks:
        samples += len(block)
        limits.check_seconds(samples / sample_rate)
        if not np.isfinite(block).all():
            raise Refused("unreadable: NaN or infinite samples")
        yield np.clip(block, -1, 1)
    if samples == 0:
        raise Refused("unreadable: no samples")


def _file_blocks(file: soundfile.SoundFile, data: bytes) -> Iterator[Block]:
    promised, present = _wav_bytes(data)
    if present < promised < _STREAMED_WAV_BYTES:
        raise Refused(f"unreadable: cut off after {present} of {promised} bytes of samples")
    read = 0
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        read += len(block)
        yield block
    if read < file.frames and file.format != "MP3":  # MP3 headers only estimate their length.
        raise Refused(f"unreadable: cut off after {read} of {file.frames} samples")


def _stream_blocks(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[Block]:
    resampler = av.AudioResampler(format="fltp")
    seen = False
    for frame in container.decode(stream):
        seen = True
        yield from (block.to_ndarray().T for block in resampler.resample(frame))
    if seen:
        yield from (block.to_ndarray().T for block in resampler.resample(None))


def _wav_bytes(data: bytes) -> tuple[int, int]:
    """How many bytes of samples a WAV header promises, and how many follow; (0, 0) for any other file.

    libsndfile reads a cut WAV as a shorter one without a word.
    """
    position = 12
    while data[:4] == b"RIFF" and position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"data":
            return size, len(data) - position - 8
        position += 8 + size + size % 2
    return 0, 0


def _even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with a short side of at most `short_side`; even where they change, for H.264 halves them."""
    scale = (short_side or width) / min(width, height)
    if short_side is None or scale >= 1:
        return width, height
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def _container(data: bytes) -> av.container.InputContainer:
    return av.open(io.BytesIO(data), options={"format_whitelist": _DEMUXERS})


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _header_seconds(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _claimed_seconds(container: av.container.InputContainer, data: bytes) -> float:
    """The longest duration that headers of an mp4 claim; FFmpeg does not tell, it counts the frames. 0 for others."""
    if "mp4" not in container.format.name:
        return 0.0
    longest, spans = 0.0, [(0, len(data))]
    while spans:
        start, end = spans.pop()
        while start + 8 <= end:
            size, name = struct.unpack_from(">I4s", data, start)
            body = start + 8
            if size == 1 and start + 16 <= end:
                [size], body = struct.unpack_from(">Q", data, start + 8), start + 16
            stop = min(end, start + size) if size >= 8 else end  # 0 stands for the rest of the file.
            if name in (b"moov", b"trak", b"mdia"):
                spans.append((body, stop))
            elif name in (b"mvhd", b"mdhd"):
                longest = max(longest, _mp4_duration(data[body:stop]))
            start = stop
    return longest


def _mp4_duration(header: bytes) -> float:
    """Seconds in an `mvhd` or `mdhd` box; 0 where it says that it does not know."""
    layout, offset = (">IQ", 20) if header[:1] == b"\1" else (">II", 12)
    if len(header) < offset + struct.calcsize(layout):
        return 0.0
    scale, duration = struct.unpack_from(layout, header, offset)
    unknown = duration in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
    return 0.0 if unknown or not scale else duration / scale
