"""Slides through OpenSlide: an error fails one region, direct tiles equal OpenSlide's pixels, bounds stay inside."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.tiffs import JpegKind, expected, overwrite, picture, place, tamper, write_jpeg, write_scn, write_tiles

from wsipipe.errors import SlideError
from wsipipe.slides.readers import openslide as reader
from wsipipe.slides.readers.openslide import OpenSlideReader, _rgb_of_ycbcr, bounds_px0
from wsipipe.slides.tiff.tiles import TiffTiles

RGB = picture(256, 256)
BAD, BAD_XY = 6, (128, 64)  # of 4 x 4 tiles of 64 px


@pytest.fixture
def svs(tmp_path: Path) -> Path:
    return write_jpeg(tmp_path / "a.svs", RGB, tile=64, factors=(2,))


@pytest.fixture
def through_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixels go through OpenSlide."""
    monkeypatch.setattr(reader, "pyramid_tiles", lambda *_: {})


def garble(path: Path, index: int = BAD, page: int = 0) -> Path:
    overwrite(path, place(path, index, page)[0], bytes(100))
    return path


# errors


@pytest.mark.usefixtures("through_openslide")
def test_an_error_fails_only_the_region_with_the_bad_tile(svs: Path) -> None:
    truth = expected(svs)
    slide = OpenSlideReader(garble(svs), "a")
    for _ in range(2):
        with pytest.raises(
            SlideError, match=r"a\.svs: pixels at \(128, 64\) of level 0 cannot be decoded \(Not a JPEG"
        ):
            slide.read(BAD_XY, 0, (64, 64))
        assert (slide.level_size(0), slide.level_size(1), slide.tile_px(1)) == ((256, 256), (128, 128), (64, 64))
        np.testing.assert_array_equal(slide.read((0, 0), 0, (256, 64)), truth[:64])
        np.testing.assert_array_equal(slide.read((0, 64), 0, (128, 64)), truth[64:128, :128])
    slide.close()


@pytest.mark.usefixtures("through_openslide")
def test_an_error_in_one_thread_does_not_affect_others(svs: Path) -> None:
    truth = expected(svs)
    slide = OpenSlideReader(garble(svs), "a")
    corners = [(x, y) for y in range(0, 256, 64) for x in range(0, 256, 64)] * 8

    def read(corner: tuple[int, int]) -> bool | None:
        x, y = corner
        try:
            return np.array_equal(slide.read(corner, 0, (64, 64)), truth[y : y + 64, x : x + 64])
        except SlideError:
            return None

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(read, corners))
    assert answers == [None if corner == BAD_XY else True for corner in corners]
    slide.close()


@pytest.mark.usefixtures("through_openslide")
def test_a_file_that_goes_away_is_a_slide_error(svs: Path) -> None:
    slide = OpenSlideReader(garble(svs), "a")
    svs.unlink()
    with pytest.raises(SlideError, match=r"a\.svs: OpenSlide cannot open it \("):
        slide.read(BAD_XY, 0, (64, 64))
    slide.close()


@pytest.mark.usefixtures("through_openslide")
def test_what_was_not_scanned_is_white(svs: Path) -> None:
    tamper(svs, BAD, offset=0, size=0)
    slide = OpenSlideReader(svs, "a")
    truth = expected(svs)
    truth[64:128, 128:192] = 255
    np.testing.assert_array_equal(slide.read((0, 0), 0, (256, 256)), truth)
    slide.close()


