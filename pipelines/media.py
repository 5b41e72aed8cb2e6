"""Encoded bytes <-> arrays, one path for all three modalities, with limits that hold before memory is taken.

A refused medium is a ValueError whose one line begins with a category a ledger can count: `missing file`,
`empty file`, `too large`, `too long`, `no video stream`, `no audio stream` or `unreadable`.
"""

import io
import math
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import soundfile

from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Containers that carry their media themselves: a playlist (HLS, concat) would make FFmpeg open other files and hosts.
_DEMUXERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,gif,aac,mp3,wav,flac,amr,aiff,caf"
_STREAMED_WAV_BYTES = 0x7FFFF000  # A recorder that writes to a pipe cannot know the length and puts the largest one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one medium may cost: encoded bytes, pixels of a frame, seconds, frames to decode, decoded bytes to keep."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 64_000_000
    max_seconds: float = 600.0
    max_frames: int = 40_000
    max_decoded_bytes: int = 2 * 2**30

    def check_bytes(self, size: int) -> None:
        """Raises ValueError for an empty or too large file of `size` bytes."""
        if size == 0:
            raise _Refused("empty file")
        if size > self.max_bytes:
            raise _Refused(f"too large: {size} bytes, the limit is {self.max_bytes}")

    def check_pixels(self, width: int, height: int) -> None:
        """Raises ValueError when a frame of this size holds too many pixels."""
        if width * height > self.max_pixels:
            raise _Refused(f"too large: {width}x{height} pixels, the limit is {self.max_pixels}")

    def check_seconds(self, seconds: float) -> None:
        """Raises ValueError when the medium lasts too long."""
        if seconds > self.max_seconds:
            raise _Refused(f"too long: {seconds:.0f} s, the limit is {self.max_seconds:g} s")

    def check_decoded(self, size: int) -> None:
        """Raises ValueError when `size` decoded bytes are more than may be held."""
        if size > self.max_decoded_bytes:
            raise _Refused(f"too large: {size} decoded bytes, the limit is {self.max_decoded_bytes}")


DEFAULT_LIMITS = Limits()


class _Refused(ValueError):
    """A reason of our own, which already begins with its category."""


def load(path: Path, modality: Modality, limits: Limits = DEFAULT_LIMITS) -> Media:
    """Reads a file whole, after its size was checked; the format is its suffix in lower case.

    Raises ValueError where it is missing, not a regular file, empty, too large, or has no usable suffix.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Refused("unreadable: not a regular file")
        limits.check_bytes(status.st_size)
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise _Refused("missing file") from None
    except OSError as error:
        raise _Refused(f"unreadable: {error.strerror}") from None
    limits.check_bytes(len(data))  # It may have grown, or been cut, since stat.
    suffix = path.suffix.lower().removeprefix(".")
    if not re.fullmatch(r"[a-z0-9]{1,8}", suffix):
        raise _Refused("unreadable: the file name has no suffix")
    return Media(modality=modality, data=data, format=suffix)


def decode(media: Media, limits: Limits = DEFAULT_LIMITS, fps: float | None = None) -> Decoded:
    """Decodes a medium whole: image uint8 (H, W, 3), video uint8 (T, H, W, 3), audio float32 (C, T).

    With `fps`, a video keeps at most that many frames a second, chosen by their time stamps, and never holds the
    others. EXIF and container rotation are applied. Raises ValueError with a one-line reason for anything it refuses.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}; it must be above 0, or None for every frame")
    try:
        limits.check_bytes(len(media.data))
        return _DECODERS[media.modality](media.data, limits, fps)
    except _Refused:
        raise
    except Exception as error:  # Codecs raise whatever they like at hostile bytes; each of it means the same to us.
        raise _Refused(f"unreadable: {_one_line(error)}") from error


def encode(decoded: Decoded) -> Media:
    """Encodes an image as PNG, a video as MP4 (H.264, even sizes), audio as 16-bit WAV; equal arrays, equal bytes."""
    modality, suffix, encoder = _ENCODERS[type(decoded)]
    buffer = io.BytesIO()
    encoder(decoded, buffer)
    return Media(modality=modality, data=buffer.getvalue(), format=suffix)


def _one_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__
    text = re.sub(r"<[^<>]*>", "", text)  # Object addresses would make every reason unique.
    return " ".join(text.split())[:160]


def _decode_image(data: bytes, limits: Limits, fps: float | None) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise _Refused(f"too large: {_one_line(error)}") from None
    limits.check_pixels(picture.width, picture.height)
    upright = PIL.ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white.
        upright = PIL.Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return Image(pixels=np.array(upright.convert("RGB")))


def _decode_video(data: bytes, limits: Limits, fps: float | None) -> Video:
    with _container(data) as container:
        stream = next((s for s in container.streams.video if not _is_cover(s)), None)
        if stream is None:
            raise _Refused("no video stream")
        limits.check_seconds(_header_seconds(container, stream))
        limits.check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1  # Samples are decoded side by side; a codec's own threads only compete.
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if rate <= 0:
            raise _Refused("unreadable: no frame rate")
        frames = list(_rgb_frames(container, stream, limits, fps))
    if not frames:
        raise _Refused("unreadable: no frames")
    return Video(frames=np.stack(frames), fps=rate if fps is None else min(rate, fps))


