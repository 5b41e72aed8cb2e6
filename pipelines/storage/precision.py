"""How embeddings are stored: as float32, float16, or int8 with one scale per vector; and the loss of precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("float32", "float16", "int8")
INT8_MAX = 127
_FLOAT16_OVERFLOW = 65520.0  # from here on, the nearest is infinity


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
    """Embeddings (N, ..., D) as they are kept, and what that costs; raises as `check` does."""
    stored, errors, cosines = store_each(embeddings, dtype, name)
    if not len(errors):
        return stored, Loss()
    return stored, Loss(max_error=float(errors.max()), min_cosine=float(cosines.min()))


def store_each(
    embeddings: npt.NDArray[Any], dtype: str, name: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Embeddings (N, ..., D) as they are kept, and of each the largest error (N,) and the lowest cosine (N,).

    Raises:
        ValueError: as `check` does.
    """
    check(embeddings, dtype, name)
    stored = _quantised(embeddings) if dtype == "int8" else embeddings.astype(dtype)
    if dtype == embeddings.dtype:
        return stored, np.zeros(len(embeddings)), np.ones(len(embeddings))
    return stored, *losses(embeddings, restore(stored))


def check(embeddings: npt.NDArray[Any], dtype: str, name: str) -> None:
    """Checks that embeddings can be kept.

    Raises:
        ValueError: some are not finite, or not in this type; `name` says whose they are.
    """
    most = _FLOAT16_OVERFLOW if dtype == "float16" else np.inf
    # Not a number is no more below anything than above it.
    if not (np.abs(embeddings) < most).all():
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


def losses(exact: npt.NDArray[Any], kept: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of embeddings (N, ..., D) and what is kept of them, each one's largest error (N,) and lowest cosine (N,)."""
    a, b = exact.astype(np.float64), kept.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # Equal vectors, so zeros as well, are in no doubt; a vector that was lost to zeros has a cosine of 0.
    cosines = np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosines[(a == b).all(-1)] = 1.0
    axes = tuple(range(1, a.ndim))
    return np.abs(a - b).max(axes, initial=0.0), np.minimum(cosines.min(axes[:-1], initial=1.0), 1.0)
