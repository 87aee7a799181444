"""Overlays: classes in colour and outlined, everything else as it was, at the asked size."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, StoreError
from wsipipe.export.formats.overlay import OPACITY, write_overlay
from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.colours import GREY
from wsipipe.store.label_images import shard_windows
from wsipipe.store.layout import COLOURS

PINK = np.array([220, 150, 190], np.uint8)
GLASS = 255


def make_store(
    path: Path, size_px: tuple[int, int], masks: dict[str, NDArray[np.uint8]], rgb: NDArray[np.uint8]
) -> SlideStore:
    """A store with lossless pixels; every level is level 0 decimated."""
    grid = Grid(size_px, (0.5, 0.5), (1.0, 1.0), 16, 16)
    store = SlideStore.create(path, grid, 0, {"slide_id": path.stem, "pixel_digest": "p"})
    for level in range(grid.levels):
        array, f = store.pixels(level), 4**level
        height, width = array.spec.shape[-2:]
        chw = np.moveaxis(rgb[f // 2 :: f, f // 2 :: f][:height, :width], -1, 0)
        for shard, w in shard_windows(array.spec):
            array.write_region(shard, chw[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
    for name, mask in masks.items():
        shards = (
            (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
            for shard, w in shard_windows(store.pixels().spec)
        )
        store.write_labels(name, {0: "none", 1: "a", 2: "b", 255: "ignore"}, {"digest": "d"}, shards)
    return store


@pytest.fixture
def small(tmp_path: Path) -> SlideStore:
    """120 x 80 px: tissue but for the left 20 columns; class 1, class 2 and ignore as blocks, ignore on glass too."""
    tissue, mask = np.ones((80, 120), np.uint8), np.zeros((80, 120), np.uint8)
    tissue[:, :20] = 0
    mask[10:40, 30:60], mask[10:40, 70:110], mask[50:75, 30:60], mask[50:75, :15] = 1, 2, 255, 255
    rgb = np.where(tissue[..., None] == 1, PINK, np.uint8(GLASS)).astype(np.uint8)
    return make_store(tmp_path / "small.zarr", (120, 80), {"tissue": tissue, "net": mask}, rgb)


def blended(colour: tuple[float, ...]) -> NDArray[np.float64]:
    return np.asarray(PINK * (1 - OPACITY) + np.array(colour) * OPACITY)


def test_classes_are_blended_and_outlined(small: SlideStore, tmp_path: Path) -> None:
    path = write_overlay(small, "net", tmp_path / "figures" / "small.png")
    assert path == tmp_path / "figures" / "small.png"
    assert [p.name for p in path.parent.iterdir()] == ["small.png"]
    rgb = imagecodecs.imread(path)
    assert rgb.shape == (80, 120, 3)
    np.testing.assert_allclose(rgb[25, 45], blended(COLOURS[0]), atol=1)
    np.testing.assert_allclose(rgb[25, 90], blended(COLOURS[1]), atol=1)
    assert rgb[10, 45].tolist() == rgb[39, 45].tolist() == rgb[25, 30].tolist() == list(COLOURS[0])
    assert rgb[25, 70].tolist() == list(COLOURS[1])
    np.testing.assert_allclose(rgb[60, 45], blended(GREY), atol=1)
    np.testing.assert_allclose(rgb[50, 45], blended(GREY), atol=1)  # no outline round what is not known
    assert (rgb[45, 20:] == PINK).all()
    assert (rgb[:, :20] == GLASS).all()


def test_no_outline_along_the_border_of_the_picture(tmp_path: Path) -> None:
    ones = np.ones((40, 40), np.uint8)
    rgb = np.broadcast_to(PINK, (40, 40, 3)).copy()
    store = make_store(tmp_path / "full.zarr", (40, 40), {"tissue": ones, "net": ones}, rgb)
    found = imagecodecs.imread(write_overlay(store, "net", tmp_path / "o.png"))
    np.testing.assert_allclose(found.reshape(-1, 3), np.broadcast_to(blended(COLOURS[0]), (1600, 3)), atol=1)


def test_large_slides_are_averaged_down(tmp_path: Path) -> None:
    size = (1500, 1100)  # levels 0 and 1 (375 x 275)
    rgb = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    zeros = np.zeros((size[1], size[0]), np.uint8)
    store = make_store(tmp_path / "large.zarr", size, {"tissue": zeros, "net": zeros}, rgb)
    third = imagecodecs.imread(write_overlay(store, "net", tmp_path / "o.png", longest_px=500))
    expected = rgb[:1098].reshape(366, 3, 500, 3, 3).mean((1, 3))
    assert third.shape == (366, 500, 3)  # the last two rows are no whole pixel
    np.testing.assert_allclose(third, expected, atol=1)
    uneven = imagecodecs.imread(write_overlay(store, "net", tmp_path / "o.png", longest_px=700))  # 15/7 px each
    assert uneven.shape == (513, 700, 3)
    quarters = rgb[270:300, :300].repeat(7, axis=0).repeat(7, axis=1).reshape(14, 15, 140, 15, 3)
    np.testing.assert_allclose(uneven[126:140, :140], quarters.mean((1, 3)), atol=1)
    coarse = imagecodecs.imread(write_overlay(store, "net", tmp_path / "o.png", longest_px=375))
    np.testing.assert_array_equal(coarse, store.read(next(w for _, w in shard_windows(store.pixels(1).spec)), 1))


def test_glass_that_level_0_leaves_out_comes_from_the_coarse_level(tmp_path: Path) -> None:
    size = (1100, 600)
    grey = np.full((600, 1100, 3), 240, np.uint8)
    zeros = np.zeros((600, 1100), np.uint8)
    store = make_store(tmp_path / "glass.zarr", size, {"tissue": zeros, "net": zeros}, grey)
    array = store.pixels(0)
    kept = [c for c in array.spec.chunks_of_shard((0, 0)) if c in {(0, 1), (1, 1)}]
    array.write_blocks((0, 0), [(c, np.full((3, 256, 256), 100, np.uint8)) for c in kept])
    found = imagecodecs.imread(write_overlay(store, "net", tmp_path / "o.png", longest_px=500))
    dark = slice(round(256 / 2.2) + 1, round(512 / 2.2) - 1)
    assert (found[: round(512 / 2.2) - 1, dark] == 100).all()
    assert (found[:, : dark.start - 2] == 240).all()
    assert (found[:, dark.stop + 2 :] == 240).all()
    assert (found[round(512 / 2.2) + 1 :] == 240).all()


def test_errors(small: SlideStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no labels/gone; found net, tissue"):
        write_overlay(small, "gone", tmp_path / "o.png")
    with pytest.raises(ConfigError, match="overlay of 5 px: 16 at least"):
        write_overlay(small, "net", tmp_path / "o.png", longest_px=5)
    assert not (tmp_path / "o.png").exists()
