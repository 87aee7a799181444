"""Parse a TIFF page: with tifffile in any compression, or without it if the tiles are plain JPEG streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.slides.tiff.file import Directory, Tag
from wsipipe.slides.tiff.jpeg import JpegHeaders

COMPRESSIONS = frozenset(
    (
        "NONE",
        "LZW",
        "DEFLATE",
        "ADOBE_DEFLATE",
        "ZSTD",
        "PACKBITS",
        "LZMA",
        "JPEG",
        "JPEG2000",
        "APERIO_JP2000_RGB",
        "WEBP",
    )
)
"""Supported TIFF compressions. Not Aperio's YCbCr JPEG 2000: its codestream does not state its colour space."""

_JPEG, _RGB, _YCBCR = 7, 2, 6
_TAGS_OF_ONE = (Tag.ORIENTATION, Tag.PLANAR_CONFIGURATION, Tag.SAMPLE_FORMAT, Tag.IMAGE_DEPTH, Tag.TILE_DEPTH)
"""Tags that are 1 or absent in an upright two-dimensional image with interleaved integer channels."""


@dataclass(frozen=True)
class TiffPage:
    """One page of 8-bit RGB: (width, height) of the page and of its tiles or strips, and their place in the file.

    offsets, sizes: uint64 [tiles], in bytes. jpeg: completes the headers of JPEG tiles, None for another compression,
    whose tiles `decode` decodes.
    """

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    jpeg: JpegHeaders | None
    decode: Callable[..., Any] | None = None


def name_of(tag: Any) -> str:
    """The name of a TIFF tag's value, or its number if the name is unknown."""
    return str(getattr(tag, "name", tag))


def parse_page(page: Any) -> TiffPage | None:
    """A page of tifffile in any supported compression; None if it is not 8-bit RGB.

    tifffile needs two Python integers per tile while it reads a page; `parse_jpeg_page` does not.
    """
    supported = (
        page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.imagedepth == 1
        and name_of(page.photometric) in ("RGB", "YCBCR")
        and name_of(page.compression) in COMPRESSIONS
        and page.tags.valueof("Orientation", 1) == 1
    )
    if not supported or (page.photometric.name == "YCBCR" and page.compression.name != "JPEG"):
        return None
    size_px = (int(page.imagewidth), int(page.imagelength))
    strip_px = (size_px[0], min(int(page.rowsperstrip), size_px[1]))
    tile_px = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else strip_px
    is_jpeg = page.is_tiled and page.compression.name == "JPEG"
    return TiffPage(
        size_px,
        tile_px,
        np.array(page.dataoffsets, np.uint64),
        np.array(page.databytecounts, np.uint64),
        JpegHeaders(page.jpegtables, tile_px, rgb=page.photometric.name == "RGB") if is_jpeg else None,
        None if is_jpeg else partial(page.decode, jpegtables=page.jpegtables),
    )


def parse_jpeg_page(page: Directory) -> TiffPage | None:
    """A page of JPEG tiles, read into arrays without tifffile; None if it is of another kind.

    Raises ValueError if the page is damaged.
    """
    plain = (
        page.number(Tag.COMPRESSION) == _JPEG
        and page.number(Tag.PHOTOMETRIC) in (_RGB, _YCBCR)
        and page.number(Tag.SAMPLES_PER_PIXEL, 1) == 3
        and all(page.number(tag, 1) == 1 for tag in _TAGS_OF_ONE)
    )
    bits = page.values(Tag.BITS_PER_SAMPLE)
    if not plain or bits is None or bits.tolist() != [8, 8, 8]:
        return None
    offsets, sizes = page.values(Tag.TILE_OFFSETS), page.values(Tag.TILE_BYTE_COUNTS)
    if offsets is None or sizes is None:
        return None
    tile_px, tables = (page.number(Tag.TILE_WIDTH), page.number(Tag.TILE_LENGTH)), page.values(Tag.JPEG_TABLES)
    rgb = page.number(Tag.PHOTOMETRIC) == _RGB
    headers = JpegHeaders(None if tables is None else tables.tobytes(), tile_px, rgb)
    return TiffPage(size_px_of(page), tile_px, offsets.astype(np.uint64), sizes.astype(np.uint64), headers)


def size_px_of(page: Directory) -> tuple[int, int]:
    """(width, height) of a page in px."""
    return page.number(Tag.IMAGE_WIDTH), page.number(Tag.IMAGE_LENGTH)
