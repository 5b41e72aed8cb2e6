"""Writes the synthetic world as a NExT-GPT data folder, the dataset of those who have none yet."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json
from pipelines.media import encode
from pipelines.sample import Modality, Part, Turn
from pipelines.world.captions import caption, dialogue, exercise, question, reply, request
from pipelines.world.render import render
from pipelines.world.scenes import draw

_MARKER = "world.json"
_SCHEMA = 1  # Raise it with any change to the bytes written.
_MOSIT = "IT_data/MosIT_data/mosit.json"
_ALPACA = "IT_data/T+X-T_data/alpaca/alpaca.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """How NExT-GPT lays out the pairs of one modality."""

    dataset: str
    media_folder: str
    id_key: str
    name_key: str
    num_digits: int
    id_type: type


_PAIRS = {
    Modality.IMAGE: _Pairs(
        dataset="cc3m", media_folder="images", id_key="id", name_key="image_name", num_digits=9, id_type=str
    ),
    Modality.VIDEO: _Pairs(
        dataset="webvid", media_folder="videos", id_key="id", name_key="video_name", num_digits=8, id_type=int
    ),
    Modality.AUDIO: _Pairs(
        dataset="audiocap", media_folder="audios", id_key="audio_id", name_key="audio_name", num_digits=1, id_type=int
    ),
}


def write_world(root: Path, *, seed: int = 0, count: int = 16) -> None:
    """Writes `count` pairs of each modality, dialogues and exercises below `root`; equal arguments give equal trees.

    The folder appears whole or not at all. Nothing is done where it already holds this world. Raises ValueError where
    `root` holds anything else, `seed` is negative or `count` is below 1.
    """
    if seed < 0 or count < 1:
        raise ValueError(f"synthetic world of seed {seed} and count {count}: seed must be >= 0 and count >= 1")
    root = root.resolve()
    world = {"schema": _SCHEMA, "seed": seed, "count": count}
    if (root / _MARKER).is_file() and read_json(root / _MARKER) == world:
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root}: holds other files than the synthetic world {world}; name a new folder or delete it")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as temporary:
        folder = Path(temporary) / "world"
        for modality in Modality:
            _write_pairs(folder / "T-X_pair_data", modality, seed, count)
        write_json(folder / _MOSIT, [_dialogue_row(seed, index) for index in range(count)])
        write_json(folder / _ALPACA, list(_exercise_rows(seed, count)))
        write_json(folder / _MARKER, world)
        folder.replace(root)


def _write_pairs(folder: Path, modality: Modality, seed: int, count: int) -> None:
    """Writes the media of one modality, and its three files of rows."""
    pairs = _PAIRS[modality]
    base = folder / pairs.dataset
    (base / pairs.media_folder).mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {"": [], "_comprehension": [], "_generation": []}
    for index in range(count):
        subject = draw(seed, index)[modality]
        medium, text = encode(render(subject)), caption(subject, index)
        stem = f"{index:0{pairs.num_digits}}"
        name = f"{stem}.{medium.format}"
        (base / pairs.media_folder / name).write_bytes(medium.data)
        rows[""].append({"caption": text, pairs.id_key: pairs.id_type(stem), pairs.name_key: name})
        rows["_comprehension"].append(_comprehension_row(modality, name, text, index))
        rows["_generation"].append(_generation_row(modality, name, text, index))
    for suffix, values in rows.items():
        write_json(base / f"{pairs.dataset}{suffix}.json", values)


def _comprehension_row(modality: Modality, name: str, text: str, index: int) -> dict[str, Any]:
    asked = f"<{modality}>\n{question(modality, index)}"
    return {f"input_{modality}": name, "conversations": _conversation(asked, text)}


def _generation_row(modality: Modality, name: str, text: str, index: int) -> dict[str, Any]:
    return {
        f"output_{modality}": name,
        f"{modality}_captions": text,
        f"{modality}_caption_embeddings": f"{name}.npy",
        "conversations": _conversation(request(modality, text, index), f"{reply(index)} <{modality}>"),
    }


def _conversation(human: str, gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def _dialogue_row(seed: int, index: int) -> dict[str, Any]:
    """A MosIT row of the first generation: captions of the items stand between tags, no media."""
    captions = {modality: caption(subject, index) for modality, subject in draw(seed, index).items()}
    lists: dict[str, list[Any]] = {f"{modality}_list": [] for modality in Modality}
    return lists | {"conversation": [_legacy_turn(turn) for turn in dialogue(captions, index)]}


def _legacy_turn(turn: Turn) -> dict[str, str]:
    def text(part: Part) -> str:
        if isinstance(part, str):
            return part
        tag = part.modality.capitalize()
        return f"<{tag}>{part.caption}</{tag}>"

    return {"from": "human" if turn.role == "user" else "gpt", "value": "".join(map(text, turn.parts))}


def _exercise_rows(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Alpaca rows, the modalities by turns."""
    for index in range(count):
        subject = draw(seed, index)[list(Modality)[index % len(Modality)]]
        yield dict(zip(("instruction", "input", "output"), exercise(subject, index // len(Modality)), strict=True))
