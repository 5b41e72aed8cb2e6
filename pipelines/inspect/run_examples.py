"""The examples that a scored run holds: conversations with what was given, what was answered, and how it was graded."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.media.codecs import decode, load
from pipelines.sample import Decoded, Media, Modality
from pipelines.storage.files import read_json

FOLDER, INDEX = "examples", "examples.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenMedium:
    """A picture, video or sound of an example, as its file and decoded."""

    modality: Modality
    caption: str
    media: Media
    decoded: Decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTurn:
    """A turn: texts and media in the order they stand."""

    role: str
    parts: tuple[str | GivenMedium, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExample:
    """A graded conversation of one row of the scores; `grades` says of each attribute whether it is right.

    Equal conversations, of which several rows may have taken note, have the same `key`.
    """

    key: str
    row: str
    right: bool
    grades: dict[str, bool]
    wanted: str
    turns: tuple[ExampleTurn, ...]

    @property
    def richness(self) -> int:
        """How many modalities the assistant answered in, then how many media there are."""
        media = [
            (turn.role, part.modality) for turn in self.turns for part in turn.parts if isinstance(part, GivenMedium)
        ]
        return 10 * len({modality for role, modality in media if role == "assistant"}) + min(len(media), 9)


def read_examples(run: Path) -> list[RunExample]:
    """The examples of a run, none where it was not scored.

    Raises:
        ValueError: a file lies outside of the run's examples, or is not what it is said to be.
        FileNotFoundError: a file is missing.
    """
    folder = run / FOLDER
    if not (folder / INDEX).is_file():
        return []
    return [_example(row, folder) for row in read_json(folder / INDEX)]


def choose(examples: Iterable[RunExample], most: int, *, right: bool) -> list[RunExample]:
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


def _example(row: dict[str, Any], folder: Path) -> RunExample:
    turns = tuple(
        ExampleTurn(role=turn["role"], parts=tuple(_part(part, folder) for part in turn["parts"]))
        for turn in row["turns"]
    )
    return RunExample(
        key=json.dumps(row["turns"]),
        row=row["row"],
        right=row["right"],
        grades=row["grades"],
        wanted=row["wanted"],
        turns=turns,
    )


def _part(part: dict[str, str], folder: Path) -> str | GivenMedium:
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
    return GivenMedium(modality=modality, caption=part.get("caption", ""), media=media, decoded=decoded)
