"""The pixels of a store: the slide's own JPEG streams where they fit, else its area means, encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import openslide
import pytest
import zarr
from support.tiffs import JpegKind, expected, place, segments, write_jpeg
from support.tilings import CONFIG, box, corrupt, cut, files, ledger, padded, slow_mean, stamps, streams, tile_one

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.slides.tiff.tiles import TiffTiles
from wsipipe.store import SlideStore
from wsipipe.tiling.stage import run as tile_slides

KINDS = {
    "420": (JpegKind("420"), 256),
    "422": (JpegKind("422"), 256),
    "444": (JpegKind("444"), 256),
    "rgb": (JpegKind("444", rgb=True), 256),
    "240 px": (JpegKind("420"), 240),
}


class Native(NamedTuple):
    """A slide of one kind of JPEG tiles, 1111 x 873 px, and its store at the slide's own resolution."""

    path: Path
    store: SlideStore
    tile_px: int


@pytest.fixture(scope="module", params=KINDS)
def native(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tissue_rgb: tuple[Any, Any]
) -> Native:
    folder = tmp_path_factory.mktemp("native")
    kind, tile_px = KINDS[request.param]
    path = write_jpeg(folder / "slide.svs", tissue_rgb[0][:873, :1111], kind, tile_px, (4, 16))
    store = tile_one(SlideFile(path, (0.5, 0.5)), folder, TileConfig(patch_px=224, stride_px=100))
    return Native(path, store, tile_px)


