"""OME-TIFF pyramids and RGB TIFFs in strips or deflated tiles: levels, resolution, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from support.tiffs import JpegKind, blocks_of, halved, picture, place, write_tiles

from wsipipe.errors import SlideError
from wsipipe.slides.readers import ome_tiff, tiff
from wsipipe.slides.readers.tiff import TiffReader

RGB = picture(601, 403)
MPP = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}


def write_ome(path: Path, rgb: np.ndarray = RGB, metadata: dict[str, Any] = MPP, subs: int = 2, **options: Any) -> Path:
    """An OME-TIFF whose coarser levels, by 2 each, are SubIFDs."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        how = {"photometric": "rgb", "tile": (128, 128), **options}
        tiff.write(rgb, subifds=subs, metadata={"axes": "YXS", **metadata}, **how)
        for k in range(subs):
            tiff.write(halved(rgb, 2 ** (k + 1)), subfiletype=1, **how)
    return path


@pytest.mark.parametrize("compression", ["zlib", "jpeg2000"])
def test_an_ome_tiff_has_its_sub_images_as_levels(tmp_path: Path, compression: str) -> None:
    path = write_ome(tmp_path / "a.ome.tif", compression=compression)
    assert ome_tiff.sniff(path)
    slide = TiffReader(path, "a")
    assert (slide.id, slide.info.vendor, slide.info.path) == ("a", "tiff", str(path))
    assert (slide.info.size_px0, slide.info.bounds_px0) == ((601, 403), (0, 0, 601, 403))
    assert (slide.info.mpp0, slide.info.mpp_source) == ((0.25, 0.25), "ome")
    assert slide.downsamples == (1, 2, 4)
    for level in range(3):
        truth = halved(RGB, 2**level)
        assert slide.level_size(level) == (truth.shape[1], truth.shape[0])
        assert slide.tile_px(level) == slide.tiles(level).tile_px == (128, 128)
        np.testing.assert_array_equal(slide.read((0, 0), level, slide.level_size(level)), truth)
    slide.close()


def test_an_ome_tiff_of_jpeg_tiles_may_be_copied(tmp_path: Path) -> None:
    kind, path = JpegKind("420"), tmp_path / "a.ome.tif"
    options = kind.options(128) | {"shape": (512, 512, 3), "dtype": "uint8"}
    tiles = (kind.tile(block) for block in blocks_of(picture(512, 512), 128))
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        tiff.write(tiles, metadata={"axes": "YXS", **MPP}, **options)
    slide = TiffReader(path, "a")
    assert slide.tiles(0).is_jpeg
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(slide.read((0, 0), 0, (512, 512)), tiff.asarray())


@pytest.mark.parametrize(("size", "unit", "mpp"), [
    (0.25, "µm", 0.25),
    (0.25, "μm", 0.25),  # the Greek letter, not the micro sign
    (250.0, "nm", 0.25),
    (0.00025, "mm", 0.25),
    (0.000025, "cm", 0.25),
])  # fmt: skip
def test_physical_sizes_are_read_in_their_unit(tmp_path: Path, size: float, unit: str, mpp: float) -> None:
    sizes = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 0.26, "PhysicalSizeYUnit": "µm"}
    slide = TiffReader(write_ome(tmp_path / "a.ome.tif", metadata=sizes, subs=0), "a")
    assert slide.info.mpp0 == pytest.approx((mpp, 0.26))
    assert slide.downsamples == (1,)


MISSING = "does not contain its resolution; set it with --mpp-override"


