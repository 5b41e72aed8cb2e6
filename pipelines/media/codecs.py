"""Encoded bytes <-> arrays, one path for all three modalities, with limits that hold before memory is taken.

A refused medium is a ValueError whose one line begins with a category a ledger can count: `missing file`,
`empty file`, `too large`, `too long`, `too short`, `no video stream`, `no audio stream` or `unreadable`.
"""

import io
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL.Image
import soundfile

from pipelines.media.films import Frame, open_video
from pipelines.media.pictures import open_image, upright_rgb
from pipelines.media.policy import Limits, OutOfMemory, Refused
from pipelines.media.streams import open_sound
from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video
from pipelines.tables.media_formats import media_format

DEFAULT_LIMITS = Limits()
# The macroblock tree of x264's assembly gives other bytes now and then.
_SAME_BYTES = {"mbtree": "0"}
_PRESET = "veryfast"  # As small as `medium` on small frames, in a third of the time.


def load(path: Path, modality: Modality, limits: Limits = DEFAULT_LIMITS) -> Media:
    """Reads a whole file after checking its size; the format is detected by content, or else by suffix.

    Raises ValueError where it is missing, not a regular file, empty, too large, or of no known format.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Refused("unreadable: not a regular file")
        limits.check_bytes(status.st_size)
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise Refused("missing file") from None
    except OSError as error:
        raise Refused(f"unreadable: {error.strerror or type(error).__name__}") from None
    limits.check_bytes(len(data))  # It may have grown, or been cut, since stat.
    return Media(modality=modality, data=data, format=media_format(data, path.name, path.name))


def decode(media: Media, limits: Limits = DEFAULT_LIMITS, fps: float | None = None) -> Decoded:
    """Decodes a medium whole: image uint8 (H, W, 3), video uint8 (T, H, W, 3), audio float32 (C, T).

    Frame i of a video is what is shown at i/fps seconds: its own frames where their rate is even, at most `fps` of them
    a second; else frames at that rate, each repeated for as long as it is shown. Those left out are never held. EXIF,
    rotation and pixels that are not square are put right. Raises ValueError with a one-line reason where it refuses.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}; it must be above 0, or None for every frame")
    with refusals():
        limits.check_bytes(len(media.data))
        return _DECODERS[media.modality](media.data, limits, fps)


def decode_frames(
    media: Media,
    places: Callable[[int, float], Sequence[int]],
    limits: Limits = DEFAULT_LIMITS,
    fps: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Some frames of what `decode` gives of a video, uint8 (N, H, W, 3), without making the others.

    `places` tells which, from how many there are and their rate. Raises ValueError as `decode` does, and as it does.
    """
    with refusals():
        limits.check_bytes(len(media.data))
        with open_video(media.data, limits) as film:
            rate = film.grid(fps)
            count = film.count(rate)
            wanted = places(count, rate)
            found = film.frames_at(rate, wanted)
        if found:
            limits.check_decoded(count * found[wanted[0]].nbytes)
            return np.stack([found[place] for place in wanted])
    video = decode(media, limits, fps)
    assert isinstance(video, Video), "only a video has frames"
    return video.frames[list(places(len(video.frames), video.fps))]


@contextmanager
def refusals() -> Iterator[None]:
    """Converts whatever a codec raises on malformed or malicious bytes to Refused."""
    try:
        yield
    except Refused:
        raise
    except MemoryError:
        raise OutOfMemory from None
    except Exception as error:
        raise Refused(f"unreadable: {_one_line(error)}") from error


def encode(decoded: Decoded) -> Media:
    """Encodes an image as PNG, a video as MP4 (H.264, even sizes), audio as 16-bit WAV; deterministic."""
    modality, suffix, encoder = _ENCODERS[type(decoded)]
    buffer = io.BytesIO()
    encoder(decoded, buffer)
    note = decoded.note if isinstance(decoded, Image) else ""
    return Media(modality=modality, data=buffer.getvalue(), format=suffix, note=note)


def write_mp4(
    frames: Iterable[tuple[int, Frame]], fps: float, crf: int, buffer: io.BytesIO, end: int | None = None
) -> None:
    """Writes frames as H.264, each at its time in units of 1/fps seconds; equal frames give equal bytes.

    Where some places are empty, `end` is the place at which the last frame ends.
    """
    codec, options = "mpeg4", {"q": "2"}
    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"crf": str(crf), "preset": _PRESET, **_SAME_BYTES}
    if end is not None:  # An mp4 tells the lengths of frames in the order in which they are decoded.
        options["bf"] = "0"
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.codec_context.thread_count = 1  # The bytes depend on the number of threads.
        stream.pix_fmt = "yuv420p"
        for place, pixels in frames:
            height, width, _ = pixels.shape
            # H.264 in yuv420p halves both sides, so an odd one repeats its last line.
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not stream.codec_context.is_open:
                stream.height, stream.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts, frame.time_base = place, 1 / rate
            container.mux(stream.encode(frame))
        rest = stream.encode()
        if rest and end is not None:
            rest[-1].duration = max(1, end - place)
        container.mux(rest)


def _one_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__
    text = re.sub(r"<[^<>]*>", "", text)  # Object addresses would make every reason unique.
    return " ".join(text.split())[:160]


def _decode_image(data: bytes, limits: Limits, fps: float | None) -> Image:
    return Image(pixels=np.array(upright_rgb(open_image(data, limits)).convert("RGB")))


def _decode_video(data: bytes, limits: Limits, fps: float | None) -> Video:
    frames: list[Frame] = []
    with open_video(data, limits) as film:
        rate = film.grid(fps)
        for place, frame in film.frames(rate):
            limits.check_decoded((max(place, len(frames)) + 1) * frame.nbytes)
            frames += [frames[-1] if frames else frame] * (place - len(frames))
            frames.append(frame)
        rest = 0 if film.timing.is_even else max(0, round(film.timing.seconds * rate) - len(frames))
        limits.check_decoded((len(frames) + rest) * frames[0].nbytes)
        return Video(frames=np.stack(frames + frames[-1:] * rest), fps=rate)


def _decode_audio(data: bytes, limits: Limits, fps: float | None) -> Audio:
    blocks, size = [], 0
    with open_sound(data, limits) as sound:
        for block in sound.blocks:
            size += block.nbytes
            limits.check_decoded(size)
            blocks.append(block.T)
        return Audio(waveform=np.concatenate(blocks, axis=1), sample_rate=sound.sample_rate)


def _write_png(image: Image, buffer: io.BytesIO) -> None:
    PIL.Image.fromarray(image.pixels).save(buffer, format="PNG")


def _write_video(video: Video, buffer: io.BytesIO) -> None:
    write_mp4(enumerate(video.frames), video.fps, 18, buffer)


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
    Video: (Modality.VIDEO, "mp4", _write_video),
    Audio: (Modality.AUDIO, "wav", _write_wav),
}