def _rgb_frames(
    container: av.container.InputContainer, stream: av.VideoStream, limits: Limits, fps: float | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames to keep, all of the first one's size; at most one in each 1/fps seconds."""
    count, kept_bytes, last_slot, start = 0, 0, -1, 0.0
    width = height = 0
    for count, frame in enumerate(container.decode(stream), start=1):
        if count > limits.max_frames:
            raise _Refused(f"too long: more than {limits.max_frames} frames")
        time = frame.time if frame.time is not None else start
        if count == 1:
            start, width, height = time, frame.width, frame.height
        limits.check_seconds(time - start)
        limits.check_pixels(frame.width, frame.height)
        slot = count if fps is None else math.floor((time - start) * fps + 1e-6)
        if slot <= last_slot:
            continue
        last_slot = slot
        kept_bytes += width * height * 3
        limits.check_decoded(kept_bytes)
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
        yield np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
    if count < 0.9 * stream.frames:
        raise _Refused(f"unreadable: cut off after {count} of {stream.frames} frames")


def _decode_audio(data: bytes, limits: Limits, fps: float | None) -> Audio:
    try:
        sound = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:  # Not one of its formats: m4a, the sound of an mp4, ...
        waveform, sample_rate = _container_sound(data, limits)
    else:
        with sound:
            waveform, sample_rate = _sound(sound, data, limits), sound.samplerate
    if waveform.size == 0:
        raise _Refused("unreadable: no samples")
    if not np.isfinite(waveform).all():
        raise _Refused("unreadable: NaN or infinite samples")
    return Audio(waveform=np.clip(waveform, -1, 1), sample_rate=sample_rate)


def _sound(sound: soundfile.SoundFile, data: bytes, limits: Limits) -> npt.NDArray[np.float32]:
    limits.check_seconds(sound.frames / sound.samplerate)
    limits.check_decoded(sound.frames * sound.channels * 4)
    promised, present = _wav_bytes(data)
    if present < promised < _STREAMED_WAV_BYTES:
        raise _Refused(f"unreadable: cut off after {present} of {promised} bytes of samples")
    waveform = sound.read(dtype="float32", always_2d=True).T
    if waveform.shape[1] < sound.frames and sound.format != "MP3":  # MP3 headers only estimate their length.
        raise _Refused(f"unreadable: cut off after {waveform.shape[1]} of {sound.frames} samples")
    return np.ascontiguousarray(waveform)


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


def _container_sound(data: bytes, limits: Limits) -> tuple[npt.NDArray[np.float32], int]:
    with _container(data) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise _Refused("no audio stream")
        limits.check_seconds(_header_seconds(container, stream))
        resampler = av.AudioResampler(format="fltp")
        blocks: list[npt.NDArray[np.float32]] = []
        samples = 0
        for frame in container.decode(stream):
            samples += frame.samples
            limits.check_seconds(samples / stream.rate)
            limits.check_decoded(samples * stream.channels * 4)
            blocks += [block.to_ndarray() for block in resampler.resample(frame)]
        blocks += [block.to_ndarray() for block in resampler.resample(None)] if blocks else []
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((1, 0), np.float32), stream.rate


def _container(data: bytes) -> av.container.InputContainer:
    return av.open(io.BytesIO(data), options={"format_whitelist": _DEMUXERS})


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _header_seconds(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _write_png(image: Image, buffer: io.BytesIO) -> None:
    PIL.Image.fromarray(image.pixels).save(buffer, format="PNG")


def _write_mp4(video: Video, buffer: io.BytesIO) -> None:
    _, height, width, _ = video.frames.shape
    # H.264 in yuv420p halves both sides, so an odd one repeats its last line.
    even = np.pad(video.frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    codec, options = ("libx264", {"crf": "18"}) if "libx264" in av.codecs_available else ("mpeg4", {"q": "2"})
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=Fraction(video.fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1  # The bytes depend on the number of threads.
        for picture in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_wav(audio: Audio, buffer: io.BytesIO) -> None:
    if not np.isfinite(audio.waveform).all():
        raise ValueError("audio to encode holds NaN or infinite samples")
    samples = np.round(np.clip(audio.waveform, -1, 1) * 32767).astype(np.int16)
    soundfile.write(buffer, samples.T, audio.sample_rate, format="WAV", subtype="PCM_16")


_DECODERS: dict[Modality, Callable[[bytes, Limits, float | None], Decoded]] = {
    Modality.IMAGE: _decode_image,
    Modality.VIDEO: _decode_video,
    Modality.AUDIO: _decode_audio,
}
_ENCODERS: dict[type, tuple[Modality, str, Callable[..., None]]] = {
    Image: (Modality.IMAGE, "png", _write_png),
    Video: (Modality.VIDEO, "mp4", _write_mp4),
    Audio: (Modality.AUDIO, "wav", _write_wav),
}
