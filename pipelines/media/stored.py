"""A medium in the form a policy stores it in: decoded whole once, changed only where that gains something.

Equal bytes and an equal policy give equal bytes. Nothing holds a whole decoded video or sound.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import PIL.Image
import soundfile
import soxr

from pipelines.media.codecs import refusals, write_mp4
from pipelines.media.films import Film, Frame, open_video
from pipelines.media.pictures import IMAGE_SUFFIXES, is_plain, open_image, orientation, upright_rgb, without_long_asides
from pipelines.media.policy import AudioPolicy, MediaPolicy, Refused
from pipelines.media.streams import Block, SoundStream, open_sound
from pipelines.sample import Media, Modality

Facts = dict[str, int | float]

_JPEG_END = b"\xff\xd9"
_CHECK_FPS = 1e-3  # Every frame is decoded, hardly any is turned into an array.
_FULL_SCALE = 2**23


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A medium as it is stored, and what is known of it: width, height / seconds, fps, sample_rate as they apply."""

    media: Media
    facts: Facts


def store(media: Media, policy: MediaPolicy) -> Stored:
    """Decodes a medium whole and gives it the policy's form; where its bytes stay as they are, the same object.

    Raises:
        Refused: it is empty, unreadable, too large or too long, or has no stream of its modality.
    """
    with refusals():
        policy.limits.check_bytes(len(media.data))
        return _STORERS[media.modality](media, policy)


def _store_image(media: Media, policy: MediaPolicy) -> Stored:
    picture = open_image(media.data, policy.limits)
    suffix, size, turn = IMAGE_SUFFIXES[str(picture.format)], picture.size, orientation(picture)
    if policy.keep_originals:
        upright_rgb(picture, (1, 1))  # Refuses what its readers would.
        return _image(media, media.data, suffix, size, turn)
    scale = policy.image.short_side / min(size)
    plain = scale >= 1 and is_plain(picture)
    # What follows the end of a JPEG is no picture: it is not carried along.
    if plain and picture.format == "JPEG" and media.data.endswith(_JPEG_END):
        picture.draft(picture.mode, (1, 1))  # Reads every coefficient, computes an eighth of the lines.
        picture.load()
        return _image(media, media.data, suffix, size, turn)
    target = size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    shrunk = upright_rgb(picture, target)
    jpeg, data = _jpeg(shrunk, policy.image.quality), without_long_asides(media.data)
    if plain and suffix in ("png", "webp") and len(data) <= len(jpeg):
        return _image(media, data, suffix, size, turn)
    return _image(media, jpeg, "jpg", shrunk.size, 1)


def _image(media: Media, data: bytes, suffix: str, size: tuple[int, int], turn: int) -> Stored:
    width, height = size if turn < 5 else size[::-1]  # 5 to 8 turn it by a quarter.
    return _stored(media, data, suffix, {"width": width, "height": height})


