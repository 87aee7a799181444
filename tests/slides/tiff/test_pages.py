"""Pages of JPEG tiles are parsed alike with tifffile and without it; other pages are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.tiffs import JpegKind, picture, write_jpeg, write_tiles

from wsipipe.slides.tiff.file import TiffFileBytes, directories
from wsipipe.slides.tiff.pages import TiffPage, name_of, parse_jpeg_page, parse_page, size_px_of

RGB = picture(300, 200)


def both(path: Path) -> tuple[TiffPage | None, TiffPage | None]:
    """The first page by tifffile, and without it."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        return parse_page(tiff.pages[0]), parse_jpeg_page(next(directories(TiffFileBytes(path))))


@pytest.mark.parametrize("kind", [JpegKind("420"), JpegKind("444", rgb=True), JpegKind(tables=False)], ids=str)
@pytest.mark.parametrize("big", [False, True])
def test_jpeg_pages_are_parsed_alike_with_and_without_tifffile(tmp_path: Path, kind: JpegKind, big: bool) -> None:
    ours, theirs = both(write_jpeg(tmp_path / "a.svs", RGB, kind, 64, big=big))
    assert ours
    assert theirs
    assert (ours.size_px, ours.tile_px) == (theirs.size_px, theirs.tile_px) == ((300, 200), (64, 64))
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    np.testing.assert_array_equal(ours.sizes, theirs.sizes)
    assert (ours.offsets.dtype, theirs.offsets.dtype, len(ours.offsets)) == (np.uint64, np.uint64, 5 * 4)
    assert ours.decode is theirs.decode is None
    tile = kind.tile(np.ascontiguousarray(RGB[:64, :64]))
    assert ours.jpeg
    assert theirs.jpeg
    assert ours.jpeg.standalone(tile) == theirs.jpeg.standalone(tile)


def test_a_page_of_another_compression_needs_tifffile(tmp_path: Path) -> None:
    parsed, plain = both(write_tiles(tmp_path / "a.tif", RGB, 64, compression="zlib"))
    assert parsed
    assert parsed.jpeg is None
    assert parsed.decode
    assert plain is None


def test_the_strips_of_a_page_are_tiles_of_its_width(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", rowsperstrip=32)
    parsed, plain = both(tmp_path / "a.tif")
    assert parsed
    assert (parsed.tile_px, len(parsed.offsets)) == ((300, 32), 7)
    assert plain is None


def test_a_page_has_its_size_and_names_for_known_values(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", RGB, 64)
    assert size_px_of(next(directories(TiffFileBytes(path)))) == (300, 200)
    assert (name_of(tifffile.COMPRESSION.LZW), name_of(12345)) == ("LZW", "12345")