@pytest.mark.parametrize(("metadata", "message"), [
    ({}, MISSING),
    ({"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}, MISSING),
    (MPP | {"PhysicalSizeXUnit": "pixel"}, MISSING),
    (MPP | {"PhysicalSizeX": 0.5}, r"along x \(0.5 um/px\) and y \(0.25 um/px\) differ"),
    (MPP | {"PhysicalSizeX": 2500.0, "PhysicalSizeY": 2500.0}, "2500 x 2500 um/px is outside"),
], ids=str)  # fmt: skip
def test_a_missing_resolution_is_an_error(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_ome(tmp_path / "a.ome.tif", metadata=metadata, subs=0)
    with pytest.raises(SlideError, match=rf"a\.ome\.tif: .*{message}"):
        TiffReader(path, "a")
    slide = TiffReader(path, "a", (0.5, 0.5), "manifest")
    assert (slide.info.mpp0, slide.info.mpp_source) == ((0.5, 0.5), "manifest")


@pytest.mark.parametrize(("unit", "per_unit", "mpp"), [
    ("CENTIMETER", (40_000, 20_000), None),
    ("CENTIMETER", (40_000, 40_000), 0.25),
    ("INCH", (50_800, 50_800), 0.5),
    ("INCH", (72, 72), None),
    ("NONE", (40_000, 40_000), None),
    ("CENTIMETER", (0, 0), None),
], ids=str)  # fmt: skip
def test_a_plain_tiff_has_its_resolution_in_its_tags(
    tmp_path: Path, unit: str, per_unit: tuple[int, int], mpp: float | None
) -> None:
    path = tmp_path / "a.tif"
    how = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 32}
    tifffile.imwrite(path, RGB, resolution=per_unit, resolutionunit=unit, **how)
    assert tiff.sniff(path)
    assert not ome_tiff.sniff(path)
    if mpp is None:
        with pytest.raises(SlideError, match=r"a\.tif: .*--mpp-override"):
            TiffReader(path, "a")
        return
    slide = TiffReader(path, "a")
    assert (slide.info.mpp0, slide.info.mpp_source) == (pytest.approx((mpp, mpp)), "tiff tags")
    np.testing.assert_array_equal(slide.read((0, 0), 0, (601, 403)), RGB)


def test_strips_of_jpeg_are_decoded_as_by_tifffile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="jpeg", subsampling=(2, 2), rowsperstrip=32)
    with tifffile.TiffFile(path) as tiff:
        truth = tiff.asarray()
    np.testing.assert_array_equal(TiffReader(path, "a", (0.5, 0.5)).read((0, 0), 0, (601, 403)), truth)


@pytest.mark.parametrize("at", [(-30, -20), (590, 390), (601, 0), (0, 403), (900, 900), (-200, 10), (610, 100), (5, 5)])
def test_beyond_the_border_is_white(tmp_path: Path, at: tuple[int, int]) -> None:
    slide = TiffReader(write_ome(tmp_path / "a.ome.tif"), "a")
    for level, d in ((0, 1), (1, 2)):
        canvas = np.full((1200, 1200, 3), 255, np.uint8)
        truth = halved(RGB, d)
        canvas[200 : 200 + truth.shape[0], 200 : 200 + truth.shape[1]] = truth
        x, y = (round(v / d) + 200 for v in at)
        np.testing.assert_array_equal(slide.read(at, level, (90, 70)), canvas[y : y + 70, x : x + 90])


@pytest.mark.parametrize(("pixels", "options", "found"), [
    (np.zeros((4, 64, 64), np.uint16), {"axes": "CYX"}, r"uint16 x 1, .*, MINISBLACK"),
    (np.zeros((4, 64, 64), np.uint8), {"axes": "CYX"}, r"uint8 x 1, .*, MINISBLACK"),
    (np.zeros((64, 64, 3), np.uint16), {"axes": "YXS"}, r"uint16 x 3, .*, RGB"),
    (np.zeros((64, 64), np.float32), {"axes": "YX"}, r"float32 x 1, .*, MINISBLACK"),
], ids=["fluorescence", "8-bit fluorescence", "deep", "float"])  # fmt: skip
def test_fluorescence_is_refused(tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], found: str) -> None:
    path = tmp_path / "a.ome.tif"
    photometric = "rgb" if options["axes"] == "YXS" else "minisblack"
    tifffile.imwrite(path, pixels, ome=True, photometric=photometric, tile=(64, 64), metadata={**options, **MPP})
    with pytest.raises(SlideError, match=rf"a\.ome\.tif: found {found}; expected 8-bit RGB; export it as an RGB TIFF"):
        TiffReader(path, "a")


def test_an_unsupported_compression_is_refused(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", subs=0)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(12345)
    with pytest.raises(SlideError, match=r"found uint8 x 3, 12345, RGB; expected 8-bit RGB"):
        TiffReader(path, "a")


def test_a_level_of_another_kind_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(RGB, subifds=2, metadata={"axes": "YXS", **MPP}, photometric="rgb", tile=(128, 128))
        tiff.write(halved(RGB, 2), subfiletype=1, photometric="rgb", tile=(128, 128), compression="jpegxl")
        tiff.write(halved(RGB, 4), subfiletype=1, photometric="rgb", tile=(128, 128))
    slide = TiffReader(path, "a")
    assert slide.downsamples == (1, 4)
    np.testing.assert_array_equal(slide.read((0, 0), 1, (150, 100)), halved(RGB, 4))


def test_another_file_that_the_header_names_is_not_opened(tmp_path: Path) -> None:
    secret = write_ome(tmp_path / "secret.ome.tif", 255 - RGB, subs=0)
    with tifffile.TiffFile(secret) as file:
        xml = file.ome_metadata
    assert xml
    uuid = '<UUID FileName="secret.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000000</UUID></TiffData>'
    named = xml.replace("/></Pixels>", f">{uuid}</Pixels>").replace("</TiffData></Pixels>", f"{uuid}</Pixels>")
    assert "secret" in named
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB, description=named.encode(), photometric="rgb", tile=(128, 128), metadata=None)
    assert ome_tiff.sniff(path)
    try:
        slide = TiffReader(path, "a", (0.25, 0.25))
    except SlideError:
        return
    np.testing.assert_array_equal(slide.read((0, 0), 0, (601, 403)), RGB)


@pytest.mark.parametrize("damage", ["no tiff", "cut header", "cut xml", "huge"])
def test_a_damaged_file_is_a_slide_error(tmp_path: Path, damage: str) -> None:
    path = write_ome(tmp_path / "a.ome.tif", subs=0)
    if damage == "no tiff":
        path.write_bytes(b"no tiff at all")
    elif damage == "cut header":
        path.write_bytes(path.read_bytes()[:20])
    elif damage == "cut xml":
        path.write_bytes(path.read_bytes().replace(b"</OME>", b"<<OME>"))
    else:
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            for name in ("ImageWidth", "ImageLength"):
                tiff.pages[0].tags[name].overwrite(2**31, dtype="I")
    tracemalloc.start()
    with pytest.raises(SlideError, match=r"a\.ome\.tif: "):
        TiffReader(path, "a").read((0, 0), 0, (64, 64))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_bad_tile_is_a_slide_error_and_its_neighbours_are_read(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", RGB, 128, compression="zlib")
    offset, _ = place(path, 6)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(50))
    slide = TiffReader(path, "a")
    np.testing.assert_array_equal(slide.read((0, 128), 0, (128, 128)), RGB[128:256, :128])
    with pytest.raises(SlideError, match=r"a\.tif: tile \(1, 1\) cannot be decoded"):
        slide.read((100, 100), 0, (60, 60))


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\x89PNG\r\n\x1a\n", b"II*\0\xff\xff\xff\xff"])
def test_a_file_of_another_format_is_left_to_other_readers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert tiff.sniff(tmp_path / "a.tif") is None
