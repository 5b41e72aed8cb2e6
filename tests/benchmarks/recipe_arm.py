"""Trains and examines one row of `recipe.py`: the pairs, a trainer in this process, media of held-out captions.

Shape suffixes: N items, L and D length and width of a condition.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.core.batch import collate
from model.decoders.decoder import Decoder
from model.decoders.latents import LatentEncoder, LatentInputs
from model.decoders.text_encoders import CaptionEncoder
from model.parts.config import load_preset
from model.runs.run_state import TrainState
from model.training.trainer import Trainer
from pipelines.sample import Decoded, Item, Modality, Turn, turns_to_json
from pipelines.storage.files import write_json
from pipelines.world.oracles import grade, read
from pipelines.world.render import render
from tests.benchmarks import say, timed
from tests.benchmarks.arms import Budget
from tests.benchmarks.recipe import MODALITIES, TEXT
from tests.benchmarks.training import process_group
from tests.benchmarks.world_pairs import PRESET, RowOf, held_out_rows, make_trainer, pairs, shares, training_rows

AT_ONCE = 16  # media rendered as one batch
_DATA = "pairs.npz"
KINDS = {False: "train", True: "held_out"}
Arrays = Mapping[str, npt.NDArray[Any]]


def prepare(folder: Path) -> None:
    """Embeds all captions, encodes all media, and renders the held-out captions from their text, once."""
    if (folder / f"{TEXT}.json").is_file():
        return
    say("embedding captions and media")
    arrays: dict[str, npt.NDArray[Any]] = {}
    right: dict[str, Any] = {}
    for modality in MODALITIES:
        name = load_preset(PRESET).outputs[modality].decoder
        embed, encode = CaptionEncoder(modality, name), LatentEncoder(modality, name)
        for held_out, kind in KINDS.items():
            chosen = pairs(modality, held_out=held_out)
            captions = embed([pair.text for pair in chosen])
            arrays[f"{modality}_{kind}_embeddings"] = captions.embeddings
            arrays[f"{modality}_{kind}_lengths"] = captions.lengths
            media = [render(pair.subject, number) for number, pair in enumerate(chosen)]
            arrays[f"{modality}_{kind}_latents"] = encode(media)
        conditions_NLD = arrays[f"{modality}_held_out_embeddings"]
        media = _rendered(Decoder(modality, name), conditions_NLD, None)
        arrays[f"{modality}_from_text"] = _seen(modality, name, media)
        right[modality.value] = {"right": _shares(modality, media)}
    with (folder / _DATA).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(folder / f"{TEXT}.json", right)


def measure(folder: Path, overrides: Sequence[str], seed: int, budget: Budget) -> dict[str, Any]:
    """Trains stage 2 with some settings within a budget; returns what is in the table, and the seconds it took.

    `modalities` holds for each the shares of rendered media with the right attributes, the `distance` to the media
    made from the text with the same noise (1: as far as those of other captions), and the figures of validation.
    """
    with np.load(folder / _DATA, allow_pickle=False) as file:
        arrays = dict(file)  # an array of the file is read anew each time it is asked for
    with tempfile.TemporaryDirectory(prefix="bench-recipe-") as name, timed() as watch:
        with process_group(Path(name) / "group"):
            states: list[TrainState] = []
            trainer = make_trainer(
                Path(name),
                2,
                overrides,
                modalities=MODALITIES,
                captions={modality: list(_captions(modality, arrays)) for modality in MODALITIES},
                seed=seed,
                budget=budget,
                states=states,
            )
            row = _rows(arrays)
            trainer.run(training_rows(MODALITIES, row, seed, budget), held_out_rows(MODALITIES, row))
            found = {modality.value: _examined(trainer, modality, arrays) for modality in MODALITIES}
        for modality in MODALITIES:
            for figure in ("mean_ratio", "cosine", "denoising"):
                if (key := f"{modality}_{figure}") in states[-1].validation:
                    found[modality.value][figure] = states[-1].validation[key]
        parameters = dict(trainer.model.named_parameters())
    return {
        "weights": sum(parameters[name].numel() for name in trainer.manifest),
        "modalities": found,
        "seconds": watch.seconds,
    }


def _captions(modality: Modality, arrays: Arrays) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield tuple(torch.from_numpy(arrays[f"{modality}_train_{part}"]) for part in ("embeddings", "lengths"))  # type: ignore[misc]


def _rows(arrays: Arrays) -> RowOf:
    """Rows of the hand-over, as a view that generates from captions gives them."""
    known = {held_out: {m: pairs(m, held_out=held_out) for m in MODALITIES} for held_out in (False, True)}
    return lambda modality, held_out, number: _row(
        modality, number, known[held_out][modality][number].text, f"{modality}_{KINDS[held_out]}", arrays
    )


def _row(modality: Modality, number: int, text: str, key: str, arrays: Arrays) -> dict[str, Any]:
    turns = (
        Turn(role="user", parts=(text,)),
        Turn(role="assistant", parts=(text, Item(modality=modality, name="medium", caption=text))),
    )
    none = {"encoder": None} | {other.value: None for other in Modality}
    return none | {
        "key": f"{key}_{number}",
        "turns": turns_to_json(turns),
        modality.value: arrays[f"{key}_embeddings"][number : number + 1],
        f"{modality}_lengths": arrays[f"{key}_lengths"][number : number + 1].tolist(),
        f"{modality}_latents": arrays[f"{key}_latents"][number : number + 1],
    }


@torch.no_grad()
def _examined(trainer: Trainer, modality: Modality, arrays: Arrays) -> dict[str, Any]:
    """Renders what the model makes of the held-out captions, with the right signal tokens in its answer."""
    model, rows = trainer.model.eval(), held_out_rows([modality], _rows(arrays))
    batch = collate([trainer.encode(row) for row in rows], int(trainer.tokenizer.pad_token_id or 0))
    conditions_NLD = model(batch.to(trainer.rank.device)).conditions[modality].float().cpu()
    null_LD = model.null_conditions().get(modality)
    name = model.config.outputs[modality].decoder
    media = _rendered(Decoder(modality, name, trainer.rank.device), conditions_NLD, null_LD)
    ours, theirs = _seen(modality, name, media), arrays[f"{modality}_from_text"]
    apart = np.square(theirs - np.roll(theirs, 1, axis=0)).mean()
    return {"right": _shares(modality, media), "distance": float(np.square(ours - theirs).mean() / apart)}


def _rendered(decoder: Decoder, conditions_NLD: Any, null_LD: torch.Tensor | None) -> list[Decoded]:
    media = list[Decoded]()
    for start in range(0, len(conditions_NLD), AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, len(conditions_NLD)))
        media += decoder.generate_batch(conditions_NLD[start : start + AT_ONCE], seeds, negative=null_LD)
    return media


def _seen(modality: Modality, name: str, media: Sequence[Decoded]) -> npt.NDArray[np.float32]:
    """Media as the decoder's VAE takes them: pixels from 0 to 1, or log-mel spectrograms."""
    values = np.stack(LatentInputs(modality, name)(media))
    return values.astype(np.float32) / np.float32(255 if values.dtype == np.uint8 else 1)


def _shares(modality: Modality, media: Sequence[Decoded]) -> dict[str, float]:
    """The share of held-out captions whose medium has each attribute, and all of them, by the oracles."""
    chosen = pairs(modality, held_out=True)
    graded = [grade(pair.subject, read(medium)) for pair, medium in zip(chosen, media, strict=True)]
    return shares(graded)
