"""Writes the synthetic world as a NExT-GPT data folder, for those who have no data yet."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from pipelines.media.codecs import encode
from pipelines.sample import Modality, Turn
from pipelines.storage.files import read_json, write_json
from pipelines.world import wording
from pipelines.world.captions import NOUNS, caption, choose
from pipelines.world.conversations import Conversation
from pipelines.world.instructions import INSTRUCTION_SETS, InstructionSet, Row
from pipelines.world.render import render
from pipelines.world.scenes import Subject, draw, modality_of
from pipelines.world.small_talk import BEYOND_WORDS

_MARKER = "world.json"
_OF_WORDS = "alpaca_instruction"
_SCHEMA = 10  # Raise it with any change to the bytes written.


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsLayout:
    """NExT-GPT's layout of the pairs of one modality."""

    dataset: str
    media_folder: str
    id_key: str
    name_key: str
    num_digits: int
    id_type: type


PAIRS = {
    Modality.IMAGE: PairsLayout(
        dataset="cc3m", media_folder="images", id_key="id", name_key="image_name", num_digits=9, id_type=str
    ),
    Modality.VIDEO: PairsLayout(
        dataset="webvid", media_folder="videos", id_key="id", name_key="video_name", num_digits=8, id_type=int
    ),
    Modality.AUDIO: PairsLayout(
        dataset="audiocap", media_folder="audios", id_key="audio_id", name_key="audio_name", num_digits=1, id_type=int
    ),
}


def write_world(root: Path, *, seed: int = 0, count: int = 16, answers: Sequence[Row] = ()) -> None:
    """Writes `count` pairs of each modality and as many rows of each instruction set (of some, several times as many).

    Nothing in it is a held-out combination. Equal arguments give equal trees, and a larger one begins as a smaller one.
    `answers`, rows in the layout of Alpaca as `jobs/recaption.py replay` writes, take by turns the place of what is
    asked and answered that the world does not know.

    The folder appears whole or not at all. Nothing is done where it already holds this world. Raises ValueError where
    `root` holds anything else, `seed` is negative or `count` is below 1.
    """
    if seed < 0 or count < 1:
        raise ValueError(f"synthetic world of seed {seed} and count {count}: seed must be >= 0 and count >= 1")
    root = root.resolve()
    world: dict[str, int | str] = {"schema": _SCHEMA, "seed": seed, "count": count}
    if answers:
        world["answers"] = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()
    if (root / _MARKER).is_file() and read_json(root / _MARKER) == world:
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root}: holds other files than the synthetic world {world}; name a new folder or delete it")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as temporary:
        folder = Path(temporary) / "world"
        for modality in Modality:
            _write_pairs(folder / "T-X_pair_data", modality, seed, count)
        for instructions in INSTRUCTION_SETS.values():
            _write_instructions(folder / "IT_data", instructions, seed, count, answers)
        write_json(folder / _MARKER, world)
        folder.replace(root)


def _write_pairs(folder: Path, modality: Modality, seed: int, count: int) -> None:
    """Writes the media of one modality, and its three files of rows."""
    pairs = PAIRS[modality]
    base = folder / pairs.dataset
    rows: dict[str, list[dict[str, Any]]] = {"": [], "_comprehension": [], "_generation": []}
    for index in range(count):
        subject = draw(seed, index)[modality]
        text, stem = caption(subject, index), f"{index:0{pairs.num_digits}}"
        name = _write_medium(base / pairs.media_folder, stem, subject, index)
        rows[""].append({"caption": text, pairs.id_key: pairs.id_type(stem), pairs.name_key: name})
        rows["_comprehension"].append(_comprehension_row(modality, name, text, index))
        rows["_generation"].append(_generation_row(modality, name, text, index))
    for suffix, values in rows.items():
        write_json(base / f"{pairs.dataset}{suffix}.json", values)


def _comprehension_row(modality: Modality, name: str, text: str, index: int) -> dict[str, Any]:
    asked = choose(wording.ASK_CAPTION, index).format(noun=NOUNS[modality])
    return {f"input_{modality}": name, "conversations": _conversation(f"<{modality}>\n{asked}", text)}


def _generation_row(modality: Modality, name: str, text: str, index: int) -> dict[str, Any]:
    fields = {"noun": NOUNS[modality], "caption": text}
    asked, made = choose(wording.MAKE_OF_CAPTION, index), choose(wording.MADE_OF_CAPTION, index)
    return {
        f"output_{modality}": name,
        f"{modality}_captions": text,
        f"{modality}_caption_embeddings": f"{name}.npy",
        "conversations": _conversation(asked.format(**fields), f"{made.format(**fields)} <{modality}>"),
    }


def _conversation(human: str, gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def _write_instructions(
    folder: Path, instructions: InstructionSet, seed: int, count: int, answers: Sequence[Row]
) -> None:
    """Writes the rows of one instruction set, and the media of its users."""
    path, rows, answered = folder / instructions.path, list[Row](), cycle(answers)
    for index in range(instructions.share * count):
        conversation, stem = instructions.draw(seed, index), f"{index:06}"
        if answers:
            conversation = _with_answers(conversation, answered)
        files = {
            name: _write_medium(path.parent / f"{modality_of(subject)}s", f"{stem}-{name}", subject, index)
            for name, subject in conversation.media.items()
        }
        rows.append(instructions.row(conversation, stem, files))
    write_json(path, rows)


def unanswered(seed: int, count: int) -> Iterator[str]:
    """The different questions that the world has no answer to, in a seed's first `count` conversations of words."""
    known = set[str]()
    for index in range(count):
        conversation = INSTRUCTION_SETS[_OF_WORDS].draw(seed, index)
        for number in _unanswered(conversation):
            asked = "".join(map(str, conversation.turns[number].parts))
            if asked not in known:
                known.add(asked)
                yield asked


def _unanswered(conversation: Conversation) -> Iterator[int]:
    """The numbers of the turns that ask what the world has no answer to."""
    return (2 * number for number, expected in enumerate(conversation.answers) if expected.replies == BEYOND_WORDS)


def _with_answers(conversation: Conversation, rows: Iterator[Row]) -> Conversation:
    """A conversation in which each question that the world has no answer to is another one, with its answer."""
    turns = list(conversation.turns)
    for number in _unanswered(conversation):
        row = next(rows)
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        turns[number] = Turn(role="user", parts=(asked,))
        turns[number + 1] = Turn(role="assistant", parts=(row["output"],))
    return replace(conversation, turns=tuple(turns))


def _write_medium(folder: Path, stem: str, subject: Subject, variant: int) -> str:
    """Writes a subject's medium and returns its file name."""
    medium = encode(render(subject, variant))
    name = f"{stem}.{medium.format}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(medium.data)
    return name
