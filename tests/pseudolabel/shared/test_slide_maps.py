"""Maps of a whole slide: windows cover it, and their maps are averaged with weights that fade at their edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.textures import tiled_pictures, tissue

from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.shared import slide_maps as module
from wsipipe.pseudolabel.shared.slide_maps import slide_maps, tent, window_corners
from wsipipe.pseudolabel.shared.windows import read_tissue
from wsipipe.store import SlideStore

GRID = InstanceGrid(8, 64, 2)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue, glass in its right third, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 110:] = 243
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


def context_of(store: SlideStore) -> ScoreContext:
    return ScoreContext(store, GRID, torch.device("cpu"))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000))
def test_windows_cover_every_known_cell_stay_inside_and_hold_a_known_cell_each(
    rows: int, cols: int, side: int, seed: int
):
    known = np.random.default_rng(seed).random((rows, cols)) < 0.3
    covered = np.zeros_like(known)
    corners = window_corners(known, side)
    for r, c in corners.tolist():
        assert 0 <= r <= max(0, rows - side)
        assert 0 <= c <= max(0, cols - side)
        assert known[r : r + side, c : c + side].any()
        covered[r : r + side, c : c + side] = True
    assert (covered | ~known).all()
    assert len({tuple(c) for c in corners.tolist()}) == len(corners)


@pytest.mark.parametrize("side", [2, 8, 16])
def test_windows_that_overlap_by_half_weigh_the_same_together_everywhere(side: int):
    total = np.zeros((4 * side, 4 * side))
    for r, c in itertools.product(range(0, 3 * side + 1, side // 2), repeat=2):
        total[r : r + side, c : c + side] += tent(side)
    inner = total[side // 2 : -side // 2, side // 2 : -side // 2]
    np.testing.assert_array_equal(inner, (side // 2 + 1) ** 2)
    assert tent(side).min() == 1
    assert tent(3).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_map_of_a_slide_is_the_weighted_mean_of_the_maps_of_its_windows_written_out(
    slide: SlideStore, channels: int
):
    def maps_of(rgb: torch.Tensor, tissue: torch.Tensor, excluded: torch.Tensor | None = None) -> torch.Tensor:
        return F.avg_pool2d(rgb.float() / 255 * tissue[:, None], 8)[:, :channels]

    got = slide_maps(context_of(slide), 0.5, channels, maps_of)
    known = {tuple(c) for c in GRID.cells(slide, 0.5).tolist()}
    values: dict[tuple[int, int], list[np.ndarray]] = {}
    weights: dict[tuple[int, int], list[int]] = {}
    fading = [1, 2, 3, 4, 4, 3, 2, 1]
    for top, left in itertools.product((0, 32), (0, 32, 64, 96)):
        xy = np.array([(left + 28, top + 28)], np.int32)
        maps = maps_of(*(torch.from_numpy(f(slide, xy, GRID)) for f in (read_crops, read_tissue)))
        large = F.interpolate(maps, size=(8, 8), mode="bilinear")[0].numpy()
        for i, j in np.ndindex(8, 8):
            values.setdefault((top // 8 + i, left // 8 + j), []).append(large[:, i, j])
            weights.setdefault((top // 8 + i, left // 8 + j), []).append(fading[i] * fading[j])
    assert got.shape == (channels, 12, 20)
    for r, c in np.ndindex(12, 20):
        if (r, c) in known:
            np.testing.assert_allclose(got[:, r, c], np.average(values[r, c], 0, weights[r, c]), rtol=1e-5)
        else:
            assert np.isnan(got[:, r, c]).all()
    assert 0 < len(known) < 240


def test_neither_the_order_of_windows_nor_how_many_go_together_changes_the_map_of_a_slide(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    together = []

    def maps_of(rgb: torch.Tensor, tissue: torch.Tensor, excluded: torch.Tensor | None = None) -> torch.Tensor:
        together.append(len(rgb))
        return F.avg_pool2d(rgb.float() / 255, 8)

    at_once = slide_maps(context_of(slide), 0.5, 3, maps_of)
    (count,) = together
    monkeypatch.setattr(module, "WINDOWS_PER_CALL", 3)
    in_threes = slide_maps(context_of(slide), 0.5, 3, maps_of)
    assert together[1:] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)
    monkeypatch.setattr(module, "window_corners", lambda known, side: window_corners(known, side)[::-1])
    backwards = slide_maps(context_of(slide), 0.5, 3, maps_of)
    assert len(together) > 4, "neither is one call"
    np.testing.assert_allclose(in_threes, at_once, rtol=1e-6)
    np.testing.assert_allclose(backwards, at_once, rtol=1e-5)


def test_maps_that_are_all_alike_are_the_map_of_the_slide_however_windows_overlap(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    alike = torch.tensor([0.25, -3.0]).view(1, 2, 1, 1)
    monkeypatch.setattr(module, "WINDOWS_PER_CALL", 3)
    got = slide_maps(context_of(slide), 0.5, 2, lambda rgb, tissue, excluded: alike.expand(len(rgb), 2, 4, 4))
    known = np.zeros((12, 20), bool)
    known[tuple(GRID.cells(slide, 0.5).T)] = True
    np.testing.assert_allclose(got[:, known].T, np.broadcast_to([0.25, -3.0], (known.sum(), 2)), rtol=1e-6)
    assert np.isnan(got[:, ~known]).all()
