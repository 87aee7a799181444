"""The picture to check by: what is where, at which size, and what its legend counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsipipe.geometry import Grid, Window
from wsipipe.store import PatchTable
from wsipipe.tiling import qc_image
from wsipipe.tiling.qc_image import CORRUPT, PATCH_LINE, TINTS, TISSUE_LINE, write_qc_image
from wsipipe.tissue.detect import TissueMask
from wsipipe.tissue.overview import OverviewKind

_, TISSUE, PEN, BLUR, BLACK = OverviewKind
STEP_PX = 16
GREY = 200


def overview() -> tuple[NDArray[np.uint8], TissueMask]:
    """100 x 80 px: columns of tissue, pen, blur and black beside glass, 20 px each."""
    kind = np.zeros((80, 100), np.uint8)
    for i, value in enumerate((TISSUE, PEN, BLUR, BLACK)):
        kind[:, 20 * i : 20 * (i + 1)] = value
    return np.full((80, 100, 3), GREY, np.uint8), TissueMask(kind, STEP_PX)


def table(patch_px: int = 160, usable: bool = True) -> PatchTable:
    """Two rows of two patches at the top left."""
    grid = Grid((1600, 1280), (0.5, 0.5), (1.0, 1.0), patch_px, patch_px)
    cell = np.array([(0, 0), (0, 1), (1, 0), (1, 1)], np.int32)
    return PatchTable(grid, cell, np.ones(4, np.float32), np.full(4, 0 if usable else 1, np.uint8))


def drawn(path: Path, *args: object) -> NDArray[np.int64]:
    write_qc_image(path, *args)  # type: ignore[arg-type]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def close(pixel: NDArray[np.int64], colour: tuple[int, int, int], opacity: float = 1.0) -> bool:
    return bool(np.abs(pixel - (np.array(colour) * opacity + GREY * (1 - opacity))).max() <= 2)


def test_everything_has_its_colour_in_its_place(tmp_path: Path) -> None:
    rgb, tissue = overview()
    found = drawn(tmp_path / "a.png", rgb, STEP_PX, tissue, table(), [Window(1440, 1120, 160, 160)])
    assert found.shape[1] == 1600  # 16 pixels of the picture for one of the overview: one for a working pixel
    assert close(found[500, 100], (GREY,) * 3)
    assert close(found[500, 319], TISSUE_LINE)
    for i, value in enumerate((PEN, BLUR, BLACK)):
        assert close(found[700, 320 * (i + 1) + 160], *TINTS[value])
    assert close(found[600, 1400], (GREY,) * 3)
    assert close(found[1200, 1500], CORRUPT)
    assert close(found[80, 160], PATCH_LINE, 150 / 255)
    assert close(found[400, 160], (GREY,) * 3)
    assert (found[1290:] == 255).mean() > 0.8


def test_excluded_patches_are_red(tmp_path: Path) -> None:
    rgb, tissue = overview()
    found = drawn(tmp_path / "a.png", rgb, STEP_PX, tissue, table(usable=False), [])
    assert close(found[80, 160], CORRUPT, 150 / 255)


def test_small_patches_share_one_outline(tmp_path: Path) -> None:
    rgb, glass = np.full((800, 1600, 3), GREY, np.uint8), TissueMask(np.zeros((50, 100), np.uint8), STEP_PX)
    found = drawn(tmp_path / "a.png", rgb, 1, glass, table(5), [])
    assert close(found[3, 10], PATCH_LINE)
    assert close(found[3, 5], (GREY,) * 3)  # where two of them touch


@pytest.mark.parametrize("shape", [(3000, 5000), (900, 1601), (1, 1), (7, 4000), (799, 30)])
def test_the_longer_side_is_bounded(tmp_path: Path, shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), GREY, np.uint8)
    grid = Grid((shape[1] * 4, shape[0] * 4), (0.5, 0.5), (1.0, 1.0), 64, 64)
    none = PatchTable(grid, np.zeros((0, 2), np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8))
    tissue = TissueMask(np.zeros((-(-shape[0] // 4), -(-shape[1] // 4)), np.uint8), 16, "nothing darker than glass")
    found = drawn(tmp_path / "a.png", rgb, 4, tissue, none, [])
    assert max(found.shape[1], 800) <= 1600
    assert found.shape[0] <= 1600 + 200


def test_the_legend_counts_what_is_there() -> None:
    _, tissue = overview()
    texts = [text for _, text in qc_image._entries(tissue, table(usable=False), [Window(0, 0, 9, 9)])]
    assert texts == [
        "tissue 0.102 mm2",  # 1600 pixels of 8 um
        "patches of 160 px: 0",
        "pen 33.3%",
        "out of focus 33.3%",
        "black 0.102 mm2",
        "unreadable tiles: 1, patches excluded: 4",
    ]
    only = TissueMask(np.full((80, 100), TISSUE, np.uint8), STEP_PX)
    assert len(qc_image._entries(only, table(), [])) == 2


@pytest.mark.parametrize(
    ("length", "bar"), [(1.0, 1), (1.9, 1), (4.99, 2), (5, 5), (999, 500), (1000, 1000), (0.3, 0.2)]
)
def test_the_scale_bar_is_a_round_length(length: float, bar: float) -> None:
    assert qc_image._round_length(length) == pytest.approx(bar)
