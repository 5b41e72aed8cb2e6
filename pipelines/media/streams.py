"""Encoded bytes opened as a picture or a sound that is read piece by piece, so that little is held at a time.

Everything a header claims is checked before memory is taken, everything it may have hidden while the pieces come.
"""

import io
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

from pipelines.media.headers import claimed_seconds
from pipelines.media.policy import Limits, Refused

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
# Containers that carry their media themselves: a playlist (HLS, concat) would make FFmpeg open other files and hosts.
_DEMUXERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,gif,aac,mp3,wav,flac,amr,aiff,caf"
_STREAMED_WAV_BYTES = 0x7FFFF000  # A recorder that writes to a pipe cannot know the length and puts the largest one.
_BLOCK = 1 << 16  # samples read at a time
Block = npt.NDArray[np.float32]


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
        with open_container(data) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise Refused("no audio stream") from None
            limits.check_seconds(max(_header_seconds(container, stream), claimed_seconds(data)))
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


def open_container(data: bytes) -> av.container.InputContainer:
    """Opens a film or a sound in any container that carries its media itself."""
    return av.open(io.BytesIO(data), options={"format_whitelist": _DEMUXERS})


def _header_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base
