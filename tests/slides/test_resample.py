"""Windows at the working resolution agree with a slow, exact area mean."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.area import NEAR, Rgb, noise, shares
from support.examples import examples
from support.tiffs import JpegKind, expected, picture, place, tamper, write_jpeg

from wsipipe.geometry import Grid, Window
from wsipipe.slides import resample
from wsipipe.slides.base import SlideInfo
from wsipipe.slides.level import BadTile
from wsipipe.slides.readers.openslide import OpenSlideReader
from wsipipe.slides.resample import SlideView, source_level, steps_px
from wsipipe.slides.tiff.tiles import TiffTiles


def slow_mean(rgb: Rgb, grid: Grid, window: Window, factor: int = 1) -> NDArray[np.float64]:
    """Source pixels of level 0 weighted by the area that they share with each output pixel; white outside."""
    (x0, y0), (sx, sy) = grid.origin_px0, (s * factor for s in grid.scale)
    framed = np.pad(rgb.astype(float), ((0, 1), (0, 1), (0, 0)), constant_values=255.0)
    down = shares(y0 + window.y_px * sy, sy, window.height_px, rgb.shape[0])
    across = shares(x0 + window.x_px * sx, sx, window.width_px, rgb.shape[1])
    return np.einsum("ay,yxc,bx->abc", down, framed, across, optimize=True)


def assert_rounded(found: Rgb, mean: NDArray[np.float64]) -> None:
    """Within half a grey level."""
    assert found.dtype == np.uint8
    assert found.shape == mean.shape
    assert np.abs(found - mean).max() <= 0.5 + NEAR


def frame(rgb: Rgb, scale: tuple[float, float], origin: tuple[int, int] = (0, 0)) -> Grid:
    mpp = (0.5 * scale[0], 0.5 * scale[1])
    return Grid((rgb.shape[1], rgb.shape[0]), mpp, scale, 16, 16, origin)


SCALE = st.sampled_from((1.0, 2.0, 3.0, 4.0, 7.0, 16.0, 64.0, 1.3, 2.004, 7.9, 1.0002, 0.5 / 0.2527)) | st.floats(
    0.4, 64
)
AT = st.integers(-3, 40)


def spanning(size: tuple[int, int], steps_px: tuple[float, float], most_px: int) -> tuple[int, int]:
    """A size cut down to `most_px` level-0 px, `steps_px` of them to a pixel: far from the slide all is white."""
    width, height = (min(n, math.ceil(most_px / s)) for n, s in zip(size, steps_px, strict=True))
    return width, height


@examples(120)
@given(
    st.tuples(SCALE, SCALE),
    st.sampled_from((1, 1, 1, 2, 4, 16)),
    st.tuples(AT, AT),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 90), st.integers(0, 90)),
    st.tuples(st.integers(5, 260), st.integers(5, 260)),
)
def test_any_phase_scale_and_size_agrees_with_the_slow_mean(
    array_slide: Any,
    scale: Any,
    factor: int,
    at: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int],
    slide_size: tuple[int, int],
) -> None:
    rgb = noise(*slide_size)
    size = spanning(size, (scale[0] * factor, scale[1] * factor), 600)
    grid, window = frame(rgb, scale, origin), Window(*at, *size)
    assert_rounded(SlideView(array_slide(rgb), grid).read(window, factor), slow_mean(rgb, grid, window, factor))


@pytest.fixture(scope="module", params=[240, 256])
def svs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenSlideReader, Rgb]:
    """A slide of one level with tiles of 240 or 256 px that are decoded directly, and its pixels."""
    path = write_jpeg(tmp_path_factory.mktemp("svs") / "a.svs", picture(733, 601), tile=request.param)
    slide = OpenSlideReader(path, "a")
    assert slide.tiles(0)
    return slide, expected(path)


@examples(40)
@given(
    st.tuples(SCALE, SCALE),
    st.sampled_from((1, 1, 2, 4)),
    st.tuples(st.integers(-9, 60), st.integers(-9, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
def test_tiles_that_are_decoded_directly_agree_with_the_slow_mean(
    svs: tuple[OpenSlideReader, Rgb],
    scale: Any,
    factor: int,
    at: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int],
) -> None:
    slide, rgb = svs
    size = spanning(size, (scale[0] * factor, scale[1] * factor), 1500)
    grid, window = frame(rgb, scale, origin), Window(*at, *size)
    assert_rounded(SlideView(slide, grid).read(window, factor), slow_mean(rgb, grid, window, factor))


def test_a_finer_frame_repeats_source_pixels(array_slide: Any) -> None:
    rgb = noise(20, 20)
    found = SlideView(array_slide(rgb), frame(rgb, (0.5, 0.5))).read(Window(4, 6, 8, 8))
    np.testing.assert_array_equal(found, rgb[3:7, 2:6].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_native_level_is_read_as_it_is(array_slide: Any, level: int) -> None:
    slide = array_slide(noise(256, 192), (1, 2, 8))
    d = slide.downsamples[level]
    grid = Grid(slide.info.size_px0, (0.5 * d, 0.5 * d), (d, d), 16, 16)
    assert source_level(slide, grid) == level
    assert steps_px(slide, grid) == (1.0, 1.0)
    found = SlideView(slide, grid).read(Window(3, 2, 20, 15))
    np.testing.assert_array_equal(found, slide.levels[level][2:17, 3:23])
    assert slide.reads == [(20, 15)]


def test_the_frame_begins_at_its_origin(array_slide: Any) -> None:
    rgb = noise(300, 200)
    slide = array_slide(rgb, (1, 4))
    found = SlideView(slide, frame(rgb, (1.0, 1.0), (37, 11))).read(Window(5, 6, 50, 40))
    np.testing.assert_array_equal(found, rgb[17:57, 42:92])
    coarse = SlideView(slide, frame(rgb, (4.0, 4.0), (40, 8))).read(Window(5, 6, 20, 10))
    np.testing.assert_array_equal(coarse, slide.levels[1][8:18, 15:35])


def test_the_nearest_finer_level_is_the_source(array_slide: Any) -> None:
    slide = array_slide(noise(512, 512), (1, 4, 16))
    for scale, cost in ((3.9, 1), (4.0, 4), (15.0, 4), (20.0, 16)):
        slide.reads.clear()
        SlideView(slide, frame(slide.levels[0], (scale, scale))).read(Window(0, 0, 10, 10))
        assert slide.reads[0][0] == pytest.approx(10 * scale / cost, abs=1)
    assert slide.levels[0].shape == (512, 512, 3)


@examples(30)
@given(st.floats(0.3, 70), st.integers(0, 255), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_constant_stays_constant(array_slide: Any, scale: float, value: int, at: tuple[int, int]) -> None:
    rgb = np.full((700, 700, 3), value, np.uint8)
    assert (SlideView(array_slide(rgb), frame(rgb, (scale, scale))).read(Window(*at, 6, 6)) == value).all()


def test_beyond_the_border_is_white(array_slide: Any) -> None:
    rgb = np.zeros((40, 60, 3), np.uint8)
    found = SlideView(array_slide(rgb), frame(rgb, (2.0, 2.0))).read(Window(-5, -5, 50, 40))
    assert (found[5:25, 5:35] == 0).all()
    found[5:25, 5:35] = 255
    assert (found == 255).all()


@pytest.mark.parametrize("limit", [1, 300, 2000])
@pytest.mark.parametrize("scale", [(3.3, 2.7), (3.0, 2.0)])
def test_a_large_window_is_split_with_the_same_result(
    array_slide: Any, monkeypatch: pytest.MonkeyPatch, scale: tuple[float, float], limit: int
) -> None:
    slide = array_slide(noise(211, 173))
    grid, window = frame(slide.levels[0], scale), Window(-2, 1, 41, 60)
    whole = SlideView(slide, grid).read(window)
    slide.reads.clear()
    monkeypatch.setattr(resample, "MAX_SOURCE_PX", limit)
    np.testing.assert_array_equal(SlideView(slide, grid).read(window), whole)
    assert max(w * h for w, h in slide.reads) <= max(limit, 5 * 4)


# far from the origin


class Endless:
    """A slide of 400,000 px a side, each pixel a hash of its place."""

    id = "endless"
    downsamples = (1.0,)
    info = SlideInfo("memory", "test", "0", (400_000, 400_000), (0.25, 0.25), "slide", (0, 0, 400_000, 400_000))

    def level_size(self, level: int) -> tuple[int, int]:
        return self.info.size_px0

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> Rgb:
        x = np.arange(xy_px0[0], xy_px0[0] + size_level_px[0], dtype=np.uint64)[:, None]
        y = np.arange(xy_px0[1], xy_px0[1] + size_level_px[1], dtype=np.uint64)[:, None, None]
        mixed = (x * 2_654_435_761 + y * 40_503 + np.arange(3, dtype=np.uint64) * 97) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(56)).astype(np.uint8)

    def tiles(self, level: int) -> None:
        return None

    def tile_px(self, level: int) -> tuple[int, int]:
        return 256, 256

    def close(self) -> None:
        pass


@pytest.mark.parametrize("scale", [0.5 / 0.2527, 0.5 / 0.2425, 2.0, 1.0002, 3.7])
@pytest.mark.parametrize("at", [(100_000, 99_999), (99_744, 0)])
def test_nothing_drifts_far_from_the_origin(scale: float, at: tuple[int, int]) -> None:
    """The phase is measured: a shift by d px adds d / step times (what enters - what leaves) to each output pixel."""
    slide, n = Endless(), 128
    grid = Grid(slide.info.size_px0, (0.5, 0.5), (scale, scale), n, n)
    found = SlideView(slide, grid).read(Window(*at, n, n)).astype(float)
    low = [math.floor(a * scale) for a in at]
    high = [math.ceil((a + n) * scale) + 1 for a in at]
    source = slide.read((low[0], low[1]), 0, (high[0] - low[0], high[1] - low[1])).astype(float)
    down, across = (
        shares(a * scale - o, scale, n, h - o)[:, :-1] for a, o, h in zip(at[::-1], low[::-1], high[::-1], strict=True)
    )
    mean = np.einsum("ay,yxc,bx->abc", down, source, across, optimize=True)
    assert np.abs(found - mean).max() <= 0.5 + 1e-2
    edges = np.floor(at[0] * scale + np.arange(n + 1) * scale + 1e-9).astype(int) - low[0]
    rows = np.einsum("ay,yxc->axc", down, source)
    gain = (rows[:, edges[1:]] - rows[:, edges[:-1]]) / scale
    shift = ((found - mean) * gain).sum() / (gain**2).sum()
    assert abs(shift) < 1e-3


# decoding once


@pytest.mark.parametrize(("scale", "tile"), [(2.0, 256), (2.0, 240), (1.0, 256), (4.0, 256)])
def test_each_tile_under_a_shard_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, tile: int
) -> None:
    path = write_jpeg(tmp_path / "a.svs", picture(tile, tile), tile=tile)
    slide = OpenSlideReader(path, "a")
    tiles = slide.tiles(0)
    assert tiles
    side = int(16 * tile * scale)
    tiles.size_px, tiles.cols, tiles.rows = (side, side), side // tile, side // tile
    slide._sizes_px[0] = (side, side)
    decoded: dict[tuple[int, int], int] = {}
    flat = np.zeros((tile, tile, 3), np.uint8)

    def decode(_: TiffTiles, cell: tuple[int, int], shrink: int = 1) -> Rgb:
        decoded[cell] = decoded.get(cell, 0) + 1
        return flat

    monkeypatch.setattr(TiffTiles, "decode", decode)
    view = SlideView(slide, Grid((side, side), (0.5, 0.5), (scale, scale), tile, tile))
    for row in range(16):
        for col in range(16):
            view.read(Window(col * tile, row * tile, tile, tile))
    assert len(decoded) == tiles.cols * tiles.rows
    assert set(decoded.values()) == {1}


# bad tiles


def test_a_bad_tile_is_read_from_the_finer_level(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.svs", picture(1024, 768), tile=64, factors=(4,))
    truth, coarse = expected(path), expected(path, 2)
    tamper(path, 6, page=2, size=place(path, 6, 2)[1] // 2)  # tile (1, 2) of the coarse level
    slide = OpenSlideReader(path, "a")
    assert slide.tiles(1)
    grid = frame(truth, (4.0, 4.0))
    view = SlideView(slide, grid)
    window = Window(100, 50, 90, 90)
    assert_rounded(view.read(window), slow_mean(truth, grid, window))
    np.testing.assert_array_equal(view.read(Window(0, 0, 128, 192)), coarse[:, :128])
    assert view.bad == {}


@pytest.fixture(params=["direct", "openslide"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[OpenSlideReader, Rgb]:
    """A slide whose tile (1, 3) of level 0 is bad, and (0, 0) of level 1 over it; what is left of level 0."""
    path = write_jpeg(tmp_path / "a.svs", picture(512, 512), tile=64, factors=(4,))
    truth = expected(path)
    tamper(path, 11, size=9)
    tamper(path, 0, page=2, size=9)
    truth[64:128, 192:256] = 255
    slide = OpenSlideReader(path, "a")
    if request.param == "openslide":
        slide._tiles = {}
    return slide, truth


def test_a_tile_that_is_bad_on_all_levels_is_white_and_reported(damaged: tuple[OpenSlideReader, Rgb]) -> None:
    slide, truth = damaged
    grid = frame(truth, (4.0, 4.0))
    view = SlideView(slide, grid)
    assert_rounded(view.read(Window(0, 0, 64, 64)), slow_mean(truth, grid, Window(0, 0, 64, 64)))
    assert list(view.bad) == [BadTile(0, 1, 3)]
    words = (
        "its JPEG stream has no end marker" if slide.tiles(0) else "pixels at (192, 64) of level 0 cannot be decoded"
    )
    assert words in view.bad[BadTile(0, 1, 3)]
    other = SlideView(slide, grid)
    other.read(Window(64, 64, 64, 64))
    assert other.bad == {}


def test_views_in_several_threads_find_the_same_bad_tile(damaged: tuple[OpenSlideReader, Rgb]) -> None:
    slide, truth = damaged
    grid = frame(truth, (1.0, 1.0))
    windows = [Window(x, y, 64, 64) for y in range(0, 512, 64) for x in range(0, 512, 64)]

    def read(turn: int) -> tuple[list[BadTile], bool]:
        view = SlideView(slide, grid)
        right = True
        for w in windows[turn * 8 :] + windows[: turn * 8]:
            part = truth[w.y_px : w.y_px + 64, w.x_px : w.x_px + 64]
            right &= np.array_equal(view.read(w), part)
        return list(view.bad), right

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(8))) == [([BadTile(0, 1, 3)], True)] * 8


# shrinking while decoding


SLOPE = 0.4


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> OpenSlideReader:
    """Smooth content; in its lower half gradients that rise and fall, along x on the left and along y on the right."""
    rgb = picture(1024, 1024, grain=0)
    ramp = np.arange(512) * SLOPE
    rising = np.stack([np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512))])
    lower = np.stack([20 + rising, 0 * rising + 128, 230 - rising], -1)
    rgb[512:] = np.concatenate(lower, axis=1)
    return OpenSlideReader(write_jpeg(tmp_path_factory.mktemp("soft") / "a.svs", rgb, JpegKind("420")), "soft")


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0, 0.5 / 0.2527 * 2, 5.3])
def test_a_fast_read_is_near_the_area_mean_and_not_shifted(soft: OpenSlideReader, scale: float) -> None:
    grid = Grid((1024, 1024), (0.5 * scale, 0.5 * scale), (scale, scale), 64, 64)
    n = int(1024 // scale)
    window = Window(0, 0, n, n)
    fast, slow = SlideView(soft, grid, fast=True), SlideView(soft, grid)
    found, wanted = fast.read(window).astype(float), slow.read(window).astype(float)
    assert [shrink for _, shrink in fast._levels] == [max(s for s in (1, 2, 4, 8) if s <= scale)]
    assert 10 * np.log10(255**2 / np.mean((found - wanted)[: n // 2] ** 2)) > 35
    wrong, m = (found - wanted)[n // 2 + 4 : -4], n // 2
    for part in (wrong[:, 4 : m - 4], wrong[:, m + 4 : -4]):
        red, _, blue = part.mean((0, 1))
        assert abs(red - blue) / (2 * SLOPE) < 0.1  # level px; half a px of the shrunk level would be 1 or more


def test_a_fast_read_shrinks_nothing_where_output_and_source_agree(soft: OpenSlideReader) -> None:
    grid = Grid((1024, 1024), (0.5, 0.5), (1.9, 1.9), 64, 64)
    fast = SlideView(soft, grid, fast=True)
    np.testing.assert_array_equal(fast.read(Window(3, 4, 50, 50)), SlideView(soft, grid).read(Window(3, 4, 50, 50)))
