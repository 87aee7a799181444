"""The plan: patches with tissue are kept, and every chunk that they or their margin touch will exist."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsipipe.geometry import Grid
from wsipipe.slides.tissue import TissueMask
from wsipipe.store import PatchTable
from wsipipe.tiling.plan import plan_chunks, plan_patches


def grid_of(size: tuple[int, int], patch: int, stride: int) -> Grid:
    return Grid(size, (0.5, 0.5), (1.0, 1.0), patch, stride)


def table_of(grid: Grid, share: float, seed: int) -> PatchTable:
    rng = np.random.default_rng(seed)
    cells = np.array([(r, c) for r, c, _ in grid.windows() if rng.random() < share], np.int32).reshape(-1, 2)
    return PatchTable(grid, cells, np.ones(len(cells), np.float32), np.zeros(len(cells), np.uint8))


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(8, 90),
    st.floats(0.3, 1),
    st.floats(0, 0.3),
    st.integers(0, 99),
)
def test_chunks_cover_kept_patches_and_a_margin_and_nothing_far(size, patch: int, part: float, share: float, seed: int):
    grid = grid_of(size, patch, max(1, int(patch * part)))
    table = table_of(grid, share, seed)
    planned = plan_chunks(table, 16, 64)
    width, height = size
    need = np.zeros((height, width), bool)
    for w in table.windows:
        y1, x1 = max(0, w.y_px - patch), max(0, w.x_px - patch)
        need[y1 : w.y_px + 2 * patch, x1 : w.x_px + 2 * patch] = True
    rows, cols = -(-height // 16), -(-width // 16)
    expected = {
        (r, c) for r in range(rows) for c in range(cols) if need[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16].any()
    }
    listed = [cell for cells in planned.values() for cell in cells]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    for shard, cells in planned.items():
        assert cells == sorted(cells)
        assert {(r // 4, c // 4) for r, c in cells} == {shard}


def test_patches_that_are_not_usable_need_no_pixels():
    grid = grid_of((256, 256), 64, 64)
    table = PatchTable(grid, np.array([[0, 0]], np.int32), np.ones(1, np.float32), np.ones(1, np.uint8))
    assert plan_chunks(table, 16, 64) == {}


@pytest.mark.parametrize("min_tissue", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("stride", [32, 20])
def test_kept_patches_are_those_with_enough_tissue_and_never_bare_glass(min_tissue: float, stride: int):
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 50), bool)
    mask[10:30, 12:40] = rng.random((20, 28)) < 0.6
    mask[12:24, 16:32] = True
    fine = np.pad(mask.repeat(8, 0).repeat(8, 1), ((0, 64), (0, 64)))
    grid = grid_of((400, 320), 32, stride)
    table = plan_patches(grid, TissueMask(mask, 8), min_tissue)
    expected = {}
    for r, c, w in grid.windows():
        share = fine[w.y_px : w.y_px + 32, w.x_px : w.x_px + 32].mean()
        if share >= min_tissue and share > 0:
            expected[r, c] = share
    found = dict(zip(map(tuple, table.cell.tolist()), table.tissue.tolist(), strict=True))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6)
    assert (table.status == 0).all()
    assert len(found) > 0


def test_no_tissue_keeps_nothing():
    table = plan_patches(grid_of((400, 320), 32, 32), TissueMask(np.zeros((40, 50), bool), 8), 0.0)
    assert (len(table.cell), table.cell.shape[1], table.windows) == (0, 2, [])
    assert plan_chunks(table, 16, 64) == {}
