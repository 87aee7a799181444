"""Which levels are copied, where their chunks begin, and what bad tiles cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiffs import JpegKind, write_jpeg, write_tiles
from support.tilings import CONFIG

from wsipipe.errors import SlideError
from wsipipe.geometry import Grid, Window
from wsipipe.slides import Slide, SlideFile, open_slide
from wsipipe.slides.level import BadTile
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.levels import bad_windows, check_corrupt, chunk_px, is_copied, is_derived


def grid_of(slide: Slide, mpp: float, origin: tuple[int, int] = (0, 0)) -> Grid:
    return Grid.plan(slide.info.size_px0, slide.info.mpp0, slide.downsamples, mpp, (64, 64), origin)


@pytest.fixture(scope="module")
def slide(svs_path: Path) -> Slide:
    return open_slide(svs_path, "blob")


def test_native_jpeg_levels_are_copied_and_all_others_made(slide: Slide) -> None:
    native, coarse, between = (grid_of(slide, mpp) for mpp in (0.5, 2.0, 1.0))
    assert [is_copied(slide, native, CONFIG, k) for k in (0, 1)] == [True, True]
    assert is_copied(slide, coarse, CONFIG, 0)
    assert not is_copied(slide, between, CONFIG, 0)
    assert not is_copied(slide, native, replace(CONFIG, codec="zstd"), 0)
    assert not is_copied(slide, grid_of(slide, 0.5, (16, 16)), CONFIG, 0)


@pytest.mark.parametrize(("tile", "copied", "chunk"), [(240, True, 240), (512, True, 512), (1040, False, 256)])
def test_tiles_of_any_usual_size_are_copied(
    tmp_path: Path, tissue_rgb: tuple[Any, Any], tile: int, copied: bool, chunk: int
) -> None:
    path = write_jpeg(tmp_path / "a.svs", tissue_rgb[0], JpegKind("444"), tile)
    slide = open_slide(path, "a", 0.5)
    grid = grid_of(slide, 0.5)
    assert is_copied(slide, grid, CONFIG, 0) == copied
    assert chunk_px(slide, grid, CONFIG, 0) == chunk
    slide.close()


def test_tiles_of_other_codecs_are_not_copied_but_chunks_begin_with_them(
    tmp_path: Path, tissue_rgb: tuple[Any, Any]
) -> None:
    path = write_tiles(tmp_path / "a.tif", tissue_rgb[0], tile=240, compression="deflate")
    slide = open_slide(path, "a", 0.5)
    for mpp, side in ((0.5, 240), (1.0, 240), (0.7, 256)):
        assert not is_copied(slide, grid_of(slide, mpp), CONFIG, 0)
        assert chunk_px(slide, grid_of(slide, mpp), CONFIG, 0) == side
    slide.close()


def test_slides_without_tiles_have_the_usual_chunks(array_slide: Any, tissue_rgb: tuple[Any, Any]) -> None:
    slide = array_slide(tissue_rgb[0], (1, 4))
    assert not is_copied(slide, grid_of(slide, 0.5), CONFIG, 0)
    assert chunk_px(slide, grid_of(slide, 0.5), CONFIG, 0) == 256


@pytest.mark.parametrize(
    ("downsamples", "derived"),
    [
        ((1,), [False, False, True, True]),
        ((1, 4), [False, False, True, True]),
        ((1, 4, 16), [False] * 3 + [True]),
        ((1, 4, 16, 64), [False] * 4),
    ],
)
def test_levels_without_coarser_pixels_are_made_from_the_one_below(downsamples: Any, derived: list[bool]) -> None:
    slide = SimpleNamespace(downsamples=tuple(float(d) for d in downsamples))
    grid = Grid((100_000, 80_000), (0.5, 0.5), (1.0, 1.0), 256, 256)
    assert [is_derived(slide, grid, k) for k in range(4)] == derived


def test_windows_of_bad_tiles_hold_every_pixel_that_they_touch(slide: Slide) -> None:
    bad = {BadTile(0, 1, 2): "", BadTile(1, 0, 0): ""}
    assert bad_windows(slide, grid_of(slide, 0.5), bad) == [Window(512, 256, 256, 256), Window(0, 0, 1024, 1024)]
    assert bad_windows(slide, grid_of(slide, 1.0), bad) == [Window(256, 128, 128, 128), Window(0, 0, 512, 512)]
    assert bad_windows(slide, grid_of(slide, 0.5, (32, 16)), bad)[0] == Window(480, 240, 256, 256)
    assert bad_windows(slide, grid_of(slide, 0.7), bad)[0] == Window(365, 182, 184, 184)


def test_more_bad_than_allowed_fails_naming_the_first_and_the_option() -> None:
    job = TileJob("a", SlideFile(Path("a.svs")), replace(CONFIG, max_corrupt=0.1), Path("a.zarr"))
    why = {BadTile(0, 0, 0): "tile (0, 0) is missing", BadTile(0, 0, 1): "other"}
    bad = [Window(0, 0, 100, 50), Window(0, 0, 50, 100)]
    check_corrupt(job, bad, 100_000, why)
    check_corrupt(job, [], 0, {})
    message = r"a\.svs: 2 tiles cannot be read, 10% of the planned pixels \(limit 10%, see --max-corrupt\)"
    with pytest.raises(SlideError, match=message + "; first error: tile .0, 0. is missing"):
        check_corrupt(job, bad, 99_999, why)
    with pytest.raises(SlideError, match=r"100% of the planned pixels"):
        check_corrupt(job, bad, 1, why)
