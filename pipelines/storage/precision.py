"""How embeddings are stored: as float32, float16, or int8 with one scale per vector; and the loss of precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("float32", "float16", "int8")
INT8_MAX = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The loss against float32: the largest absolute error of a value, and the lowest cosine of a vector."""

    max_error: float = 0.0
    min_cosine: float = 1.0

    def worse(self, other: "Loss") -> "Loss":
        """The worse of two losses in each figure."""
        return Loss(max_error=max(self.max_error, other.max_error), min_cosine=min(self.min_cosine, other.min_cosine))


def record_type(dtype: str, shape: Sequence[int]) -> np.dtype[Any]:
    """The NumPy type of a stored embedding of `shape` (..., D); in int8 a vector has a scale and D values."""
    if dtype != "int8":
        return np.dtype((dtype, tuple(shape)))
    vector = np.dtype([("scale", "<f4"), ("values", "i1", (shape[-1],))]) if shape else np.dtype("<f4")
    return np.dtype((vector, tuple(shape[:-1])))


def shape_of(record: np.dtype[Any]) -> tuple[int, ...]:
    """The `shape` that a type of `record_type` was made for."""
    vector, shape = record.subdtype or (record, ())
    return (*shape, *vector["values"].shape) if vector.names else shape


def store(embeddings: npt.NDArray[Any], dtype: str, name: str) -> tuple[npt.NDArray[Any], Loss]:
    """Converts embeddings (N, ..., D) to their stored form; also returns the loss.

    Raises:
        ValueError: some are not finite, or not in this type; `name` says whose they are.
    """
    if np.isfinite(embeddings).all():
        with np.errstate(over="ignore"):  # said below, in words
            stored = _quantised(embeddings) if dtype == "int8" else embeddings.astype(dtype)
        kept = restore(stored)
        if np.isfinite(kept).all():
            return stored, Loss() if dtype == embeddings.dtype else _loss(embeddings, kept)
    raise ValueError(
        f"{name}: gave embeddings that are not finite as {dtype}; check its weights, or store them as float32"
    )


def restore(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Converts stored embeddings to floating point: int8 to float32; other types are unchanged."""
    if stored.dtype.names is None:
        return stored
    return stored["values"].astype(np.float32) * stored["scale"][..., None]


def _quantised(embeddings: npt.NDArray[Any]) -> npt.NDArray[Any]:
    stored = np.zeros(len(embeddings), record_type("int8", embeddings.shape[1:]))
    scale = (np.abs(embeddings).max(-1) / INT8_MAX).astype(np.float32)
    stored["scale"] = scale
    # A vector of zeros, or of values whose scale underflows in float32, is stored as zeros.
    with np.errstate(invalid="ignore"):
        steps = np.divide(embeddings, scale[..., None], out=np.zeros_like(embeddings), where=scale[..., None] > 0)
        stored["values"] = np.clip(np.rint(steps), -INT8_MAX, INT8_MAX)
    return stored


def _loss(exact: npt.NDArray[Any], kept: npt.NDArray[Any]) -> Loss:
    if not exact.size:
        return Loss()
    a, b = exact.astype(np.float64), kept.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # Equal vectors, so zeros as well, are in no doubt; a vector that was lost to zeros has a cosine of 0.
    cosines = np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosines[(a == b).all(-1)] = 1.0
    return Loss(max_error=float(np.abs(a - b).max()), min_cosine=min(1.0, float(cosines.min())))
