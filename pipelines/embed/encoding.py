"""What prepares inputs, on any CPU, and what encodes them, on a device, in large batches."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipelines.media import codecs
from pipelines.media.policy import Refused
from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video
from pipelines.storage.precision import check
from pipelines.storage.sidecars import takes_media

# ImageBind looks at ten frames of a video, first and last of five clips; this many a second serve it well.
VIDEO_FPS = 10.0

# Media that nothing is wrong with: what fails at these fails at all.
_ORDINARY: dict[Modality, Decoded] = {
    Modality.IMAGE: Image(pixels=np.full((64, 64, 3), 128, np.uint8)),
    Modality.VIDEO: Video(frames=np.full((16, 64, 64, 3), 128, np.uint8), fps=8.0),
    Modality.AUDIO: Audio(waveform=np.sin(np.arange(32_000, dtype=np.float32) / 6)[None], sample_rate=16_000),
}

Embeddings = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Preprocess(Protocol):
    """Makes of captions (strings) or decoded media what their encoder takes, without its weights: an array each."""

    def __call__(self, inputs: Sequence[Any], /) -> Sequence[npt.NDArray[Any]]:
        """One array an input, in order; it fails at an input that nothing can be made of."""
        ...


@runtime_checkable
class TakesFrames(Protocol):
    """A `Preprocess` to which a video is some of its frames: the others need not be made."""

    def frame_places(self, num_frames: int, fps: float, /) -> Sequence[int]:
        """Which frames of so many at this rate."""
        ...

    def of_frames(self, frames: npt.NDArray[np.uint8], /) -> npt.NDArray[Any]:
        """What the encoder takes of a video of which these are the frames, uint8 (N, H, W, 3)."""
        ...


class Encoder(Protocol):
    """What embeds prepared inputs, made once in each actor by a factory.

    `id` names its weights, preprocessing and precision, `untrained` says that they are random. `send` begins to move
    inputs to its device, and may be called while others are embedded; calling it with what that gave embeds them, and
    gives the embeddings (N, ...) in order and, for each, how many positions are the caption's own.
    """

    id: str
    name: str
    untrained: bool
    precision: str

    def send(self, inputs: Sequence[Any], /) -> Any:
        """Begins to move inputs to the device."""
        ...

    def __call__(self, sent: Any, /) -> Embeddings:
        """Embeds what was sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """What to embed of a dataset, with which encoder, and how.

    `kind` is one of `sidecars.ROW_KINDS`; `dtype` is what is stored, one of `storage.DTYPES`. A batch is of
    `batch_size` clips; a medium has as many as `clips` says of its modality, else one, as a caption has. `preprocess`
    makes what prepares inputs; without it, the encoder takes captions and decoded media. `exact` makes the same encoder
    in float32, where it is not. `memory` gives the file in which a machine remembers the encoder's id, another whenever
    that may be another; None where this cannot be told without loading it.
    """

    kind: str
    factory: Callable[[], Encoder]
    dtype: str
    batch_size: int = 64
    clips: Mapping[Modality, int] = field(default_factory=dict)
    preprocess: Callable[[], Preprocess] | None = None
    exact: Callable[[], Encoder] | None = None
    memory: Callable[[], Path | None] | None = None


def prepare_media(media: Sequence[Media], preprocess: Preprocess | None) -> list[Any]:
    """What an encoder takes of media; why there is nothing, where one cannot be decoded or prepared."""
    return [_prepared(medium, preprocess) for medium in media]


def _prepared(medium: Media, preprocess: Preprocess | None) -> Any:
    try:
        if medium.modality is Modality.VIDEO and isinstance(preprocess, TakesFrames):
            frames = codecs.decode_frames(medium, preprocess.frame_places, fps=VIDEO_FPS)
            prepare = partial(preprocess.of_frames, frames)
        else:
            decoded = codecs.decode(medium, fps=VIDEO_FPS)
            if preprocess is None:
                return decoded
            prepare = partial(_first, preprocess, decoded)
    except Refused as error:
        return error
    try:
        return prepare()
    except Exception as error:
        return Refused(_reason(error, lambda: preprocess([_ORDINARY[medium.modality]])))


def _first(preprocess: Preprocess, decoded: Decoded) -> npt.NDArray[Any]:
    return preprocess([decoded])[0]