def from_openslide(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


def test_chunks_are_the_tiles_of_the_slide_byte_for_byte(native: Native) -> None:
    array, (theirs, ours) = native.store.pixels(), (from_openslide(native.path), expected(native.path))
    np.testing.assert_array_equal(theirs, ours)
    found = streams(array)
    assert array.spec.chunk_px == native.tile_px
    assert len(found) > 8
    assert any(box(array, cell).height_px < native.tile_px for cell in found)  # at the border of the slide
    for cell, stream in found.items():
        w = box(array, cell)
        pixels = imagecodecs.jpeg8_decode(stream)
        np.testing.assert_array_equal(pixels[: w.height_px, : w.width_px], cut(theirs, w))
        offset, size = place(native.path, cell[0] * -(-1111 // native.tile_px) + cell[1])
        tile = native.path.read_bytes()[offset : offset + size]
        assert stream.endswith(tile[segments(tile)[-1][2] :])


def test_stock_zarr_reads_the_same_pixels(native: Native) -> None:
    array, slide = native.store.pixels(), expected(native.path)
    stock = zarr.open_array(str(native.store.path / "0"), mode="r")
    for cell in streams(array):
        w = box(array, cell)
        block = stock[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
        np.testing.assert_array_equal(np.moveaxis(np.asarray(block), 0, -1), cut(slide, w))


def test_every_patch_with_its_stride_has_the_pixels_of_the_slide(native: Native) -> None:
    slide = np.pad(expected(native.path), ((0, 224), (0, 224), (0, 0)), constant_values=255)
    windows = native.store.patches().windows
    assert len(windows) > 20
    for w, patch in zip(windows, native.store.read_batch(windows), strict=True):
        np.testing.assert_array_equal(np.moveaxis(patch, 0, -1), cut(slide, w))


def test_all_of_it_is_copied_and_the_ledger_says_so(native: Native) -> None:
    assert native.store.meta["copied"] == 1.0
    assert native.store.meta["copied_levels"] == [0, 1]
    run = RunConfig(runs=str(native.path.parent / "runs"))
    assert [(r["copied"], r["corrupt"]) for r in ledger(run)] == [("100%", "0")]
    assert corrupt(run) == []


def test_patch_and_stride_decide_no_pixel_of_a_chunk(tmp_path: Path, svs_path: Path) -> None:
    found = [
        streams(tile_one(svs_path, tmp_path / str(i), TileConfig(patch_px=p, stride_px=s)).pixels())
        for i, (p, s) in enumerate(((224, 100), (128, 128), (16, 16)))
    ]
    for other in found[1:]:
        assert other.keys() & found[0].keys()
        assert all(found[0][cell] == other[cell] for cell in other.keys() & found[0].keys())


def test_a_coarser_native_level_is_copied_too(tmp_path: Path, svs_path: Path) -> None:
    store = tile_one(svs_path, tmp_path, TileConfig(mpp=2.0, patch_px=32))
    assert (store.grid.mpp, store.grid.size_px, store.meta["copied"]) == ((2.0, 2.0), (300, 225), 1.0)
    assert len(streams(store.pixels())) == 2
    np.testing.assert_array_equal(store.read(Window(0, 0, 300, 225)), from_openslide(svs_path, 1))
    np.testing.assert_array_equal(store.read(Window(0, 0, 300, 225)), expected(svs_path, 2))


def test_coarser_levels_are_those_of_the_slide(tmp_path: Path, wide_path: Path) -> None:
    store = tile_one(wide_path, tmp_path)
    assert (store.grid.levels, store.meta["copied_levels"]) == (3, [0, 1, 2])
    for level in (1, 2):
        height, width = store.grid.level_shape(level)
        np.testing.assert_array_equal(store.read(Window(0, 0, width, height), level), from_openslide(wide_path, level))


def test_where_the_slide_cuts_its_coarser_level_short_the_last_chunks_are_made_anew(native: Native) -> None:
    own, store = from_openslide(native.path, 1), native.store
    assert (own.shape[:2], store.grid.level_shape(1)) == ((218, 277), (219, 278))
    found = store.read(Window(0, 0, 277, 218), 1).astype(int)
    assert np.abs(found - own).mean() < 4
    column = store.read(Window(277, 0, 1, 218), 1)  # of which the slide has no pixel: not what a tile is padded with
    assert column.mean() > 200


def test_a_tile_that_claims_absurd_sizes_is_not_copied(
    tmp_path: Path, svs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsipipe.tiling.levels.MAX_COPIED_PX", 128)
    store = tile_one(svs_path, tmp_path)
    assert (store.meta["copied"], store.meta["copied_levels"]) == (0.0, [])
    array, slide = store.pixels(), expected(svs_path)
    for cell, stream in streams(array).items():
        assert stream == array.spec.encode(np.moveaxis(padded(cut(slide, box(array, cell)), 256), -1, 0))


@pytest.mark.parametrize(
    ("mpp", "override", "page", "scale", "size"),
    [
        (1.0, None, 0, (2.0, 2.0), (600, 450)),
        (1.5, None, 0, (3.0, 3.0), (400, 300)),
        (0.7, None, 0, (1.4, 1.4), (857, 642)),
        (3.0, None, 2, (1.5, 1.5), (200, 150)),
        (0.8, (0.5, 0.4), 0, (1.6, 2.0), (750, 450)),
        (1.2, (0.6, 0.4), 0, (2.0, 3.0), (600, 300)),
        (0.3, None, 0, (0.6, 0.6), (2000, 1500)),
    ],
)
def test_resampled_chunks_are_area_means_encoded_once(
    tmp_path: Path, svs_path: Path, mpp: Any, override: Any, page: Any, scale: Any, size: Any
) -> None:
    patch_px = 64 if mpp < 2 else 32
    config = TileConfig(mpp=mpp, patch_px=patch_px, codec="zstd")
    file = SlideFile(svs_path, override)
    store, jpeg = tile_one(file, tmp_path, config), tile_one(file, tmp_path / "jpeg", replace(config, codec="jpeg"))
    assert (store.grid.mpp, store.grid.size_px) == ((mpp, mpp), size)
    means = slow_mean(expected(svs_path, page), scale, size)
    array, whole = store.pixels(), all(s == round(s) for s in scale)
    cells = list(streams(array))
    assert cells
    for cell in cells:
        w = box(array, cell)
        found = store.read(w)
        apart = np.abs(found.astype(int) - cut(means, w))
        assert apart.max() <= (0 if whole else 1)
        assert apart.mean() < 0.01
    for cell, stream in streams(jpeg.pixels()).items():
        n = jpeg.pixels().spec.chunk_px
        block = padded(store.read(box(jpeg.pixels(), cell)), n)
        assert stream == jpeg.pixels().spec.encode(np.moveaxis(block, -1, 0))


def test_each_tile_is_decoded_once_while_its_shard_is_resampled(
    tmp_path: Path, svs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    decode = TiffTiles.decode

    def counted(self: TiffTiles, cell: tuple[int, int], shrink: int = 1) -> np.ndarray:
        if self.size_px == (1200, 900):
            calls.append(cell)
        return decode(self, cell, shrink)

    monkeypatch.setattr(TiffTiles, "decode", counted)
    tile_one(svs_path, tmp_path, TileConfig(mpp=1.0, patch_px=64))
    del calls[:2]  # two tiles are compared with OpenSlide's when the slide is opened
    assert len(calls) == len(set(calls)) > 8


def test_fast_resampling_is_near_the_area_mean_and_another_recipe(tmp_path: Path, svs_path: Path) -> None:
    config = TileConfig(mpp=1.0, patch_px=64, codec="zstd")
    exact = tile_one(svs_path, tmp_path / "exact", config)
    fast = tile_one(svs_path, tmp_path / "fast", replace(config, fast_resample=True))
    assert fast.pixel_digest != exact.pixel_digest
    assert fast.pixels().present().tolist() == exact.pixels().present().tolist()
    one, two = (s.read(Window(0, 0, 600, 450)).astype(float) for s in (exact, fast))
    error = ((one - two) ** 2).mean()
    assert 0 < error < 255**2 / 10**3.3  # 33 dB or better


def test_lossless_pixels_are_the_slide_itself(tmp_path: Path, svs_path: Path) -> None:
    store = tile_one(svs_path, tmp_path, replace(CONFIG, codec="zstd"))
    slide = expected(svs_path)
    assert store.meta["copied"] == 0.0
    for cell in streams(store.pixels()):
        w = box(store.pixels(), cell)
        np.testing.assert_array_equal(store.read(w), cut(slide, w))


def test_a_plain_image_is_tiled_with_the_override(png_path: Path, run: RunConfig, tissue_rgb: tuple[Any, Any]) -> None:
    config = TileConfig(patch_px=64, mpp_override=0.5, codec="zstd")
    report, stores = tile_slides({"image": SlideFile(png_path)}, config, RunContext(run))
    assert [r["status"] for r in report.rows] == ["done"]
    store = SlideStore(stores[0])
    assert store.meta["slide"]["mpp_source"] == "override"
    np.testing.assert_array_equal(store.read(Window(0, 0, 400, 300)), tissue_rgb[0][300:600, 400:800])
    report, _ = tile_slides({"image": SlideFile(png_path)}, CONFIG, RunContext(replace(run, stores=run.stores + "2")))
    assert "set it with --mpp-override" in report.rows[0]["reason"]


def test_nothing_is_written_beside_the_slide(slide_folder: Path, tmp_path: Path, svs_path: Path) -> None:
    before, kept = stamps(slide_folder), files(slide_folder)
    tile_one(svs_path, tmp_path)
    assert (stamps(slide_folder), files(slide_folder)) == (before, kept)
