"""The instance grid: crops are what a slow reader would cut, cells are where tissue and patches are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.textures import tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel import instance_grid as module
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops, shrunk
from wsipipe.store import SlideStore


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 300 x 220 px of tissue, kept without loss."""
    paths = tiled_pictures(tmp_path_factory.mktemp("plain"), {"plain": tissue((300, 220))}, patch_px=64)
    return SlideStore(paths["plain"])


def slow_shrunk(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    out = np.zeros((rgb.shape[0] // factor, rgb.shape[1] // factor, 3), np.uint8)
    for y, x, c in np.ndindex(out.shape):
        total = sum(int(rgb[y * factor + j, x * factor + i, c]) for j in range(factor) for i in range(factor))
        out[y, x, c] = (2 * total + factor**2) // (2 * factor**2)  # halves are rounded up
    return out


def slow_crop(
    store: SlideStore, xy: tuple[int, int], instance_grid: InstanceGrid, bounds: Window | None
) -> NDArray[np.uint8]:
    """One crop, read by itself."""
    corner = [v - (instance_grid.seen_px - instance_grid.instance_px) // 2 for v in xy]
    if bounds is not None:
        sizes = (bounds.width_px, bounds.height_px)
        for axis, (low, size) in enumerate(zip((bounds.x_px, bounds.y_px), sizes, strict=True)):
            step = instance_grid.shrink
            while corner[axis] + instance_grid.seen_px > low + size:
                corner[axis] -= step
            while corner[axis] < low:
                corner[axis] += step
    seen = store.read(Window(corner[0], corner[1], instance_grid.seen_px, instance_grid.seen_px))
    return slow_shrunk(seen, instance_grid.shrink).transpose(2, 0, 1)


def assert_crops(
    store: SlideStore, xy: list[tuple[int, int]], instance_grid: InstanceGrid, bounds: Window | None = None
) -> None:
    got = read_crops(store, np.array(xy, np.int32).reshape(-1, 2), instance_grid, bounds)
    assert got.dtype == np.uint8
    assert got.shape == (len(xy), 3, instance_grid.input_px, instance_grid.input_px)
    for crop, at in zip(got, xy, strict=True):
        np.testing.assert_array_equal(crop, slow_crop(store, at, instance_grid, bounds), err_msg=str(at))


GRIDS = [
    InstanceGrid(16, 16, 1),
    InstanceGrid(16, 32, 1),
    InstanceGrid(16, 32, 2),
    InstanceGrid(32, 32, 4),
    InstanceGrid(9, 27, 3),
]


@pytest.mark.parametrize("instance_grid", GRIDS, ids=str)
def test_crops_equal_a_slow_reader_over_the_whole_slide_and_its_borders(plain: SlideStore, instance_grid: InstanceGrid):
    m = instance_grid.instance_px
    assert_crops(plain, [(x, y) for y in range(0, 220, m) for x in range(0, 300, m)][::3], instance_grid)


@pytest.mark.parametrize("block_px", [16, 50, 100])
@pytest.mark.parametrize("instance_grid", GRIDS[1:4], ids=str)
def test_crops_do_not_depend_on_the_blocks_that_they_are_cut_from(
    plain: SlideStore, instance_grid: InstanceGrid, block_px: int, monkeypatch: pytest.MonkeyPatch
):
    xy = [(x, y) for y in range(-32, 256, 32) for x in range(-32, 320, 32)]
    whole = read_crops(plain, np.array(xy, np.int32), instance_grid)
    monkeypatch.setattr(module, "BLOCK_PX", block_px)
    np.testing.assert_array_equal(read_crops(plain, np.array(xy, np.int32), instance_grid), whole)


@given(st.data())
def test_crops_of_a_region_equal_a_slow_reader_and_stay_inside_it(plain: SlideStore, data: st.DataObject):
    instance_grid = data.draw(st.sampled_from(GRIDS))
    m = instance_grid.instance_px
    x0, y0 = data.draw(st.integers(0, 150)), data.draw(st.integers(0, 100))
    cols, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    spare_x, spare_y = data.draw(st.integers(0, m - 1)), data.draw(st.integers(0, m - 1))
    bounds = Window(x0, y0, cols * m + spare_x, rows * m + spare_y)
    cells = data.draw(st.lists(st.tuples(st.integers(0, cols - 1), st.integers(0, rows - 1)), min_size=1, max_size=4))
    if min(bounds.width_px, bounds.height_px) >= instance_grid.seen_px:
        assert_crops(plain, [(x0 + c * m, y0 + r * m) for c, r in cells], instance_grid, bounds)
    else:
        assert len(read_crops(plain, np.array([[x0, y0]], np.int32), instance_grid, bounds)) == 1


@pytest.mark.parametrize(
    "instance_grid", [InstanceGrid(16, 32, 2), InstanceGrid(9, 27, 3), InstanceGrid(32, 32, 4)], ids=str
)
@pytest.mark.parametrize("spare", range(5))
def test_crops_pushed_inwards_stay_on_the_raster_of_the_others(
    plain: SlideStore, instance_grid: InstanceGrid, spare: int
):
    m = instance_grid.instance_px
    bounds = Window(31, 22, 4 * m + spare, 4 * m + spare)
    xy = [(31 + c * m, 22 + r * m) for r in (0, 3) for c in range(4)]
    assert_crops(plain, xy, instance_grid, bounds)
    for at in xy:  # a crop read alone is the same crop
        assert_crops(plain, [at], instance_grid, bounds)


def test_no_pixel_beside_a_region_is_seen(plain: SlideStore):
    """The outer squares of a patch look inwards."""
    instance_grid, bounds = InstanceGrid(16, 32, 2), Window(64, 64, 64, 64)
    xy = np.array([(x, y) for y in range(64, 128, 16) for x in range(64, 128, 16)], np.int32)
    got = read_crops(plain, xy, instance_grid, bounds)
    np.testing.assert_array_equal(got[0], slow_crop(plain, (72, 72), instance_grid, None))
    np.testing.assert_array_equal(got[15], slow_crop(plain, (104, 104), instance_grid, None))


def test_a_region_smaller_than_what_is_seen_is_read_from_its_corner(plain: SlideStore):
    instance_grid = InstanceGrid(16, 48, 1)
    got = read_crops(plain, np.array([[70, 50], [86, 50]], np.int32), instance_grid, Window(70, 50, 32, 32))
    for crop in got:
        np.testing.assert_array_equal(crop.transpose(1, 2, 0), plain.read(Window(70, 50, 48, 48)))


def test_no_instance_gives_no_crop(plain: SlideStore):
    assert read_crops(plain, np.zeros((0, 2), np.int32), GRIDS[0]).shape == (0, 3, 16, 16)


def test_splitting_a_patch_and_putting_it_together_is_the_identity(plain: SlideStore):
    """Instance k is row k // 4, column k % 4."""
    xy = np.array([(64 + k % 4 * 16, 128 + k // 4 * 16) for k in range(16)], np.int32)
    crops = read_crops(plain, xy, InstanceGrid(16, 16, 1), Window(64, 128, 64, 64))
    together = crops.reshape(4, 4, 3, 16, 16).transpose(0, 3, 1, 4, 2).reshape(64, 64, 3)
    np.testing.assert_array_equal(together, plain.read(Window(64, 128, 64, 64)))


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_shrinking_equals_loops_and_drops_what_does_not_fill_a_square(factor: int):
    rgb = np.random.default_rng(factor).integers(0, 256, (17, 23, 3), np.uint8)
    np.testing.assert_array_equal(shrunk(rgb, factor), slow_shrunk(rgb, factor))


@given(st.integers(0, 255), st.integers(1, 8))
def test_shrinking_keeps_a_constant(value: int, factor: int):
    assert np.unique(shrunk(np.full((16, 16, 3), value, np.uint8), factor)).tolist() == [value]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((4, 4, 1), "at least 8 px"),
        ((16, 8, 1), "seen as 8 px"),
        ((16, 17, 1), "seen as 17 px"),
        ((16, 32, 3), "both sizes by shrink"),
        ((18, 36, 4), "both sizes by shrink"),
        ((16, 24, 8), "the context on each side, 4 px, does not divide by shrink 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes: tuple[int, int, int], text: str):
    with pytest.raises(ConfigError, match=text):
        InstanceGrid(*sizes)


@pytest.fixture
def island(tile_pictures: Callable[..., dict[str, Path]]) -> SlideStore:
    """Tissue in the middle of glass."""
    rgb = np.full((260, 340, 3), 243, np.uint8)
    rgb[61:230, 75:300] = tissue((225, 169))
    return SlideStore(tile_pictures({"island": rgb}, patch_px=64, min_tissue=0.1)["island"])


def slow_cells(store: SlideStore, m: int, min_tissue: float) -> list[list[int]]:
    width, height = store.grid.size_px
    mask = store.labels("tissue").read(Window(0, 0, width, height)) == 1
    windows = store.patches().windows
    cells = []
    for row in range(-(-height // m)):
        for col in range(-(-width // m)):
            x, y = col * m, row * m
            inside = any(
                w.x_px < x + m and x < w.x_px + w.width_px and w.y_px < y + m and y < w.y_px + w.height_px
                for w in windows
            )
            if inside and mask[y : y + m, x : x + m].sum() / m**2 >= min_tissue:
                cells.append([row, col])
    return cells


@pytest.mark.parametrize("m", [16, 32, 64])
@pytest.mark.parametrize("min_tissue", [0.0, 0.5, 1.0])
def test_cells_are_those_with_enough_tissue_inside_patches_row_by_row(island: SlideStore, m: int, min_tissue: float):
    got = InstanceGrid(m, m, 1).cells(island, min_tissue)
    assert got.dtype == np.int32
    assert got.tolist() == slow_cells(island, m, min_tissue)
    assert len(got)


def test_more_tissue_asked_for_means_fewer_cells(island: SlideStore):
    counts = [len(InstanceGrid(16, 16, 1).cells(island, t)) for t in (0.0, 0.3, 0.6, 1.0)]
    assert all(a >= b for a, b in pairwise(counts))
    assert counts[0] > counts[-1] > 0


def slow_overlapping(store: SlideStore, m: int, min_tissue: float, overlap: int) -> list[list[int]]:
    width, height = store.grid.size_px
    step = m // overlap
    mask = np.zeros((height + m, width + m), bool)
    mask[:height, :width] = store.labels("tissue").read(Window(0, 0, width, height)) == 1
    windows = store.patches().windows
    found = []
    for row in range(-(-height // step)):
        for col in range(-(-width // step)):
            x, y = col * step, row * step
            touches = any(
                w.x_px < x + m and x < w.x_px + w.width_px and w.y_px < y + m and y < w.y_px + w.height_px
                for w in windows
            )
            if touches and mask[y : y + m, x : x + m].mean() >= min_tissue:
                found.append([row, col])
    return found


@pytest.mark.parametrize(("m", "overlap"), [(16, 1), (32, 2), (32, 4), (48, 3)])
def test_overlapping_instances_are_those_of_a_slow_search(island: SlideStore, m: int, overlap: int):
    got = InstanceGrid(m, m, 1).overlapping(island, 0.5, overlap)
    assert got.dtype == np.int32
    assert got.tolist() == slow_overlapping(island, m, 0.5, overlap)
    assert len(got)


def test_cells_of_an_unusable_patch_are_left_out(island: SlideStore):
    table = island.patches()
    status = np.zeros_like(table.status)
    status[3] = 1
    shutil.rmtree(island.path / "patches" / "64_64")
    island.write_patches(replace(table, status=status))
    row, col = table.cell[3].tolist()
    cells = InstanceGrid(16, 16, 1).cells(island, 0.0).tolist()
    assert cells == slow_cells(island, 16, 0.0)
    assert not [c for c in cells if c[0] // 4 == row and c[1] // 4 == col]


def test_a_slide_without_tissue_has_no_cells(tile_pictures: Callable[..., dict[str, Path]]):
    paths = tile_pictures({"glass": np.full((130, 130, 3), 243, np.uint8)}, patch_px=64)
    assert InstanceGrid(16, 16, 1).cells(SlideStore(paths["glass"]), 0.5).shape == (0, 2)
