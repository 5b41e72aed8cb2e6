"""Storage of embeddings: what comes back is near what went in, and how near is told."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.storage.precision import DTYPES, Loss, record_type, restore, store
from pipelines.storage.sidecars import from_npy, to_npy

NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
EMBEDDINGS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=NUMBERS)


@given(EMBEDDINGS, st.sampled_from(DTYPES))
def test_the_error_told_is_that_of_what_a_sidecar_gives_back(embeddings: npt.NDArray[Any], dtype: str) -> None:
    stored, loss = store(embeddings, dtype, "it")
    assert (stored.dtype, stored.shape) == (np.zeros(0, record_type(dtype, embeddings.shape[1:])).dtype, stored.shape)
    back = from_npy(to_npy(stored))
    assert back.shape == embeddings.shape
    assert np.abs(back.astype(np.float64) - embeddings).max() == pytest.approx(loss.max_error, abs=1e-12)
    assert 0 <= loss.min_cosine <= 1 + 1e-12
    if dtype == "float32":
        assert loss == Loss()
        assert back.tobytes() == embeddings.tobytes()


@given(EMBEDDINGS)
def test_int8_is_off_by_half_a_step_of_its_vector_at_most(embeddings: npt.NDArray[Any]) -> None:
    back = restore(store(embeddings, "int8", "it")[0])
    step = np.abs(embeddings).max(-1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(back - embeddings.astype(np.float64)) <= 0.5 * step * (1 + 1e-5) + 1e-40).all()


def test_int8_holds_a_scale_and_a_byte_a_number() -> None:
    stored, _ = store(np.ones((2, 77, 1024), np.float32), "int8", "it")
    assert stored.nbytes == 2 * 77 * (4 + 1024)
    assert stored.shape == (2, 77)


def test_directions_survive_int8_as_far_as_they_must() -> None:
    embeddings = np.random.default_rng(0).standard_normal((64, 77, 64), np.float32)
    assert store(embeddings, "int8", "it")[1].min_cosine > 0.9999


def test_a_vector_lost_to_zeros_is_told() -> None:
    assert store(np.full((1, 4), 1e-9, np.float32), "float16", "it")[1].min_cosine == 0.0


def test_no_embeddings_cost_nothing() -> None:
    for dtype in DTYPES:
        assert store(np.zeros((0, 3, 2), np.float32), dtype, "it")[1] == Loss()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"^it: gave embeddings that are not finite as {dtype}"):
        store(np.array([[1.0, bad]], np.float32), dtype, "it")
