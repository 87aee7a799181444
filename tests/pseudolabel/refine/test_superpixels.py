"""Superpixels: they keep to known cells and to edges of colour, and means within them are means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from torch import Tensor

from wsipipe.pseudolabel.refine.slic import pool_mean, superpixels


def halves(h: int, w: int, grain: float = 0.0) -> Tensor:
    """Pink and, from the middle on, purple, with grain: uint8 [3, h, w]."""
    rgb = np.empty((h, w, 3))
    rgb[:, : w // 2], rgb[:, w // 2 :] = (220, 160, 190), (150, 90, 165)
    rgb += np.random.default_rng(0).normal(0, 1, (h, w, 1)) * grain
    return torch.from_numpy(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)).movedim(-1, 0).contiguous()


def everywhere(h: int, w: int) -> Tensor:
    return torch.ones(h, w, dtype=torch.bool)


@pytest.mark.parametrize("side", [4.0, 6.5, 10.0])
def test_there_are_about_as_many_as_their_side_asks_for(side: float):
    got = superpixels(halves(60, 80, 5), everywhere(60, 80), side, 20)
    assert got.unique().tolist() == list(range(int(got.max()) + 1))
    assert 0.4 < got.unique().numel() / (60 * 80 / side**2) < 1.3


@pytest.mark.parametrize("grain", [0, 5])
def test_none_reaches_over_an_edge_of_colour(grain: float):
    got = superpixels(halves(40, 61, grain), everywhere(40, 61), 8, 10)
    left, right = got[:, :29], got[:, 31:]  # the cell at the edge itself is smoothed
    assert not set(left.unique().tolist()) & set(right.unique().tolist())


def test_high_compactness_makes_squares_where_low_follows_colour():
    def straddling(compactness: float) -> int:
        got = superpixels(halves(40, 56), everywhere(40, 56), 16, compactness)
        return len(set(got[:, :27].unique().tolist()) & set(got[:, 29:].unique().tolist()))

    assert straddling(1000) > 0
    assert straddling(20) == 0


def test_grain_does_not_melt_them_into_one():
    assert superpixels(halves(80, 80, 25), everywhere(80, 80), 10, 10).unique().numel() > 50


def test_what_is_not_known_is_in_none_and_changes_none():
    rgb, known = halves(40, 50, 8), everywhere(40, 50)
    known[10:25, 12:40] = False
    got = superpixels(rgb, known, 7, 10)
    assert ((got == -1) == ~known).all()
    assert got[known].unique().tolist() == list(range(int(got.max()) + 1))
    other = rgb.clone()
    other[:, ~known] = torch.tensor([[0], [250], [0]], dtype=torch.uint8)
    assert torch.equal(superpixels(other, known, 7, 10), got)


def test_where_nothing_is_known_there_is_none():
    assert (superpixels(halves(8, 9), torch.zeros(8, 9, dtype=torch.bool), 4, 10) == -1).all()


def test_a_map_smaller_than_a_superpixel_is_one():
    assert (superpixels(halves(3, 2), everywhere(3, 2), 40, 10) == 0).all()


@given(st.integers(0, 1000), st.integers(1, 12))
@examples(30)
def test_pooled_values_are_means_cell_by_cell(seed: int, count: int):
    rng = np.random.default_rng(seed)
    segments = rng.integers(-1, count, (7, 8))
    _, segments[segments >= 0] = np.unique(segments[segments >= 0], return_inverse=True)
    values = rng.random((3, 7, 8), np.float32)
    expected = values.copy()
    for s in range(segments.max() + 1):
        for c in range(3):
            expected[c][segments == s] = np.mean(values[c][segments == s], dtype=np.float64)
    got = pool_mean(torch.from_numpy(values), torch.from_numpy(segments))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(got[:, segments < 0], values[:, segments < 0])


def test_pooling_leaves_what_was_given_and_keeps_its_mean():
    values = torch.rand(2, 20, 24, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    got = pool_mean(values, superpixels(halves(20, 24), everywhere(20, 24), 5, 10))
    assert torch.equal(values, before)
    torch.testing.assert_close(got.mean((1, 2)), values.mean((1, 2)))
