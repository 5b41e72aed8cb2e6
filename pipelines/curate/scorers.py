"""What a scorer is, and a sample as it sees it: captions at hand, media decoded when first asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.curate.columns import REASON
from pipelines.media import codecs
from pipelines.sample import Decoded, Image, Item, Media, Modality, Sample

# Pairs of neighbouring frames that are looked at in a video.
GLIMPSES = 8

Value = float | int | str | bool | bytes | None
Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpses:
    """Up to `GLIMPSES` pairs of neighbouring frames, evenly spread: uint8 (2 N, H, W, 3); a single frame is alone.

    `count` frames at `fps` a second are in the whole video.
    """

    frames: npt.NDArray[np.uint8]
    count: int
    fps: float


@dataclass(slots=True)
class Content:
    """A sample for scorers: the `place`-th of a dataset's shard. Media are decoded once, whichever scorers ask.

    A medium that cannot be decoded raises a ValueError with the reason, each time.
    """

    sample: Sample
    directory: Path = field(default_factory=Path)
    shard: str = ""
    place: int = 0
    _decoded: dict[str, Any] = field(default_factory=dict)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the first item that has any."""
        return next((item.captions for item in self.sample.items() if item.caption), ())

    @property
    def text(self) -> str:
        """The captions, a line each; of a sample without any, all that is said in it."""
        if captions := self.captions:
            return "\n".join(captions)
        return "\n".join(part for turn in self.sample.turns for part in turn.parts if isinstance(part, str))

    @property
    def media(self) -> list[Media]:
        """The media in the order in which they stand, each once."""
        return [self.sample.media[name] for name in self.names]

    @property
    def names(self) -> list[str]:
        """The names of the media, in order."""
        return list(dict.fromkeys(item.name for item in self.items))

    @property
    def items(self) -> list[Item]:
        """The items with a medium, in order."""
        return [item for item in self.sample.items() if item.name in self.sample.media]

    def decoded(self, name: str) -> Decoded:
        """A whole medium: see `codecs.decode`."""
        return self._once(name, codecs.decode)

    def first(self, *modalities: Modality) -> Decoded | None:
        """The first medium of these modalities (of any, if none is given), decoded whole; None where there is none."""
        wanted = modalities or tuple(Modality)
        return next((self.decoded(n) for n in self.names if self.sample.media[n].modality in wanted), None)

    def glimpses(self, name: str) -> Glimpses:
        """Some frames of a picture or video; a picture is one."""
        if self.sample.media[name].modality is Modality.VIDEO:
            return self._once(f"{name}\0glimpses", lambda _: _glimpses(self.sample.media[name]))
        picture = self.decoded(name)
        assert isinstance(picture, Image), "only a picture or a video has frames"
        return Glimpses(frames=picture.pixels[None], count=1, fps=0.0)

    def _once(self, name: str, decode: Callable[[Media], Any]) -> Any:
        if name not in self._decoded:
            try:
                self._decoded[name] = decode(self.sample.media[name.partition("\0")[0]])
            except ValueError as error:
                self._decoded[name] = error
        found = self._decoded[name]
        if isinstance(found, ValueError):
            raise found
        return found


def _glimpses(medium: Media) -> Glimpses:
    told: list[tuple[int, float]] = []

    def places(count: int, fps: float) -> list[int]:
        told.append((count, fps))
        if count == 1:
            return [0]
        starts = np.unique(np.linspace(0, count - 2, min(GLIMPSES, count - 1)).round().astype(int))
        return [place for start in starts.tolist() for place in (start, start + 1)]

    frames = codecs.decode_frames(medium, places)
    return Glimpses(frames=frames, count=told[-1][0], fps=told[-1][1])


# Scores samples: values by column for each, in order; with `reason` where some could not be computed.
Score = Callable[[Sequence[Content]], Sequence[Values]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A scorer: its name, the columns it fills with their types, and how an actor makes it.

    `version` is all that its values depend on beside the sample; `about` is for people to read. One that runs
    `on_devices` takes GPUs, where there are any.
    """

    name: str
    columns: Mapping[str, str]
    version: str
    make: Callable[[], Score]
    on_devices: bool = False
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EachSample:
    """Scores samples one at a time; what one raises costs that sample its values, and is the reason."""

    score: Callable[[Content], Values]

    def __call__(self, contents: Sequence[Content]) -> list[Values]:
        """Values or a reason for each sample."""
        return [attempt(self.score, content) for content in contents]


def attempt(score: Callable[[Content], Values], content: Content) -> Values:
    """What a function says of a sample, or why it says nothing."""
    try:
        return score(content)
    except Exception as error:
        return {REASON: reason_of(error)}


def reason_of(error: Exception) -> str:
    """An error in one line; those that are not a ValueError are named by their type."""
    what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return what + (" ".join(str(error).split())[:200] or type(error).__name__)
