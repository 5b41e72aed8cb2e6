"""Encoded bytes opened as a sound that is read piece by piece, so that little is held at a time.

What a header claims of sizes is checked before memory is taken. What it claims of a sound's length is not trusted: the
decoded length counts, while the pieces come.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import soundfile

from pipelines.media.policy import Limits, Refused

# Containers that carry their media themselves: a playlist (HLS, concat) would make FFmpeg open other files and hosts.
_DEMUXERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,gif,aac,mp3,wav,flac,amr,aiff,caf"
_STREAMED_WAV_BYTES = 0x7FFFF000  # A recorder that writes to a pipe cannot know the length and puts the largest one.
# So much less than its header claims is a careless writer's WAV, not a cut one: its own header counted, a last block.
_SLACK_BYTES, _SLACK = 4096, 0.01
_UNKNOWN_LENGTH = 2**63 - 1  # in samples, as libsndfile says it
_BLOCK = 1 << 16  # samples read at a time
Block = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SoundStream:
    """An opened sound: `format` is libsndfile's name or empty; `blocks` are float32 (T, num_channels) in [-1, 1]."""

    format: str
    sample_rate: int
    num_channels: int
    blocks: Iterator[Block]


@contextmanager
def open_sound(data: bytes, limits: Limits) -> Iterator[SoundStream]:
    """Opens a sound file, or the first sound of any container."""
    file = _open_file(_with_true_length(data))
    if file:
        with file:
            blocks = _checked(_file_blocks(file), file.samplerate, limits)
            yield SoundStream(file.format, file.samplerate, file.channels, blocks)
        return
    with open_container(data) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise Refused("no audio stream")
        yield SoundStream(
            "", stream.rate, stream.channels, _checked(_stream_blocks(container, stream), stream.rate, limits)
        )


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


def open_container(data: bytes) -> av.container.InputContainer:
    """Opens a film or a sound in any container that carries its media itself."""
    return av.open(io.BytesIO(data), options={"format_whitelist": _DEMUXERS})
