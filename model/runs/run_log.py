"""The log of a training run: JSON lines, TensorBoard, and optionally an experiment tracker.

log.jsonl                one line per step, and one per validation, with figures named `validation/...`
tensorboard/             the same figures, and samples with pictures and sound
samples/                 the samples as files: 000120-image.txt, 000120-image.png
tracker.json             the run's id at MLflow or Weights & Biases
mlflow/, wandb/          local data of MLflow, if no server is set, and of Weights & Biases
"""

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import PIL.Image
import soundfile
from torch.utils.tensorboard import SummaryWriter

from model.runs.trackers import Tracker, TrackerName, open_tracker
from pipelines.sample import Audio, Decoded, Image, Modality, Video
from pipelines.storage.files import read_json_lines, write_text

LOG = "log.jsonl"
# Suffixes of figures that depend on the clock; all others are identical in an interrupted and resumed run.
TIMES = ("_seconds", "_per_second", "data_wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A sample reply: the prompt, the answer in the data, the model's text, and the decoded medium, if any."""

    modality: Modality
    prompt: str
    expected: str
    text: str
    medium: Decoded | None


class RunLog:
    """Writes the log of one rank; a context manager, which reports to the tracker whether the run failed.

    `directory` is local. `first_step` is the number of steps already done, 0 in a new run: rows of later steps are
    dropped, so that the log equals that of a run that was never interrupted. Steps count from 1. Raises ValueError if
    the tracker is not installed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first_step: int,
        tracker: TrackerName | None,
        name: str,
        settings: Mapping[str, Any],
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        _drop_after(directory / LOG, first_step)
        self._tracker: Tracker | None = open_tracker(tracker, directory, name, settings) if tracker else None
        self._file = (directory / LOG).open("a", buffering=1, encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)
        self._told = False

    def step(self, step: int, figures: Mapping[str, Any]) -> None:
        """Logs a training step; values that are not numbers, such as sample keys, go to log.jsonl only."""
        self._write(step, figures)

    def validation(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs a validation after a step, with figures named `validation/...`."""
        self._write(step, {f"validation/{name}": value for name, value in figures.items()})

    def sample(self, step: int, sampled: Sampled) -> None:
        """Logs a generated sample: its texts, and its image, video or sound, if any."""
        tag, stem = f"samples/{sampled.modality}", f"{step:06d}-{sampled.modality}"
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        texts = {"prompt": sampled.prompt, "expected": sampled.expected, "reply": sampled.text}
        text = folder / f"{stem}.txt"
        text.write_text("".join(f"{name}: {value}\n" for name, value in texts.items()), encoding="utf-8")
        self._board.add_text(tag, "\n\n".join(map(_as_markdown, texts, texts.values())), step)
        medium = None
        if sampled.medium is not None:
            data, suffix = _preview(sampled.medium)
            medium = folder / f"{stem}.{suffix}"
            medium.write_bytes(data)
            events = self._board.file_writer
            assert events is not None
            events.add_summary(_summary(tag, sampled.medium, data), step)
        self._track(lambda tracker: tracker.sample(step, tag, text, medium))

    def flush(self) -> None:
        """Syncs the log to disk; call it before writing a checkpoint, so that the log is never behind."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes the log; idempotent."""
        if not self._file.closed:
            self.flush()
            self._file.close()
            self._board.close()
            self._track(lambda tracker: tracker.close(failed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _write(self, step: int, row: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        # JSON has no NaN.
        lost = {name: None for name, value in numbers.items() if not math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **row, **lost}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._track(lambda tracker: tracker.figures(step, numbers))

    def _track(self, log: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            log(self._tracker)
        except Exception as error:  # an unreachable server must not stop the training
            if not self._told:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                print(f"note: logging to the tracker failed, training continues: {reason}", flush=True)
            self._told = True


def _drop_after(path: Path, step: int) -> None:
    """Drops the rows after a step, and an incomplete last line."""
    rows = [row for row in read_json_lines(path) if row["step"] <= step]
    if path.is_file():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _as_markdown(title: str, text: str) -> str:
    """A text under a title, shown verbatim as an indented code block."""
    return f"**{title}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _preview(medium: Decoded) -> tuple[bytes, str]:
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


def _summary(tag: str, medium: Decoded, data: bytes) -> Any:
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
