"""Encoded bytes opened as a film or a sound that is read piece by piece, so that little is held at a time.

What a header claims of sizes is checked before memory is taken. What it claims of a sound's length is not trusted: the
decoded length counts, while the pieces come.
"""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.video.reformatter import VideoReformatter

from pipelines.media.policy import Limits, Refused

# Containers that carry their media themselves: a playlist (HLS, concat) would make FFmpeg open other files and hosts.
_DEMUXERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,gif,aac,mp3,wav,flac,amr,aiff,caf"
_STREAMED_WAV_BYTES = 0x7FFFF000  # A recorder that writes to a pipe cannot know the length and puts the largest one.
# So much less than its header claims is a careless writer's WAV, not a cut one: its own header counted, a last block.
_SLACK_BYTES, _SLACK = 4096, 0.01
_UNKNOWN_LENGTH = 2**63 - 1  # in samples, as libsndfile says it
_BLOCK = 1 << 16  # samples read at a time
Block = npt.NDArray[np.float32]
Frame = npt.NDArray[np.uint8]


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
    file = _open_file(_with_true_length(data))
    if file:
        with file:
            blocks = _checked(_file_blocks(file), file.samplerate, limits)
            yield Sound(file.format, file.samplerate, file.channels, blocks)
        return
    with _container(data) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise Refused("no audio stream")
        yield Sound("", stream.rate, stream.channels, _checked(_stream_blocks(container, stream), stream.rate, limits))


def _open_file(data: bytes) -> soundfile.SoundFile | None:
    """A sound that libsndfile reads; not an m4a, nor the sound of an mp4, nor a FLAC that went through a pipe."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return None
    if file.frames < _UNKNOWN_LENGTH:
        return file
    file.close()
    return None


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


def _file_blocks(file: soundfile.SoundFile) -> Iterator[Block]:
    read = 0
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        read += len(block)
        yield block
    if read < file.frames and not file.subtype.startswith("MPEG"):  # The headers of MP3 only estimate their length.
        raise Refused(f"unreadable: cut off after {read} of {file.frames} samples")


def _stream_blocks(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[Block]:
    resampler = av.AudioResampler(format="fltp")
    seen = False
    for frame in container.decode(stream):
        seen = True
        yield from (block.to_ndarray().T for block in resampler.resample(frame))
    if seen:
        yield from (block.to_ndarray().T for block in resampler.resample(None))


def _with_true_length(data: bytes) -> bytes:
    """A WAV whose header says how many bytes of samples follow; the same object where it does, or is no WAV.

    libsndfile reads a cut WAV as a shorter one without a word, and one that claims nothing as empty.

    Raises:
        Refused: much of what the header promises is missing.
    """
    place, promised, present = _wav_bytes(data)
    if not place or 0 < promised <= present:
        return data
    if promised < _STREAMED_WAV_BYTES and promised - present > max(_SLACK_BYTES, _SLACK * promised):
        raise Refused(f"unreadable: cut off after {present} of {promised} bytes of samples")
    if promised == 0 and _are_chunks(data, len(data) - present):
        return data
    length = min(present, _STREAMED_WAV_BYTES)
    return b"RIFF" + data[4:place] + struct.pack("<I", length) + data[place + 4 :]


def _wav_bytes(data: bytes) -> tuple[int, int, int]:
    """Where a WAV says how many bytes of samples it holds, how many it promises, and how many follow; 0 for others."""
    is_wav, long = data[:4] in (b"RIFF", b"RF64", b"BW64") and data[8:12] == b"WAVE", 0
    for position, name, size in _chunks(data, 12) if is_wav else ():
        if name == b"ds64" and position + 24 <= len(data):  # Sizes of 64 bits; the chunk's own is then the largest.
            [long] = struct.unpack_from("<Q", data, position + 16)
        if name == b"data":
            promised = long if long and size == 0xFFFFFFFF else size
            return position + 4, promised, len(data) - position - 8
    return 0, 0, 0


def _are_chunks(data: bytes, start: int) -> bool:
    """Whether what follows are whole chunks up to the end, as behind an empty sound; or nothing."""
    end = start
    for position, name, size in _chunks(data, start):
        if not name.isalnum():
            return False
        end = position + 8 + size
    return len(data) - 1 <= end + end % 2 <= len(data) + 1


def _chunks(data: bytes, position: int) -> Iterator[tuple[int, bytes, int]]:
    """Where each chunk of a RIFF file begins, its name, and the size that it claims."""
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        yield position, name, size
        position += 8 + size + size % 2


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
