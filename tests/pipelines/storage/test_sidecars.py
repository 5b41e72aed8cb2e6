"""Sidecars' files: arrays survive, pickles are refused, a folder tells what it holds."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dataset_cases import pair, task, write_dataset, write_sidecar
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.storage.sidecars import ENCODER, SidecarManifest, find_sidecars, from_npy, needs, sidecar_folder, to_npy

SHAPES = arrays.array_shapes(min_dims=1, min_side=0, max_side=4)


@given(st.one_of([arrays.arrays(kind, SHAPES) for kind in (np.float32, np.float16)]))
def test_an_array_survives_the_round_trip(array: npt.NDArray[Any]) -> None:
    read = from_npy(to_npy(array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    assert to_npy(read) == to_npy(array.copy())


def test_a_pickle_is_neither_written_nor_read() -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="pickle"):
        to_npy(objects)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        from_npy(buffer.getvalue())


def test_the_sidecars_of_a_kind_are_found_by_encoder(tmp_path: Path) -> None:
    directory = tmp_path / "pictures"
    dataset = write_dataset(directory, [pair("a"), pair("b")], 8)
    assert find_sidecars(directory, "image") == {}
    first = write_sidecar(directory, task("image", encoder_id="image-0")).manifest
    second = write_sidecar(directory, task("image", encoder_id="image-1")).manifest
    features = write_sidecar(directory, task(ENCODER, encoder_id="encoder-0")).manifest
    assert find_sidecars(directory, "image") == {"image-0": first, "image-1": second}
    assert find_sidecars(directory, ENCODER) == {"encoder-0": features}
    assert find_sidecars(directory, "audio") == {}
    assert SidecarManifest.read(sidecar_folder(directory, "image-0")) == first
    assert [needs(dataset, kind) for kind in ("image", "video", ENCODER)] == [2, 0, 2]
