"""Media as they come: nearly copied, blank, silent; and what the columns of curation say of them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import soundfile

from pipelines.curate.columns import KEY, find_columns, read_columns
from pipelines.media.codecs import encode
from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video
from pipelines.storage.shards import Manifest


def copied(medium: Decoded, number: int) -> Media:
    """Nearly the same medium: encoded anew, resized, softer, or with noise 40 dB below it, by turns of `number`."""
    match medium:
        case Image(pixels=pixels):
            if number % 2:
                return encode(Image(pixels=_larger(pixels)))
            return Media(modality=Modality.IMAGE, data=_jpeg(pixels), format="jpg")
        case Video(frames=frames, fps=fps):
            if number % 2:
                return encode(Video(frames=np.stack([_larger(frame) for frame in frames]), fps=fps))
            return _mp4(frames, round(fps), crf=30)
        case Audio(waveform=waveform, sample_rate=rate):
            noise = np.random.default_rng(number).normal(size=waveform.shape) * waveform.std() / 100
            return _wav(waveform + noise if number % 2 else waveform * 0.3, rate)


def blank(medium: Decoded, number: int) -> Media:
    """A medium of the same size that shows or plays nothing; another one for each number below 12."""
    match medium:
        case Image(pixels=pixels):
            return encode(Image(pixels=np.full_like(pixels, 20 * (number % 12))))
        case Video(frames=frames, fps=fps):
            return encode(Video(frames=np.full_like(frames, 20 * (number % 12)), fps=fps))
        case Audio(waveform=waveform, sample_rate=rate):
            return _wav(np.zeros((1, waveform.shape[1] + 4000 * (number % 12)), np.float32), rate)


def columns_of(directory: Path) -> dict[str, dict[str, Any]]:
    """All columns of a dataset's samples, by key."""
    rows = dict[str, dict[str, Any]]()
    for found in find_columns(directory).values():
        for shard in Manifest.read(directory).shards:
            for row in read_columns(directory, found.id, shard.name, [KEY, *found.columns]).to_pylist():
                rows.setdefault(row[KEY], {}).update(row)
    return rows


def is_blank(row: Mapping[str, Any]) -> bool:
    """Whether a sample's columns say that it shows or plays nothing."""
    return (row["silence"] or 0) > 0.99 if row["contrast"] is None else row["contrast"] < 1


def precision_recall(found: set[str], expected: set[str]) -> tuple[float, float]:
    """Of what was found, and of what there is to find, the share that is both."""
    right = len(found & expected)
    return right / max(1, len(found)), right / len(expected)


def _larger(pixels: np.ndarray) -> np.ndarray:
    return np.array(PIL.Image.fromarray(pixels).resize((48, 48), PIL.Image.Resampling.LANCZOS))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG", quality=60)
    return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: int, crf: int) -> Media:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "x264-params": "asm=0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1  # The bytes depend on it, and of x264's assembly on the environment.
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return Media(modality=Modality.VIDEO, data=buffer.getvalue(), format="mp4")


def _wav(waveform: np.ndarray, rate: int) -> Media:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.T, rate, format="WAV", subtype="FLOAT")
    return Media(modality=Modality.AUDIO, data=buffer.getvalue(), format="wav")
