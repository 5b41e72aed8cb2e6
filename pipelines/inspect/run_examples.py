"""The examples that a scored run holds: conversations with what was given, what was answered, and how it was graded."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.media.codecs import decode, load
from pipelines.sample import Audio, Decoded, Media, Modality
from pipelines.storage.files import read_json

FOLDER, INDEX = "examples", "examples.json"
_WINDOW, _HOP = 256, 128  # samples of a spectrogram's window, and from one to the next
_HIGHEST = 5000.0  # Hz
_RANGE = 50.0  # dB below the loudest that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """A picture, video or sound of an example, as its file and decoded."""

    modality: Modality
    caption: str
    media: Media
    decoded: Decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A turn: texts and media in the order they stand."""

    role: str
    parts: tuple[str | Medium, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A graded conversation of one row of the scores; `grades` says of each attribute whether it is right.

    Equal conversations, of which several rows may have taken note, have the same `key`.
    """

    key: str
    row: str
    right: bool
    grades: dict[str, bool]
    wanted: str
    turns: tuple[Said, ...]

    @property
    def richness(self) -> int:
        """How many modalities the assistant answered in, then how many media there are."""
        media = [(turn.role, part.modality) for turn in self.turns for part in turn.parts if isinstance(part, Medium)]
        return 10 * len({modality for role, modality in media if role == "assistant"}) + min(len(media), 9)


def read_examples(run: Path) -> list[Example]:
    """The examples of a run, none where it was not scored.

    Raises:
        ValueError: a file lies outside of the run's examples, or is not what it is said to be.
        FileNotFoundError: a file is missing.
    """
    folder = run / FOLDER
    if not (folder / INDEX).is_file():
        return []
    return [_example(row, folder) for row in read_json(folder / INDEX)]


def choose(examples: Iterable[Example], most: int, *, right: bool) -> list[Example]:
    """Examples that were right, or wrong: the first of all rows, then the second of all, and so on, none twice.

    Of one round, those that answer in more modalities come first.
    """
    distinct = {example.key: example for example in reversed(list(examples)) if example.right == right}
    counts: Counter[str] = Counter()
    ranked = []
    for example in reversed(distinct.values()):
        counts[example.row] += 1
        ranked.append((counts[example.row], -example.richness, example))
    return [example for *_, example in sorted(ranked, key=lambda rank: rank[:2])][:most]


def spectrogram(audio: Audio) -> npt.NDArray[np.float64]:
    """How strong each frequency is over time, (frequencies, times) from 0 to 1, high ones on top, up to 5 kHz."""
    samples = audio.waveform.mean(axis=0).astype(np.float64)
    samples = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    powers = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / audio.sample_rate)
    powers = powers[:, frequencies <= _HIGHEST].T[::-1]
    decibels = 10 * np.log10(powers / (powers.max() or 1.0) + 1e-12)
    return np.clip(1 + decibels / _RANGE, 0, 1)


def _example(row: dict[str, Any], folder: Path) -> Example:
    turns = tuple(
        Said(role=turn["role"], parts=tuple(_part(part, folder) for part in turn["parts"])) for turn in row["turns"]
    )
    return Example(
        key=json.dumps(row["turns"]),
        row=row["row"],
        right=row["right"],
        grades=row["grades"],
        wanted=row["wanted"],
        turns=turns,
    )


def _part(part: dict[str, str], folder: Path) -> str | Medium:
    if "text" in part:
        return part["text"].strip()
    path = folder / part["file"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / INDEX}: {part['file']}: lies outside of {folder}; score the run again")
    modality = Modality(part["modality"])
    media = load(path, modality)
    try:
        decoded = decode(media)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Medium(modality=modality, caption=part.get("caption", ""), media=media, decoded=decoded)
