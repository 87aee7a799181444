"""The plan: patches with tissue are kept, and every chunk that they or their margin touch will exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.geometry import Grid, Window
from wsipipe.store import CORRUPT, NOT_STORED, USABLE, PatchTable
from wsipipe.tiling.plan import plan_chunks, plan_patches, with_status
from wsipipe.tissue.detect import TissueMask


def grid_of(size: tuple[int, int], patch: int, stride: int) -> Grid:
    return Grid(size, (0.5, 0.5), (1.0, 1.0), patch, stride)


def table_of(grid: Grid, share: float, seed: int) -> PatchTable:
    rng = np.random.default_rng(seed)
    cells = np.array([(r, c) for r, c, _ in grid.windows() if rng.random() < share], np.int32).reshape(-1, 2)
    return PatchTable(grid, cells, np.ones(len(cells), np.float32), np.zeros(len(cells), np.uint8))


@examples(40)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(8, 90),
    st.floats(0.3, 1),
    st.floats(0, 0.3),
    st.integers(0, 99),
)
def test_chunks_cover_kept_patches_and_a_margin_and_nothing_far(
    size: Any, patch: int, part: float, share: float, seed: int
) -> None:
    grid = grid_of(size, patch, max(1, int(patch * part)))
    table = table_of(grid, share, seed)
    planned = plan_chunks(table, 16)
    width, height = size
    need = np.zeros((height, width), bool)
    for w in table.windows:
        y1, x1 = max(0, w.y_px - patch), max(0, w.x_px - patch)
        need[y1 : w.y_px + 2 * patch, x1 : w.x_px + 2 * patch] = True
    rows, cols = -(-height // 16), -(-width // 16)
    expected = [[need[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16].any() for c in range(cols)] for r in range(rows)]
    np.testing.assert_array_equal(planned, expected)


def test_a_kept_patch_that_reaches_over_the_border_needs_only_chunks_that_exist() -> None:
    grid = grid_of((100, 70), 64, 64)
    table = PatchTable(grid, np.array([[1, 1]], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8))
    planned = plan_chunks(table, 32)
    assert planned.shape == (3, 4)
    assert planned.all()


def status_of(table: PatchTable, stored: np.ndarray, tissue: np.ndarray, bad: tuple[Window, ...] = ()) -> list[int]:
    return with_status(table, stored, 16, TissueMask(tissue.astype(np.uint8), 8), bad).status.tolist()


@examples(40)
@given(
    st.tuples(st.integers(20, 200), st.integers(20, 200)),
    st.integers(8, 60),
    st.integers(0, 99),
    st.lists(st.builds(Window, *[st.integers(-40, 200)] * 2, *[st.integers(1, 90)] * 2), max_size=3),
)
def test_status_by_looking_at_every_pixel(size: Any, patch: int, seed: int, bad: list[Window]) -> None:
    grid, rng = grid_of(size, patch, patch), np.random.default_rng(seed)
    table = table_of(grid, 0.7, seed)
    width, height = size
    tissue = rng.random((-(-height // 8), -(-width // 8))) < 0.1
    stored = rng.random((-(-height // 16), -(-width // 16))) < 0.7
    lacks = np.zeros((-(-height // 16), -(-width // 16)), bool)
    for r, c in np.argwhere(~stored):
        lacks[r, c] = tissue[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].any()
    expected = []
    for w in (grid.window(*cell) for cell in table.cell.tolist()):
        y2, x2 = min(w.y_px + patch, height), min(w.x_px + patch, width)
        lacking = lacks[w.y_px // 16 : -(-y2 // 16), w.x_px // 16 : -(-x2 // 16)].any()
        corrupt = any(
            max(w.x_px, b.x_px) < min(w.x_px + patch, b.x_px + b.width_px)
            and max(w.y_px, b.y_px) < min(w.y_px + patch, b.y_px + b.height_px)
            for b in bad
        )
        expected.append(CORRUPT if corrupt else NOT_STORED if lacking else USABLE)
    assert status_of(table, stored, tissue, tuple(bad)) == expected


def test_a_patch_needs_only_the_tissue_that_it_touches() -> None:
    grid = grid_of((64, 64), 32, 32)
    cells = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    table = PatchTable(grid, cells, np.ones(4, np.float32), np.zeros(4, np.uint8))
    stored, tissue = np.ones((4, 4), bool), np.zeros((8, 8), bool)
    stored[0, 2], stored[3, 3], tissue[0:4, 2:4] = False, False, True
    assert status_of(table, stored, tissue) == [USABLE, USABLE, USABLE, USABLE]  # what lacks is glass
    tissue[0, 5] = True
    assert status_of(table, stored, tissue) == [USABLE, NOT_STORED, USABLE, USABLE]
    assert status_of(table, stored, tissue, (Window(31, 31, 1, 1),)) == [CORRUPT, NOT_STORED, USABLE, USABLE]


@pytest.mark.parametrize("min_tissue", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("stride", [32, 20])
def test_kept_patches_are_those_with_enough_tissue_and_never_bare_glass(min_tissue: float, stride: int) -> None:
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


def test_no_tissue_keeps_nothing() -> None:
    table = plan_patches(grid_of((400, 320), 32, 32), TissueMask(np.zeros((40, 50), bool), 8), 0.0)
    assert (len(table.cell), table.cell.shape[1], table.windows) == (0, 2, [])
    assert not plan_chunks(table, 16).any()
