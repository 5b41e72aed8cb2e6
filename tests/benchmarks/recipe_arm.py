"""Trains and examines one row of `recipe.py`: the pairs, a trainer in this process, media of held-out captions.

Shape suffixes: N items, L and D length and width of a condition.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.common import cli
from jobs.common.settings import deepspeed_settings, load_settings
from model.core.batch import collate
from model.core.losses import caption_scale, mean_predictor_error
from model.decoders.decoder import Decoder
from model.decoders.latents import LatentEncoder, LatentInputs
from model.decoders.text_encoders import CaptionEncoder
from model.parts.config import load_preset
from model.parts.devices import best_device
from model.runs.run_state import TrainState
from model.training.engine import Rank
from model.training.feed import Row
from model.training.trainer import Job, Trainer
from pipelines.sample import Decoded, Item, Modality, Turn, turns_to_json
from pipelines.storage.files import write_json
from pipelines.world.captions import caption
from pipelines.world.oracles import grade, read
from pipelines.world.render import render
from pipelines.world.scenes import Subject, draw
from tests.benchmarks import say, timed
from tests.benchmarks.recipe import MODALITIES, TEXT
from tests.benchmarks.training import process_group

PRESET = "world"
PAIRS = 600  # of each modality, as the shipped model was trained on
EXAMINED = 64  # held-out captions of each modality
EACH = 8  # samples of a modality in a batch
AT_ONCE = 16  # media rendered as one batch
_WORDINGS = 31  # held-out captions are worded otherwise than those of the pairs that begin the world
_DATA = "pairs.npz"
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A subject and the caption that describes it."""

    subject: Subject
    text: str


def pairs(modality: Modality, *, held_out: bool) -> list[Pair]:
    """The pairs that are trained on, or those of held-out combinations, without the harder ones."""
    if not held_out:
        subjects = [draw(0, index)[modality] for index in range(PAIRS)]
        return [Pair(subject=subject, text=caption(subject, index)) for index, subject in enumerate(subjects)]
    subjects = [draw(0, index, held_out=True, hard=False)[modality] for index in range(EXAMINED)]
    return [Pair(subject=subject, text=caption(subject, _WORDINGS * index)) for index, subject in enumerate(subjects)]


def begin() -> None:
    """Readies a process for rows: one thread, since rows are measured side by side."""
    best_device()
    cli.quiet()
    torch.set_num_threads(1)


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
        for kind, held_out in (("train", False), ("held_out", True)):
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


def measure(folder: Path, overrides: Sequence[str], seed: int, steps: int) -> dict[str, Any]:
    """Trains stage 2 with some settings for some steps; returns what is in the table, and the seconds it took.

    `modalities` holds for each the shares of rendered media with the right attributes, the `distance` to the media
    made from the text with the same noise (1: as far as those of other captions), and the figures of validation.
    """
    arrays = np.load(folder / _DATA, allow_pickle=False)
    with tempfile.TemporaryDirectory(prefix="bench-recipe-") as name, timed() as watch:
        with process_group(Path(name) / "group"):
            states: list[TrainState] = []
            trainer = _trainer(Path(name), overrides, seed, steps, arrays, states)
            trainer.run(_training_rows(arrays, seed, steps), _held_out_rows(arrays))
            found = {modality.value: _examined(trainer, modality, arrays) for modality in MODALITIES}
        for modality in MODALITIES:
            for figure in ("mean_ratio", "cosine", "denoising"):
                if (key := f"{modality}_{figure}") in states[-1].validation:
                    found[modality.value][figure] = states[-1].validation[key]
        parameters = dict(trainer.model.named_parameters())
    return {
        "overrides": list(overrides),
        "weights": sum(parameters[name].numel() for name in trainer.manifest),
        "modalities": found,
        "seconds": watch.seconds,
    }


def _trainer(
    run: Path, overrides: Sequence[str], seed: int, steps: int, arrays: Arrays, states: list[TrainState]
) -> Trainer:
    size = EACH * len(MODALITIES)
    sizes = (f"batch_size={size}", f"micro_batch_size={size}", f"max_steps={steps}", f"seed={seed}")
    settings = load_settings(2, PRESET, [*sizes, *overrides])
    captions = {modality: list(_captions(modality, arrays)) for modality in MODALITIES}
    variance = {m: mean_predictor_error(found, settings.loss.padding_weight) for m, found in captions.items()}
    job = Job(
        settings=settings,
        deepspeed=deepspeed_settings(settings),
        num_steps=steps,
        held_out_steps=EXAMINED // EACH,
        alignment_variance=variance,
        run=run / "run",
        init=None,
        history={},
        card={},
        caption_scale={modality: caption_scale(found) for modality, found in captions.items()},
    )
    rank = Rank(rank=0, world_size=1, device=best_device())
    return Trainer(job, rank, lambda _, state: states.append(state))


def _captions(modality: Modality, arrays: Arrays) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield tuple(torch.from_numpy(arrays[f"{modality}_train_{part}"]) for part in ("embeddings", "lengths"))  # type: ignore[misc]


def _training_rows(arrays: Arrays, seed: int, steps: int) -> Iterator[Row]:
    """As many pairs of each modality in each step, in an order of the seed, anew in each epoch."""
    per_epoch = PAIRS // EACH
    chosen = {modality: pairs(modality, held_out=False) for modality in MODALITIES}
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        for modality in MODALITIES:
            order = np.random.default_rng([seed, epoch, list(Modality).index(modality)]).permutation(PAIRS)
            for number in order[place * EACH : (place + 1) * EACH]:
                yield {"step": step, "micro": 0, **_row(modality, "train", int(number), chosen[modality], arrays)}


def _held_out_rows(arrays: Arrays) -> list[Row]:
    chosen = {modality: pairs(modality, held_out=True) for modality in MODALITIES}
    return [
        {"step": step, "micro": 0, **_row(modality, "held_out", step * EACH + place, chosen[modality], arrays)}
        for step in range(EXAMINED // EACH)
        for modality in MODALITIES
        for place in range(EACH)
    ]


def _row(modality: Modality, kind: str, number: int, chosen: Sequence[Pair], arrays: Arrays) -> dict[str, Any]:
    """A row of the hand-over, as a view that generates from captions gives it."""
    text, key = chosen[number].text, f"{modality}_{kind}"
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
    model, rows = trainer.model.eval(), [row for row in _held_out_rows(arrays) if row[modality.value] is not None]
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
    shares = {name: sum(found[name] for found in graded) / len(graded) for name in graded[0]}
    return shares | {"all": sum(all(found.values()) for found in graded) / len(graded)}