def _reason(error: Exception, at_ordinary: Callable[[], Any]) -> str:
    """Why a medium has no embedding. What is raised is the medium's own where an ordinary one gives no error."""
    try:
        at_ordinary()
    except Exception:
        raise error from None
    what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"not encoded: {what}{' '.join(str(error).split())}"


class UnitEncoder:
    """Encodes units of prepared inputs; those of a kind come together, so each encoder is loaded once.

    A second thread may call it while one encodes: it moves its inputs to the device meanwhile.
    """

    def __init__(self, tasks: Sequence[EmbedTask]) -> None:
        self._tasks = {task.kind: task for task in tasks}
        self._kind, self._loading, self._computing = "", Lock(), Lock()

    def __call__(
        self, kind: str, encoder_id: str, modality: Modality, inputs: Sequence[Any]
    ) -> tuple[Embeddings | None, dict[int, str]]:
        """The embeddings of inputs; those that cannot be encoded are left out, and named with the reason.

        Where media fail together, each is encoded alone.
        """
        task, encoder = self._tasks[kind], self._use(kind, encoder_id)
        try:
            return self._call(encoder, inputs, task.dtype), {}
        except Exception:
            if not takes_media(kind):
                raise
        found, failed = list[Embeddings](), dict[int, str]()
        for number, one in enumerate(inputs):
            try:
                found.append(self._call(encoder, [one], task.dtype))
            except Exception as error:
                failed[number] = _reason(error, lambda: self._call(encoder, _ordinary(task, modality), task.dtype))
        if not found:
            return None, failed
        return (np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])), failed

    def _call(self, encoder: Encoder, inputs: Sequence[Any], dtype: str) -> Embeddings:
        sent = encoder.send(inputs)
        with self._computing:
            embeddings, lengths = encoder(sent)
        check(embeddings, dtype, encoder.name)
        return embeddings, lengths

    def _use(self, kind: str, encoder_id: str) -> Encoder:
        with self._loading:
            if kind != self._kind:
                self._encoder = self._tasks[kind].factory()
                self._kind = kind
            encoder = self._encoder
        if encoder.id != encoder_id:
            raise ValueError(
                f"{encoder.name}: its id was {encoder_id} when this run began and is {encoder.id} "
                "here: its files have changed, or differ between machines; run jobs/embed.py again once they agree"
            )
        return encoder


def _ordinary(task: EmbedTask, modality: Modality) -> Sequence[Any]:
    """A medium that nothing is wrong with, as the encoder takes it."""
    ordinary = [_ORDINARY[modality]]
    return task.preprocess()(ordinary) if task.preprocess else ordinary


def join_inputs(inputs: Sequence[Any]) -> tuple[str, npt.NDArray[np.uint8]]:
    """Inputs as bytes side by side, which a process reads where they lie, and what they are."""
    told, parts = zip(*map(_told, inputs), strict=True) if inputs else ((), ())
    data = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
    return json.dumps([[*what, part.dtype.str, part.shape] for what, part in zip(told, parts, strict=True)]), (
        np.concatenate(data) if data else np.zeros(0, np.uint8)
    )


def split_inputs(header: str, data: npt.NDArray[np.uint8]) -> list[Any]:
    """Reads what `join_inputs` gave; arrays are views of `data`."""
    found, start = list[Any](), 0
    for what, rate, dtype, shape in json.loads(header):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        found.append(_untold(what, rate, data[start : start + size].view(dtype).reshape(shape)))
        start += size
    return found


def _told(value: Any) -> tuple[tuple[str, float], npt.NDArray[Any]]:
    match value:
        case str():
            return ("text", 0), np.frombuffer(value.encode(), np.uint8)
        case Image():
            return ("image", 0), value.pixels
        case Video():
            return ("video", value.fps), value.frames
        case Audio():
            return ("audio", value.sample_rate), value.waveform
        case _:
            return ("array", 0), value


def _untold(what: str, rate: float, array: npt.NDArray[Any]) -> Any:
    match what:
        case "text":
            return array.tobytes().decode()
        case "image":
            return Image(pixels=array)
        case "video":
            return Video(frames=array, fps=rate)
        case "audio":
            return Audio(waveform=array, sample_rate=int(rate))
        case _:
            return array
