"""Boxes of a level: equal to the whole level, each tile decoded once, and exactly the bad tiles reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from support.tiffs import expected, halved, overwrite, picture, place, tamper, write_jpeg, write_tiles

from wsipipe.errors import SlideError
from wsipipe.slides import level as level_module
from wsipipe.slides.level import BadTile, LevelPixels
from wsipipe.slides.readers import openslide
from wsipipe.slides.readers.openslide import OpenSlideReader
from wsipipe.slides.readers.tiff import TiffReader
from wsipipe.slides.tiff.tiles import TiffTiles

RGB = picture(300, 260)
Slides = dict[str, tuple[Any, np.ndarray]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Slides:
    """Slides of 300 x 260 px per way of reading their pixels, and these pixels."""
    folder = tmp_path_factory.mktemp("levels")
    svs = write_jpeg(folder / "a.svs", RGB, tile=64)
    tiled = write_tiles(folder / "b.tif", RGB, 64, compression="zlib")
    tifffile.imwrite(folder / "c.tif", RGB, photometric="rgb", rowsperstrip=23)
    direct, openslide = OpenSlideReader(svs, "direct"), OpenSlideReader(svs, "openslide")
    openslide._tiles = {}
    made = {
        "direct": (direct, expected(svs)),
        "openslide": (openslide, expected(svs)),
        "deflate": (TiffReader(tiled, "deflate"), RGB),
        "strips": (TiffReader(folder / "c.tif", "strips", (0.5, 0.5)), RGB),
    }
    assert [bool(s.tiles(0)) for s, _ in made.values()] == [True, False, True, True]
    return made


def cut(rgb: np.ndarray, box_px: tuple[int, int, int, int]) -> np.ndarray:
    """A box of a picture, white outside."""
    x, y, w, h = box_px
    y2, x2 = (np.clip(np.arange(a, a + n), -1, size) for a, n, size in ((y, h, rgb.shape[0]), (x, w, rgb.shape[1])))
    framed = np.pad(rgb, ((0, 1), (0, 1), (0, 0)), constant_values=255)
    return framed[np.ix_(np.where(y2 < 0, rgb.shape[0], y2), np.where(x2 < 0, rgb.shape[1], x2))]


PLACE, SIDE = st.integers(-90, 400), st.integers(1, 150)


@given(st.sampled_from(("direct", "openslide", "deflate", "strips")), PLACE, PLACE, SIDE, SIDE)
def test_any_box_equals_that_part_of_the_level(slides: Slides, name: str, x: int, y: int, w: int, h: int) -> None:
    slide, rgb = slides[name]
    found, bad = LevelPixels(slide, 0).read((x, y, w, h))
    assert (found.dtype, bad) == (np.uint8, {})
    np.testing.assert_array_equal(found, cut(rgb, (x, y, w, h)))


@pytest.mark.parametrize(
    "box", [(310, 0, 50, 50), (0, 270, 50, 50), (-60, 10, 50, 50), (10, -60, 50, 50), (299, 259, 1, 1)]
)
@pytest.mark.parametrize("name", ["direct", "openslide", "deflate", "strips"])
def test_the_padding_of_the_last_tiles_is_not_part_of_the_slide(
    slides: Slides, name: str, box: tuple[int, int, int, int]
) -> None:
    slide, rgb = slides[name]
    np.testing.assert_array_equal(LevelPixels(slide, 0).read(box)[0], cut(rgb, box))


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_shrunk_level_has_its_own_pixels(slides: Slides, shrink: int) -> None:
    slide, rgb = slides["direct"]
    pixels = LevelPixels(slide, 0, shrink)
    box = (3, 5, 300 // shrink - 3, 260 // shrink - 5)
    found, bad = pixels.read(box)
    assert not bad
    assert np.abs(found.astype(int) - cut(halved(rgb, shrink), box)).mean() < 4
    beyond = pixels.read((-(-300 // shrink), 0, 9, 9))[0]
    assert (beyond == 255).all()


def test_a_cached_tile_is_decoded_once_and_the_cache_is_bounded(
    slides: Slides, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, _ = slides["direct"]
    decoded = []
    decode = TiffTiles.decode
    monkeypatch.setattr(TiffTiles, "decode", lambda t, cell, shrink: decoded.append(cell) or decode(t, cell, shrink))
    pixels = LevelPixels(slide, 0)
    for y in range(0, 260, 20):
        for x in range(0, 300, 20):
            pixels.read((x, y, 20, 20))
    assert sorted(decoded) == [(row, col) for row in range(5) for col in range(5)]
    monkeypatch.setattr(level_module, "CACHE_BYTES", 0)
    pixels = LevelPixels(slide, 0)
    decoded.clear()
    pixels.read((0, 0, 300, 260))
    pixels.read((64, 256, 236, 4))
    assert len(decoded) == 25
    pixels.read((0, 0, 10, 10))
    assert decoded[25:] == [(0, 0)]


# bad tiles

BROKEN = (1, 2)
PLAIN = picture(256, 256, seed=3)


@pytest.mark.parametrize("overlap", [0, 1])
def test_only_tiles_that_adjacent_boxes_need_are_cached(
    slides: Slides, monkeypatch: pytest.MonkeyPatch, overlap: int
) -> None:
    decoded = []
    decode = TiffTiles.decode
    monkeypatch.setattr(
        TiffTiles, "decode", lambda self, cell, shrink: decoded.append(cell) or decode(self, cell, shrink)
    )
    slide, rgb = slides["direct"]
    pixels = LevelPixels(slide, 0)
    most = 0
    for y in range(0, 256, 128):
        for x in range(0, 256, 128):
            box = (x - overlap, y - overlap, 128 + overlap, 128 + overlap)
            np.testing.assert_array_equal(pixels.read(box, overlap)[0], cut(rgb, box))
            most = max(most, len(pixels._cache))
    assert sorted(decoded) == sorted(set(decoded))
    assert (most > 0) == (overlap > 0)


def shorten(path: Path, page: int = 0) -> None:
    tamper(path, 6, page, size=place(path, 6, page)[1] // 2)


def garble(path: Path, page: int = 0) -> None:
    overwrite(path, place(path, 6, page)[0], bytes(100))


def lift(path: Path, page: int = 0) -> None:
    tamper(path, 6, page, size=2**31)


def opened(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> OpenSlideReader:
    with monkeypatch.context() as patch:
        if way == "openslide":
            patch.setattr(openslide, "pyramid_tiles", lambda *_: {})
        slide = OpenSlideReader(path, "a")
    assert bool(slide.tiles(0)) == (way == "direct")
    return slide


@pytest.mark.parametrize("way", ["direct", "openslide"])
@pytest.mark.parametrize("damage", [shorten, garble, lift])
def test_one_bad_tile_of_sixteen_is_one_bad_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, way: str
) -> None:
    path = write_jpeg(tmp_path / "a.svs", PLAIN, tile=64)
    truth = expected(path)
    damage(path)
    slide = opened(path, way, monkeypatch)
    truth[64:128, 128:192] = 255
    found, bad = LevelPixels(slide, 0).read((-10, -10, 300, 300))
    np.testing.assert_array_equal(found, cut(truth, (-10, -10, 300, 300)))
    assert list(bad) == [BadTile(0, *BROKEN)]
    assert str(path) in bad[BadTile(0, *BROKEN)]
    pixels = LevelPixels(slide, 0)
    for y in range(0, 256, 32):
        for x in range(0, 256, 32):
            found, bad = pixels.read((x, y, 32, 32))
            np.testing.assert_array_equal(found, truth[y : y + 32, x : x + 32])
            assert list(bad) == ([BadTile(0, *BROKEN)] if (y // 64, x // 64) == BROKEN else [])
    slide.close()


def test_a_missing_tile_is_bad(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.svs", PLAIN, tile=64)
    tamper(path, 6, offset=0, size=0)
    bad = LevelPixels(OpenSlideReader(path, "a"), 0).read((0, 0, 256, 256))[1]
    assert list(bad) == [BadTile(0, *BROKEN)]
    assert bad[BadTile(0, *BROKEN)].endswith("tile (1, 2) is missing: the file has no bytes for it")


@pytest.mark.parametrize("way", ["direct", "openslide"])
def test_a_bad_tile_is_tried_once_while_it_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    path = write_jpeg(tmp_path / "a.svs", PLAIN, tile=64)
    garble(path)
    slide = opened(path, way, monkeypatch)
    tried: list[object] = []
    decode = LevelPixels._decode
    monkeypatch.setattr(LevelPixels, "_decode", lambda p, row, col: tried.append((row, col)) or decode(p, row, col))
    pixels = LevelPixels(slide, 0)
    for _ in range(3):
        assert pixels.read((130, 70, 20, 20))[1]
    assert tried == [BROKEN]
    slide.close()


def test_a_reader_of_regions_names_the_bad_tile(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", PLAIN, 64, compression="zlib")
    shorten(path)
    slide = TiffReader(path, "a")
    np.testing.assert_array_equal(slide.read((0, 0), 0, (256, 64)), PLAIN[:64])
    with pytest.raises(SlideError, match=r"a\.tif: tile \(1, 2\) cannot be decoded"):
        slide.read((0, 0), 0, (256, 256))
