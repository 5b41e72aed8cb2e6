"""Media as they come: nearly copied, blank, silent."""

import io

import av
import numpy as np
import PIL.Image
import soundfile

from pipelines.media.codecs import encode
from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video


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


def _larger(pixels: np.ndarray) -> np.ndarray:
    return np.array(PIL.Image.fromarray(pixels).resize((48, 48), PIL.Image.Resampling.LANCZOS))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG", quality=60)
    return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: int, crf: int) -> Media:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return Media(modality=Modality.VIDEO, data=buffer.getvalue(), format="mp4")


def _wav(waveform: np.ndarray, rate: int) -> Media:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.T, rate, format="WAV", subtype="FLOAT")
    return Media(modality=Modality.AUDIO, data=buffer.getvalue(), format="wav")
