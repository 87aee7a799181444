"""labels/tissue holds, at every level, the coarse value at the centre of each pixel, and 255 where the slide is bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.layout import create_array
from wsipipe.store.shards import ArraySpec, ShardedArray
from wsipipe.store.tissue_levels import TissueLevels

FEW = examples(40)
Case = tuple[TissueLevels, tuple[int, int]]


def slow(tissue: TissueLevels, shape: tuple[int, int], level: int) -> NDArray[np.uint8]:
    """Pixel by pixel: the value whose square holds the centre; 255 if an invalid window touches the pixel at all."""
    f, (h, w) = LEVEL_FACTOR**level, tissue.values.shape
    out = np.zeros(shape, np.uint8)
    for y in range(shape[0]):
        for x in range(shape[1]):
            row, col = (y * f + f // 2) // tissue.step_px, (x * f + f // 2) // tissue.step_px
            out[y, x] = tissue.values[min(row, h - 1), min(col, w - 1)]
            for bad in tissue.invalid:
                beside = x * f >= bad.x_px + bad.width_px or (x + 1) * f <= bad.x_px
                if not beside and y * f < bad.y_px + bad.height_px and (y + 1) * f > bad.y_px:
                    out[y, x] = 255
    return out


def written(path: Path, tissue: TissueLevels, spec: ArraySpec, level: int) -> ShardedArray:
    array = create_array(path, spec, "yx")
    for shard, _ in shard_windows(spec):
        array.write_shard(shard, tissue.chunks(spec, level, shard))
    return ShardedArray(path)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A coarse mask of blocks, steps that divide no chunk, bad windows anywhere; the size in working px."""
    step = draw(st.integers(1, 40))
    height, width = draw(st.integers(1, 110)), draw(st.integers(1, 110))
    rows, cols = -(-height // step), -(-width // step)
    block = draw(st.sampled_from([1, 3, 100]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    coarse = rng.random((rows // block + 1, cols // block + 1)) < draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    values = np.kron(coarse, np.ones((block, block)))[:rows, :cols].astype(np.uint8)
    at, side = st.integers(-20, 130), st.integers(1, 60)
    invalid = draw(st.lists(st.builds(Window, at, at, side, side), max_size=3))
    return TissueLevels(values, step, invalid), (height, width)


ONES = np.ones((4, 5), np.uint8)


@FEW
@given(cases(), st.integers(0, 2), st.sampled_from([(16, 16), (16, 64), (24, 48)]))
@example((TissueLevels(ONES, 25), (100, 110)), 0, (16, 64))
@example((TissueLevels(ONES, 25, [Window(16, 16, 16, 16)]), (100, 110)), 0, (16, 64))  # all of one chunk
@example((TissueLevels(ONES * 0, 25, [Window(15, 15, 2, 2)]), (100, 110)), 0, (16, 64))  # a corner of four
@example((TissueLevels(ONES[:1, :1], 7), (100, 110)), 1, (16, 16))  # a mask that ends before the slide does
def test_every_level_is_what_going_pixel_by_pixel_gives(
    tmp_path_factory: pytest.TempPathFactory, case: Case, level: int, sides: Any
) -> None:
    tissue, size = case
    shape = tuple(-(-n // LEVEL_FACTOR**level) for n in size)
    spec = ArraySpec(shape, "uint8", 0, *sides)
    array = written(tmp_path_factory.mktemp("t") / "0", tissue, spec, level)
    expected = slow(tissue, shape, level)
    np.testing.assert_array_equal(array.read(Window(0, 0, shape[1], shape[0])), expected)
    for row, col in np.argwhere(~array.present()):
        n = spec.chunk_px
        assert not expected[row * n : (row + 1) * n, col * n : (col + 1) * n].any()


def test_glass_is_not_stored_and_a_flat_chunk_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[:, 2:] = 1  # chunks of 2 x 2 values: the first column glass, the others tissue
    spec = ArraySpec((64, 64), "uint8", 0, 16, 32)
    encoded = []
    plain = ArraySpec.encode
    monkeypatch.setattr(ArraySpec, "encode", lambda self, chunk: encoded.append(chunk) or plain(self, chunk))
    array = written(tmp_path / "0", TissueLevels(values, 8), spec, 0)
    assert array.present().tolist() == [[False, True, True, True]] * 4
    assert len(encoded) == 1


def test_a_store_keeps_it_at_all_levels_and_records_what_is_stored(tmp_path: Path) -> None:
    grid = Grid((1300, 700), (0.5, 0.5), (1.0, 1.0), 64, 64)
    store = SlideStore.create(tmp_path / "a.zarr", grid, 90, {"slide_id": "a", "pixel_digest": "p"})
    values = (np.random.default_rng(0).random((70, 130)) < 0.5).astype(np.uint8)
    values[:, :60] = 0
    tissue = TissueLevels(values, 10, [Window(900, 100, 100, 33)])
    store.write_tissue(tissue, {"digest": "d", "shares": {"pen": 0.5}})
    assert store.names("labels") == ["tissue"]
    found = store.attributes("labels", "tissue")
    assert (found["kind"], found["digest"], found["shares"]) == ("labels", "d", {"pen": 0.5})
    for level in range(grid.levels):
        array = store.labels("tissue", level)
        height, width = grid.level_shape(level)
        assert found["stored"][str(level)] == {"0.0": int(array.present().sum())}
        y, x = (np.random.default_rng(level).integers(0, n, 60) for n in (height, width))
        pixels = array.read(Window(0, 0, width, height))
        assert pixels.shape == (height, width)
        f = LEVEL_FACTOR**level
        centre_y, centre_x = y * f + f // 2, x * f + f // 2
        bad = (y * f < 133) & (y * f + f > 100) & (x * f < 1000) & (x * f + f > 900)
        nearest = values[np.minimum(centre_y // 10, 69), np.minimum(centre_x // 10, 129)]
        np.testing.assert_array_equal(pixels[y, x], np.where(bad, 255, nearest))


@pytest.mark.parametrize("cell", [8, 10, 15])
@pytest.mark.parametrize("size", [(300, 200), (301, 217)])
def test_tissue_grid_agrees_with_counting_pixels(tmp_path: Path, cell: int, size: tuple[int, int]) -> None:
    grid = Grid(size, (0.5, 0.5), (1.0, 1.0), 64, 64)
    store = SlideStore.create(tmp_path / "a.zarr", grid, 0, {"slide_id": "a", "pixel_digest": "p"})
    mask = (np.random.default_rng(0).random((size[1], size[0])) < 0.4).astype(np.uint8)
    mask[:50, :70] = 255
    store.write_tissue(TissueLevels((mask == 1).astype(np.uint8), 1, [Window(0, 0, 70, 50)]), {})
    np.testing.assert_array_equal(store.labels("tissue").read(Window(0, 0, *store.grid.size_px)), mask)
    found = store.tissue_grid(cell)
    rows, cols = -(-size[1] // cell), -(-size[0] // cell)
    padded = np.zeros((rows * cell, cols * cell))
    padded[: size[1], : size[0]] = mask == 1
    np.testing.assert_allclose(found, padded.reshape(rows, cell, cols, cell).mean((1, 3)), atol=1e-6)


@pytest.mark.parametrize("cell", [16, 32, 50, 64])
def test_tissue_grid_from_a_coarser_level_is_close(tiled: Path, cell: int) -> None:
    store = SlideStore(tiled)
    mask = store.labels("tissue").read(Window(0, 0, *store.grid.size_px)) == 1
    rows, cols = -(-900 // cell), -(-1200 // cell)
    padded = np.zeros((rows * cell, cols * cell))
    padded[:900, :1200] = mask
    expected = padded.reshape(rows, cell, cols, cell).mean((1, 3))
    found = store.tissue_grid(cell)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert found.max() <= 1
    assert np.abs(found - expected).max() < 0.2
    assert np.abs(found - expected).mean() < 0.03
