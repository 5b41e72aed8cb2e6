"""Caption embeddings, against the text encoder as called by its pipeline: speed and numerical difference."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.sample import Modality
from tests.benchmarks import Row, compare, timed
from tests.benchmarks.text_encoders import draw_captions, load_encoders

if TYPE_CHECKING:
    from model.decoders.text_encoders import CaptionEncoder

REPEATS = 3
BATCH = 64
PADDED_BATCH = 1  # with captions padded to 512 positions; larger batches are slower on a CPU
CLIP_CAPTIONS, CLAP_CAPTIONS = 64, 16


def run(scale: float) -> list[Row]:
    """Measures a CLIP-L-shaped and a CLAP-shaped text encoder with random weights on captions of the tiny world."""
    with TemporaryDirectory() as folder, torch.inference_mode():
        return [
            _clip(Path(folder) / "clip", max(2, round(CLIP_CAPTIONS * scale))),
            _clap(Path(folder) / "clap", max(2, round(CLAP_CAPTIONS * scale))),
        ]


def _clip(folder: Path, count: int) -> Row:
    captions = draw_captions(Modality.IMAGE, count)
    exact, fast = load_encoders(Modality.IMAGE, folder, captions, ("float32", "bfloat16"))
    expected, found = exact(captions).embeddings, fast(captions).embeddings
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    cosine = ((expected * found).sum(axis=-1) / norms).min()
    ours, peer = compare(
        lambda: _rate(lambda batch: fast(batch), captions, BATCH),
        lambda: _rate(lambda batch: _as_the_pipeline(exact, batch), captions, BATCH),
        REPEATS,
    )
    note = f"bfloat16 against float32, both in arrival order; minimum cosine per position {cosine:.5f} (target 0.9999)"
    return Row(
        name="captions, CLIP-L", ours=ours, peer=peer, ratio=ours / peer, target=2.0, unit="captions/s", note=note
    )


def _clap(folder: Path, count: int) -> Row:
    captions = draw_captions(Modality.AUDIO, count)
    (encoder,) = load_encoders(Modality.AUDIO, folder, captions, ("float32",))
    padded = [_as_the_pipeline(encoder, batch) for batch in _batches(captions, PADDED_BATCH)]
    difference = np.abs(encoder(captions).embeddings - np.concatenate(padded)).max()
    ours, peer = compare(
        lambda: _rate(lambda batch: encoder(batch), captions, BATCH),
        lambda: _rate(lambda batch: _as_the_pipeline(encoder, batch), captions, PADDED_BATCH),
        REPEATS,
    )
    tokens = mean(map(len, encoder.tokenizer(captions).input_ids))
    words = mean(len(text.split()) for text in captions)
    note = (
        f"float32, batches of like length against padding to 512; {tokens:.1f} tokens, {words:.1f} words a caption; "
        f"largest difference {difference:.0e} (1e-4 allowed)"
    )
    return Row(
        name="captions, CLAP", ours=ours, peer=peer, ratio=ours / peer, target=30.0, unit="captions/s", note=note
    )


def _rate(encode: Callable[[list[str]], Any], captions: list[str], batch_size: int) -> float:
    with timed() as watch:
        for batch in _batches(captions, batch_size):
            encode(batch)
    return len(captions) / watch.seconds


def _batches(captions: list[str], size: int) -> list[list[str]]:
    return [captions[start : start + size] for start in range(0, len(captions), size)]


def _as_the_pipeline(encoder: "CaptionEncoder", captions: list[str]) -> Any:
    """The diffusion pipelines' way: every caption padded to the tokenizer's maximum length, in arrival order."""
    tokens = encoder.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    pooled = encoder.modality is Modality.AUDIO
    output = encoder.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask if pooled else None)
    if pooled:
        return torch.nn.functional.normalize(output.text_embeds, dim=-1)[:, None].numpy()
    return output.last_hidden_state.numpy()
