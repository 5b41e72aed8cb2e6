"""Generated media as files for browsers and TensorBoard: PNG, animated GIF, WAV."""

import io
from typing import Any

import PIL.Image
import soundfile

from pipelines.sample import Audio, Decoded, Image, Video


def preview(medium: Decoded) -> tuple[bytes, str]:
    """Encodes a medium: its bytes and file suffix; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    if isinstance(medium, Audio):
        soundfile.write(buffer, medium.waveform.T, medium.sample_rate, format="WAV", subtype="PCM_16")
        return buffer.getvalue(), "wav"
    if isinstance(medium, Image):
        PIL.Image.fromarray(medium.pixels).save(buffer, format="PNG")
        return buffer.getvalue(), "png"
    first, *others = (PIL.Image.fromarray(frame) for frame in medium.frames)
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=round(1000 / medium.fps), loop=0)
    return buffer.getvalue(), "gif"


def summary(tag: str, medium: Decoded, data: bytes) -> Any:
    """A medium and its preview as a TensorBoard summary; TensorBoard plays animated GIFs as images."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    if isinstance(medium, Audio):
        channels, frames = medium.waveform.shape
        sound = Summary.Audio(
            sample_rate=medium.sample_rate,
            num_channels=channels,
            length_frames=frames,
            encoded_audio_string=data,
            content_type="audio/wav",
        )
        return Summary(value=[Summary.Value(tag=tag, audio=sound)])
    height, width, colors = (medium.frames[0] if isinstance(medium, Video) else medium.pixels).shape
    picture = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])
