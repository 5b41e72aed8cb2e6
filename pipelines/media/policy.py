"""How media are stored, and the limits of one medium."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Refused(ValueError):
    """Why a medium is refused: one line that begins with a category, which the ledger counts."""


class OutOfMemory(Refused):
    """Decoding needs more memory than is available."""

    def __init__(self) -> None:
        super().__init__("too large: not enough memory to decode it")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagePolicy(_Settings):
    """Images: larger ones shrink to `short_side` pixels and become JPEG of `quality`; none is ever enlarged.

    What is small enough stays as it is where nothing is gained: a JPEG, or a PNG or WebP that is smaller than its JPEG.
    """

    short_side: Count = 512  # What Stable Diffusion draws; ImageBind sees 224.
    quality: Annotated[int, Field(ge=1, le=100)] = 90


class AudioPolicy(_Settings):
    """Sounds: mono FLAC of 24 bits (16 move quiet mel bins by more than 1e-3); what is FLAC, mono and so low stays.

    Sounds below `min_seconds` are refused as `too short`: no caption describes a few samples.
    """

    sample_rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000  # What ImageBind hears and AudioLDM makes.
    min_seconds: Rate = 0.1  # ImageBind's spectrogram needs 0.025 of them.

    def check_seconds(self, seconds: float) -> None:
        """Raises Refused if a sound is too short."""
        if seconds < self.min_seconds:
            raise Refused(f"too short: {seconds:.4g} s, the limit is {self.min_seconds:g} s")


class VideoPolicy(_Settings):
    """Videos: H.264 without sound, at most so many frames a second, seconds and pixels of the short side.

    Frames keep their times: at an even rate of at most `fps` exactly, else within 1/fps seconds. `crf` is x264's
    quality, lower is better. An upright H.264 mp4 of square pixels within these bounds, on average, stays as it is.
    """

    short_side: Annotated[int, Field(ge=2)] = 320  # ZeroScope draws 576x320 at 8 frames a second.
    fps: Rate = 8.0
    max_seconds: Rate = 60.0
    crf: Annotated[int, Field(ge=0, le=51)] = 23


class Limits(_Settings):
    """Limits for one medium; a medium that exceeds them is refused.

    `max_bytes` is its encoded size, `max_pixels` of a frame, `max_decoded_bytes` what a whole medium may take as
    arrays. The child process that decodes may take `max_memory` bytes, and `max_decode_seconds` of processor time for
    one medium. With these defaults a hostile medium costs less than 512 MB in all: its bytes here, and the child.
    """

    max_bytes: Count = 128 * 2**20
    max_pixels: Count = 64_000_000
    max_seconds: Rate = 600.0
    max_frames: Count = 40_000
    max_decoded_bytes: Count = 2 * 2**30
    max_memory: Annotated[int, Field(ge=32 * 2**20)] = 320 * 2**20
    max_decode_seconds: Rate = 120.0

    def check_bytes(self, size: int) -> None:
        """Raises Refused if a file of `size` bytes is empty or too large."""
        if size == 0:
            raise Refused("empty file")
        if size > self.max_bytes:
            raise Refused(f"too large: {size} bytes, the limit is {self.max_bytes}")

    def check_pixels(self, width: int, height: int) -> None:
        """Raises Refused if a frame of this size has too many pixels."""
        if width * height > self.max_pixels:
            raise Refused(f"too large: {width}x{height} pixels, the limit is {self.max_pixels}")

    def check_seconds(self, seconds: float) -> None:
        """Raises Refused if the medium is too long."""
        if seconds > self.max_seconds:
            raise Refused(f"too long: {seconds:.0f} s, the limit is {self.max_seconds:g} s")

    def check_decoded(self, size: int) -> None:
        """Raises Refused if `size` decoded bytes exceed the limit."""
        if size > self.max_decoded_bytes:
            raise Refused(f"too large: {size} decoded bytes, the limit is {self.max_decoded_bytes}")


class MediaPolicy(_Settings):
    """How a dataset's media are stored; the shards depend on it.

    `keep_originals` stores every medium's bytes as they came; they are still decoded whole, and refused where broken.
    """

    image: ImagePolicy = ImagePolicy()
    audio: AudioPolicy = AudioPolicy()
    video: VideoPolicy = VideoPolicy()
    limits: Limits = Limits()
    keep_originals: bool = False