def test_half_transparent_pixels_are_composited_on_white(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = OpenSlideReader(svs, "a")
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    monkeypatch.setattr(slide, "_region", lambda *_: rgba)
    assert slide.read((0, 0), 0, (3, 1))[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


def test_ycbcr_is_converted_as_by_pillow() -> None:
    ycc = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    wanted = np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB"))
    assert np.abs(_rgb_of_ycbcr(ycc).astype(int) - wanted).max() <= 1


# direct tiles


def read_by_tile(slide: OpenSlideReader, level: int) -> np.ndarray:
    tiles = slide.tiles(level)
    assert tiles
    (width, height), (tw, th) = tiles.size_px, tiles.tile_px
    rows = [np.concatenate([tiles.decode((r, c)) for c in range(tiles.cols)], 1) for r in range(tiles.rows)]
    assert rows[0].shape[:2] == (th, tiles.cols * tw)
    return np.concatenate(rows)[:height, :width]


@pytest.mark.parametrize("size", [(256, 256), (603, 407)])
@pytest.mark.parametrize(
    "kind", [JpegKind("420"), JpegKind("444", rgb=True, numbers=True), JpegKind("444", rgb=True, tag="ycbcr")], ids=str
)
def test_direct_tiles_are_the_pixels_of_openslide_on_every_level(
    tmp_path: Path, kind: JpegKind, size: tuple[int, int]
) -> None:
    slide = OpenSlideReader(write_jpeg(tmp_path / "a.svs", picture(*size), kind, 64, (2, 4)), "a")
    assert slide.info.vendor == "aperio"
    assert slide.downsamples == (1, 2, 4)
    with openslide.OpenSlide(tmp_path / "a.svs") as truth:
        for level, dimensions in enumerate(truth.level_dimensions):
            assert slide.level_size(level) == dimensions
            wanted = np.asarray(truth.read_region((0, 0), level, dimensions))[..., :3]
            np.testing.assert_array_equal(read_by_tile(slide, level), wanted)
    slide.close()


@pytest.mark.parametrize("options", [
    {"compression": "lzw", "predictor": True},
    {"compression": "jpeg", "compressionargs": {"level": 80}},
    {},
], ids=str)  # fmt: skip
def test_generic_tiled_tiff_is_read_directly_too(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_tiles(tmp_path / "a.tif", RGB, 64, (2,), **options)
    slide = OpenSlideReader(path, "a")
    assert (slide.info.vendor, slide.info.mpp0, slide.downsamples) == ("generic-tiff", (0.25, 0.25), (1, 2))
    for level in (0, 1):
        np.testing.assert_array_equal(read_by_tile(slide, level), expected(path, level))
    slide.close()


@pytest.mark.parametrize(("mistake", "size"), [
    ("values", (256, 256)),
    ("colours", (256, 256)),
    ("place", (256, 256)),
    ("colours", (603, 407)),  # OpenSlide interpolates on its level 1
    ("place", (603, 407)),
])  # fmt: skip
def test_tiles_that_contradict_openslide_are_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mistake: str,
    size: tuple[int, int],
) -> None:
    rgb = picture(*size)
    rgb[..., 0] //= 2
    svs = write_jpeg(tmp_path / "a.svs", rgb, tile=64, factors=(2,))
    decode = TiffTiles.decode

    def other(tiles: TiffTiles, cell: tuple[int, int], shrink: int = 1) -> np.ndarray:
        right = decode(tiles, cell, shrink)
        if tiles.size_px == size:
            return right
        if mistake == "place":
            return decode(tiles, (cell[0], (cell[1] + 1) % tiles.cols), shrink)
        return right[..., ::-1] if mistake == "colours" else right // 4 * 4

    monkeypatch.setattr(TiffTiles, "decode", other)
    slide = OpenSlideReader(svs, "a")
    assert slide.tiles(0)
    assert slide.tiles(1) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{svs}: level 1 contradicts its TIFF tags; reading it through OpenSlide"
    ]
    np.testing.assert_array_equal(slide.read((0, 0), 1, slide.level_size(1)), expected(svs, 2))
    slide.close()


def test_bad_tiles_do_not_keep_the_others_from_being_read_directly(svs: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in (0, 5, 6, 9, 10, 15):
        garble(svs, index)
    with caplog.at_level(logging.WARNING):
        slide = OpenSlideReader(svs, "a")
    assert slide.tiles(0)
    assert caplog.records == []
    slide.close()


def test_a_level_with_only_bad_tiles_follows_the_other_levels(svs: Path) -> None:
    for index in range(16):
        garble(svs, index)
    slide = OpenSlideReader(svs, "a")
    assert slide.tiles(0)
    assert slide.tiles(1)
    slide.close()


# bounds

SIDE = st.integers(-50, 150)


def properties(x: object, y: object, w: object, h: object) -> dict[str, str]:
    sides = {"x": x, "y": y, "width": w, "height": h}
    return {f"openslide.bounds-{side}": str(value) for side, value in sides.items() if value is not None}


@given(SIDE, SIDE, SIDE, SIDE)
def test_bounds_are_clipped_to_the_slide(x: int, y: int, w: int, h: int) -> None:
    inside = {(a, b) for a in range(max(0, x), min(100, x + w)) for b in range(max(0, y), min(80, y + h))}
    bx, by, bw, bh = bounds_px0(properties(x, y, w, h), (100, 80))
    if inside:
        assert (bx, by, bw * bh) == (*min(inside), len(inside))
        assert (bx + bw - 1, by + bh - 1) == max(inside)
    else:
        assert (bx, by, bw, bh) == (0, 0, 100, 80)


def test_a_leica_slide_has_the_bounds_of_its_scanned_area(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", picture(400, 320), (1000, 800), (200, 160))
    slide = OpenSlideReader(path, "a")
    assert (slide.info.vendor, slide.info.size_px0, slide.info.mpp0) == ("leica", (1000, 800), (0.25, 0.25))
    assert slide.info.bounds_px0 == (200, 160, 400, 320)
    assert [slide.tiles(level) for level in (0, 1)] == [None, None]  # its tiles have a place of their own
    for level, d in ((0, 1), (1, 4)):
        w, h = 400 // d, 320 // d
        np.testing.assert_array_equal(slide.read((200, 160), level, (w, h)), expected(path, level))
        whole = slide.read((0, 0), level, (1000 // d, 800 // d))
        whole[160 // d : 160 // d + h, 200 // d : 200 // d + w] = 255
        assert (whole == 255).all()
    slide.close()


@pytest.mark.parametrize("given_properties", [
    {},
    properties(None, 0, 10, 10),
    properties("x", 0, 10, 10),
    properties(0, 0, "1e3", 10),
    properties(0, 0, "", ""),
])  # fmt: skip
def test_without_bounds_the_whole_slide_counts(given_properties: dict[str, str]) -> None:
    assert bounds_px0(given_properties, (100, 80)) == (0, 0, 100, 80)