def _jpeg(picture: PIL.Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.info = {}  # A comment would be carried along.
    picture.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _store_audio(media: Media, policy: MediaPolicy) -> Stored:
    rate = policy.audio.sample_rate
    with open_sound(media.data, policy.limits) as opened:
        sound = replace(opened, blocks=_long_enough(opened, policy.audio))
        conforms = sound.format == "FLAC" and sound.num_channels == 1 and sound.sample_rate == rate
        if conforms or policy.keep_originals:
            samples = sum(len(block) for block in sound.blocks)
            facts = {"seconds": round(samples / sound.sample_rate, 3), "sample_rate": sound.sample_rate}
            return _stored(media, media.data, "flac" if conforms else media.format, facts)
        data, samples = _flac(sound, rate)
    return _stored(media, data, "flac", {"seconds": round(samples / rate, 3), "sample_rate": rate})


def _long_enough(sound: SoundStream, policy: AudioPolicy) -> Iterator[Block]:
    """The blocks of a sound, refused at its end where they were too few."""
    samples = 0
    for block in sound.blocks:
        samples += len(block)
        yield block
    policy.check_seconds(samples / sound.sample_rate)


def _flac(sound: SoundStream, rate: int) -> tuple[bytes, int]:
    """A sound as mono FLAC of 24 bits at `rate`, and its number of samples."""
    buffer, written = io.BytesIO(), 0
    with soundfile.SoundFile(buffer, "w", rate, 1, "PCM_24", format="FLAC") as file:
        for block in _resampled(sound, rate):
            steps = np.clip(np.rint(block.astype(np.float64) * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
            file.write(steps.astype(np.int32) << 8)
            written += len(block)
    if not written:  # libsndfile then leaves no file at all.
        raise Refused(f"too short: it has no sample left at {rate} Hz")
    return buffer.getvalue(), written


def _resampled(sound: SoundStream, rate: int) -> Iterator[npt.NDArray[np.float32]]:
    """The mean of the channels at another rate, in pieces."""
    mono = (block.mean(axis=1, dtype=np.float32) for block in sound.blocks)
    if sound.sample_rate == rate:
        yield from mono
        return
    resampler = soxr.ResampleStream(sound.sample_rate, rate, 1, dtype="float32")
    for block in mono:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _store_video(media: Media, policy: MediaPolicy) -> Stored:
    with open_video(media.data, policy.limits) as film:
        conforms = _conforms(film, policy)
        if not (conforms or policy.keep_originals):
            return _mp4(media, film, policy)
        [(_, frame)] = film.frames(_CHECK_FPS)
        facts = _film_facts((frame.shape[1], frame.shape[0]), film.timing.seconds, film.timing.rate)
        return _stored(media, media.data, "mp4" if conforms else media.format, facts)


def _conforms(film: Film, policy: MediaPolicy) -> bool:
    video, context = policy.video, film.stream.codec_context
    return (
        context.name == "h264"
        and context.pix_fmt == "yuv420p"
        and "mp4" in film.container.format.name
        and min(context.width, context.height) <= video.short_side
        and film.timing.rate <= video.fps * 1.001
        and film.timing.seconds <= video.max_seconds
        and len(film.container.streams) == 1
        and film.is_plain
    )


def _mp4(media: Media, film: Film, policy: MediaPolicy) -> Stored:
    buffer, video, places = io.BytesIO(), policy.video, list[int]()
    fps, sides = film.grid(video.fps), (0, 0)

    def kept() -> Iterator[tuple[int, Frame]]:
        nonlocal sides
        for place, frame in film.frames(fps, video.short_side, video.max_seconds):
            places.append(place)
            sides = frame.shape[1] + frame.shape[1] % 2, frame.shape[0] + frame.shape[0] % 2
            yield place, frame

    if film.timing.is_even:
        write_mp4(kept(), fps, video.crf, buffer)
        return _stored(media, buffer.getvalue(), "mp4", _film_facts(sides, (places[-1] + 1) / fps, fps))
    end = round(min(film.timing.seconds, video.max_seconds) * fps)
    write_mp4(kept(), fps, video.crf, buffer, end)
    seconds = max(end, places[-1] + 1) / fps
    return _stored(media, buffer.getvalue(), "mp4", _film_facts(sides, seconds, len(places) / seconds))


def _film_facts(sides: tuple[int, int], seconds: float, fps: float) -> Facts:
    return {"width": sides[0], "height": sides[1], "seconds": round(seconds, 3), "fps": round(fps, 3)}


def _stored(media: Media, data: bytes, suffix: str, facts: Facts) -> Stored:
    if data is media.data and suffix == media.format:
        return Stored(media=media, facts=facts)
    return Stored(media=Media(modality=media.modality, data=data, format=suffix), facts=facts)


_STORERS: dict[Modality, Callable[[Media, MediaPolicy], Stored]] = {
    Modality.IMAGE: _store_image,
    Modality.VIDEO: _store_video,
    Modality.AUDIO: _store_audio,
}
