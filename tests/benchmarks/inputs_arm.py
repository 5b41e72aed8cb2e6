"""Trains and examines one row of `inputs.py`: the pairs, a trainer in this process, words about held-out media."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.common.settings import load_model
from model.encoders.media_encoders import MediaEncoders
from model.inference.generation import generate_batch
from model.inference.query import AT_ONCE, Query, Sampling, in_batches
from model.parts.features import ItemFeatures
from model.runs.run_state import TrainState
from model.training.trainer import Trainer
from pipelines.sample import Item, Modality, Turn, turns_to_json
from pipelines.world import wording
from pipelines.world.captions import NOUNS, choose
from pipelines.world.oracles import read_text
from pipelines.world.render import render
from pipelines.world.scenes import attributes
from tests.benchmarks import say, timed
from tests.benchmarks.arms import Budget
from tests.benchmarks.inputs import ARMS
from tests.benchmarks.training import process_group
from tests.benchmarks.world_pairs import PRESET, held_out_rows, make_trainer, pairs, shares, training_rows

Array = npt.NDArray[np.floating]
_MEDIUM = "medium"


class Pairs:
    """The turns of pairs, and what an encoder makes of their media; `features` is of an arm of `inputs.ARMS`."""

    def __init__(self, folder: Path, features: str) -> None:
        with np.load(_file(folder, features), allow_pickle=False) as file:
            self._arrays: dict[str, Array] = dict(file)
        self.key_of: dict[Modality, Modality | None] = {m: None if features == "pooled" else m for m in Modality}
        self._pairs = {held_out: {m: pairs(m, held_out=held_out) for m in Modality} for held_out in (False, True)}

    def row(self, modality: Modality, held_out: bool, number: int) -> dict[str, Any]:
        """A row of the hand-over, as a view that comprehends media gives it."""
        key = self.key_of[modality]
        none = {"encoder": None} | {one.value: None for one in Modality}
        answer = Turn(role="assistant", parts=(self._pairs[held_out][modality][number].text,))
        return none | {
            "key": f"{modality}_{held_out}_{number}",
            "turns": turns_to_json((_question(modality, number), answer)),
            "encoder" if key is None else f"{key}_features": self._features(modality, held_out, number),
        }

    def queries(self, modality: Modality) -> Iterator[Query]:
        """The same questions about the held-out media."""
        for number in range(len(self._pairs[True][modality])):
            features: ItemFeatures = {self.key_of[modality]: self._features(modality, True, number)}
            turns = (_question(modality, number),)
            yield Query(turns=turns, features=features, sampling=Sampling(max_new_tokens=40, max_items=0))

    def shares(self, modality: Modality, texts: Sequence[str]) -> dict[str, float]:
        """The share of texts that name each attribute of the held-out media, and all of them."""
        graded = [
            {name: read_text(text).get(name) == value for name, value in attributes(pair.subject).items()}
            for pair, text in zip(self._pairs[True][modality], texts, strict=True)
        ]
        return shares(graded)

    def _features(self, modality: Modality, held_out: bool, number: int) -> Array:
        return self._arrays[_array(modality, held_out)][number : number + 1]


def prepare(folder: Path) -> None:
    """Embeds all media in both ways, once."""
    for features, overrides in {arm.features: arm.overrides for arm in ARMS.values()}.items():
        if _file(folder, features).is_file():
            continue
        say(f"embedding media: {features}")
        encoders = MediaEncoders(load_model(PRESET, overrides, needed={"encoder"}).encoder)
        arrays = dict[str, Array]()
        for modality in Modality:
            for held_out in (False, True):
                chosen = pairs(modality, held_out=held_out)
                made = list[Array]()
                for some in in_batches(list(enumerate(chosen)), AT_ONCE):
                    [found] = encoders([[render(pair.subject, number) for number, pair in some]])
                    made += found.values()
                arrays[_array(modality, held_out)] = np.concatenate(made)
        with _file(folder, features).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def measure(folder: Path, overrides: Sequence[str], seed: int, budget: Budget) -> dict[str, Any]:
    """Trains stage 1 with some settings within a budget; returns what is in the table, and the seconds it took."""
    modalities = list(Modality)
    with tempfile.TemporaryDirectory(prefix="bench-inputs-") as name, timed() as watch:
        with process_group(Path(name) / "group"):
            states: list[TrainState] = []
            trainer = make_trainer(
                *(Path(name), 1, overrides), modalities=modalities, captions={}, seed=seed, budget=budget, states=states
            )
            known = Pairs(folder, "pooled" if None in trainer.model.config.encoder.inputs else "patches")
            trainer.run(training_rows(modalities, known.row, seed, budget), held_out_rows(modalities, known.row))
            right = {m.value: {"right": known.shares(m, _described(trainer, list(known.queries(m))))} for m in Modality}
        parameters = dict(trainer.model.named_parameters())
    return {
        "weights": sum(parameters[name].numel() for name in trainer.manifest),
        "modalities": right,
        "loss": states[-1].validation["loss"],
        "seconds": watch.seconds,
    }


def _described(trainer: Trainer, queries: Sequence[Query]) -> list[str]:
    replies = generate_batch(trainer.model, trainer.tokenizer, queries)
    return ["".join(part for part in reply.parts if isinstance(part, str)) for reply in replies]


def _question(modality: Modality, number: int) -> Turn:
    asked = choose(wording.ASK_CAPTION, number).format(noun=NOUNS[modality])
    return Turn(role="user", parts=(Item(modality=modality, name=_MEDIUM), asked))


def _file(folder: Path, features: str) -> Path:
    return folder / f"{features}.npz"


def _array(modality: Modality, held_out: bool) -> str:
    return f"{modality}_{'held_out' if held_out else 'train'}"
