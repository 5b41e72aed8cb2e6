"""Patches are averaged over even cells of their grid."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.encoders.patches import pool_items, pool_patches
from model.parts.encoder_kinds import patch_bins


@pytest.mark.parametrize(
    ("grid", "patches", "bins"),
    [
        ((1, 16, 16), 64, (1, 8, 8)),
        ((1, 16, 16), 1, (1, 1, 1)),
        ((1, 16, 16), 256, (1, 16, 16)),
        ((1, 16, 16), 32, (1, 4, 8)),
        ((8, 16, 16), 64, (4, 4, 4)),
        ((1, 12, 19), 38, (1, 2, 19)),
        ((1, 2, 32), 64, (1, 2, 32)),
    ],
)
def test_cells_are_square_and_even_as_far_as_can_be(grid, patches, bins):
    assert patch_bins(grid, patches) == bins


def test_a_number_that_no_whole_bins_give_is_refused_with_one_that_they_do():
    with pytest.raises(ValueError, match=r"^37 patches cannot be made of 1x16x16; use 36$"):
        patch_bins((1, 16, 16), 37)


@given(st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 8)), st.data())
def test_bins_give_the_number_and_no_axis_has_more_than_there_is(grid, data):
    patches = prod(data.draw(st.integers(1, extent)) for extent in grid)
    bins = patch_bins(grid, patches)
    assert prod(bins) == patches
    assert all(number <= extent for number, extent in zip(bins, grid, strict=True))


def test_patches_are_the_means_of_their_cells_in_row_major_order():
    tokens = np.random.default_rng(0).standard_normal((4, 6, 8, 3)).astype(np.float32)
    pooled = pool_patches(torch.from_numpy(tokens), (2, 3, 2)).numpy()
    cells = tokens.reshape(2, 2, 3, 2, 2, 4, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(pooled, cells.reshape(12, 3), atol=1e-6)
    both = pool_items(torch.from_numpy(np.stack([tokens, tokens + 1])), (2, 3, 2)).numpy()
    np.testing.assert_allclose(both[1], pooled + 1, atol=1e-6)
