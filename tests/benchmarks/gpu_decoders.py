"""Seconds per medium for decoders of the released shapes, in each precision, one at a time and in batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.parts.config import DecoderSettings
from pipelines.sample import Modality
from tests.benchmarks import in_a_process_of_its_own, say, table_head, table_row, timed
from tests.benchmarks.decoder_shapes import PUBLISHED, DecoderShape, write_decoder
from tests.benchmarks.gpu_memory import gibibytes, reset_peak, wait_for
from tests.benchmarks.text_encoders import draw_captions
from tests.benchmarks.training import held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """Decoders and batch sizes to measure; `settings` override the decoders' defaults."""

    shapes: Mapping[Modality, DecoderShape]
    batches: Mapping[Modality, Sequence[int]]
    precisions: Sequence[str] = ("float32", "float16")
    settings: Mapping[Modality, Mapping[str, Any]]


FULL = DecoderSizes(
    shapes=PUBLISHED,
    # A float32 video takes 20 s on an H100, and batching two saves nothing.
    batches={Modality.IMAGE: (1, 8), Modality.VIDEO: (1,), Modality.AUDIO: (1, 8)},
    settings={},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """Seconds to load and to render a batch, bytes of weights, peak bytes, and whether all values were finite."""

    load: float
    render: float
    weights: int
    peak: int
    finite: bool


def lines(folder: Path, device: str, sizes: DecoderSizes) -> Iterator[str]:
    """The lines of the table, as they are measured."""
    yield from table_head(
        ["decoder", "medium", "precision", "batch", "s a medium", "weights", "peak memory", "s to load"]
    )
    for modality, shape in sizes.shapes.items():
        place = decoder_folder(folder, modality, shape, device)
        settings = dict(sizes.settings.get(modality, {}))
        for precision in sizes.precisions:
            for count in sizes.batches[modality]:
                say(f"gpu: {modality} decoder, {precision}, batch of {count}")
                found = in_a_process_of_its_own(_measure, modality, place, precision, count, device, settings)
                cells = [
                    str(modality),
                    _medium(modality, place, settings),
                    precision,
                    str(count),
                    *_cells(found, count),
                ]
                yield table_row(cells)


def decoder_folder(folder: Path, modality: Modality, shape: DecoderShape, device: str) -> Path:
    """The folder of a decoder with random weights, written if absent."""
    place = folder / f"{modality}-decoder"
    if not place.is_dir():
        say(f"gpu: drawing the {modality} decoder")
        # Its weights are freed when the process ends.
        in_a_process_of_its_own(write_decoder, modality, shape, place, device)
    return place


def _medium(modality: Modality, place: Path, settings: Mapping[str, Any]) -> str:
    from model.parts.families import default_settings

    found = {**default_settings(modality, str(place)), **settings}
    steps = f"{found.get('steps', found['num_inference_steps'])} steps"
    if modality is Modality.AUDIO:
        return f"{found['audio_length_in_s']:g} s, {steps}"
    frames = f"{found['num_frames']} x " if modality is Modality.VIDEO else ""
    return f"{frames}{found['width']} x {found['height']}, {steps}"


def _cells(found: _Figures | None, count: int) -> list[str]:
    if found is None:
        return ["", "", "out of memory", ""]
    seconds = f"{found.render / count:.3g}" + ("" if found.finite else " (not finite)")
    return [seconds, gibibytes(found.weights), gibibytes(found.peak), f"{found.load:.1f}"]


def _measure(
    modality: Modality, place: Path, precision: Any, count: int, device: str, settings: dict[str, Any]
) -> _Figures | None:
    """Renders one batch, after a warm-up of two steps; None if it does not fit into device memory."""
    from model.decoders.decoder import Decoder, NotFinite

    try:
        with timed() as load:
            decoder = Decoder(modality, str(place), device, DecoderSettings(precision=precision))
            wait_for(device)
        weights = held_bytes()[0]
        conditions = decoder.embed(draw_captions(modality, count))
        with suppress(NotFinite):  # reported below
            decoder.generate_batch(conditions, range(count), **{**settings, "steps": 2})
        reset_peak(device)
        finite = True
        with timed() as render:
            try:
                decoder.generate_batch(conditions, range(count), **settings)
            except NotFinite:
                finite = False
        peak = held_bytes()[1]
        return _Figures(load=load.seconds, render=render.seconds, weights=weights, peak=peak, finite=finite)
    except torch.OutOfMemoryError:
        return None
