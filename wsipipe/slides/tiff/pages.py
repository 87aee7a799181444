"""What a page of a TIFF says of its tiles: by tifffile, in any compression; and of plain JPEG tiles, by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.slides.tiff.file import Directory, Tag
from wsipipe.slides.tiff.jpeg import JpegHeads

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
"""TIFF compressions decoded here. Not Aperio's YCbCr JPEG 2000: its codestream does not say its colours."""

_JPEG, _RGB, _YCBCR = 7, 2, 6
_ONE = (Tag.ORIENTATION, Tag.PLANAR_CONFIGURATION, Tag.SAMPLE_FORMAT, Tag.IMAGE_DEPTH, Tag.TILE_DEPTH)
"""Tags that are 1, or absent, in a picture of whole pixels that stands upright."""


@dataclass(frozen=True)
class TiffPage:
    """One page of 8-bit RGB: (width, height) of it and of its tiles (or strips), and where in the file these lie.

    jpeg: what a page of JPEG streams holds for all of them; of any other page, `decode` makes pixels of its tiles.
    """

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    jpeg: JpegHeads | None
    decode: Callable[..., Any] | None = None


def name_of(tag: Any) -> str:
    """The name of a TIFF tag's value, its number where that is unknown."""
    return str(getattr(tag, "name", tag))


def any_page(page: Any) -> TiffPage | None:
    """A page as tifffile reads it, in any known compression; None if it is not 8-bit RGB.

    It takes two Python integers for each tile while it is read.
    """
    known = (
        page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.imagedepth == 1
        and name_of(page.photometric) in ("RGB", "YCBCR")
        and name_of(page.compression) in COMPRESSIONS
        and page.tags.valueof("Orientation", 1) == 1
    )
    if not known or (page.photometric.name == "YCBCR" and page.compression.name != "JPEG"):
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
        JpegHeads(page.jpegtables, tile_px, rgb=page.photometric.name == "RGB") if is_jpeg else None,
        None if is_jpeg else partial(page.decode, jpegtables=page.jpegtables),
    )


def jpeg_page(page: Directory) -> TiffPage | None:
    """A page of JPEG tiles, whose tables of tiles are never anything but arrays; None for what is told otherwise.

    Raises ValueError if it is damaged.
    """
    plain = (
        page.number(Tag.COMPRESSION) == _JPEG
        and page.number(Tag.PHOTOMETRIC) in (_RGB, _YCBCR)
        and page.number(Tag.SAMPLES_PER_PIXEL, 1) == 3
        and all(page.number(tag, 1) == 1 for tag in _ONE)
    )
    bits = page.values(Tag.BITS_PER_SAMPLE)
    if not plain or bits is None or bits.tolist() != [8, 8, 8]:
        return None
    offsets, sizes = page.values(Tag.TILE_OFFSETS), page.values(Tag.TILE_BYTE_COUNTS)
    if offsets is None or sizes is None:
        return None
    tile_px, tables = (page.number(Tag.TILE_WIDTH), page.number(Tag.TILE_LENGTH)), page.values(Tag.JPEG_TABLES)
    rgb = page.number(Tag.PHOTOMETRIC) == _RGB
    heads = JpegHeads(None if tables is None else tables.tobytes(), tile_px, rgb)
    return TiffPage(size_px_of(page), tile_px, offsets.astype(np.uint64), sizes.astype(np.uint64), heads)


def size_px_of(page: Directory) -> tuple[int, int]:
    """(width, height) of a page."""
    return page.number(Tag.IMAGE_WIDTH), page.number(Tag.IMAGE_LENGTH)
