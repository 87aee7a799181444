"""The compressed tiles of one TIFF level: read by position, decoded one by one, or handed on as JPEG streams."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.jpeg import JpegHeads
from wsipipe.slides.tiff_file import Directory, Tag, TiffFileBytes, directories

log = logging.getLogger(__name__)

Cell = tuple[int, int]
"""(row, col) of a tile in the lattice of its level."""

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

LARGEST_TILE_PX = 2**26
"""Pixels of the largest tile or strip that is decoded at once; a larger one is an error or an attack."""

_JPEG, _RGB, _YCBCR = 7, 2, 6
_ONE = (Tag.ORIENTATION, Tag.PLANAR_CONFIGURATION, Tag.SAMPLE_FORMAT, Tag.IMAGE_DEPTH, Tag.TILE_DEPTH)
"""Tags that are 1, or absent, in a picture of whole pixels that stands upright."""

_GAP, _RUN = 1 << 14, 1 << 22
"""Bytes between two tiles that are read rather than skipped, and the most bytes read at once."""

_MOST_GROWTH = 4
"""A tile that claims to be larger than this many times its pixels is damaged: no encoder makes it so large."""


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


class TiffTiles:
    """The tiles (or strips) of one page. Safe to use from several threads.

    size_px, tile_px: (width, height) of the level and of a tile. is_jpeg: whether every tile is a JPEG stream, which
    may be copied as it is, or shrunk by libjpeg.
    """

    def __init__(self, file: TiffFileBytes, page: TiffPage) -> None:
        self._file = file
        self.size_px, self.tile_px = page.size_px, page.tile_px
        self.cols, self.rows = (-(-n // t) for n, t in zip(self.size_px, self.tile_px, strict=True))
        self._offsets, self._sizes = page.offsets, page.sizes
        self._largest = _MOST_GROWTH * 3 * self.tile_px[0] * self.tile_px[1] + 2**16
        self._heads, self._decode_other = page.jpeg, page.decode
        self.is_jpeg = page.jpeg is not None

    @staticmethod
    def of(file: TiffFileBytes, page: TiffPage | None) -> TiffTiles | None:
        """The tiles of a page; None if it is none of 8-bit RGB, or if its tiles are too large or too few."""
        if page is None or min(page.tile_px) < 1 or page.tile_px[0] * page.tile_px[1] > LARGEST_TILE_PX:
            return None
        tiles = TiffTiles(file, page)
        return tiles if len(page.offsets) == len(page.sizes) == tiles.rows * tiles.cols else None

    def stored(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, bytes]]:
        """The compressed bytes of tiles, in the order of `cells`: b"" where the file holds none (or says that it
        holds absurdly many), cut where it ends.
        """
        for data, spans in self._runs(cells):
            for cell, start, end in spans:
                yield cell, data[start:end]

    def jpegs(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, tuple[bytes, bytes] | None]]:
        """Tiles as JPEG streams that any decoder understands, in two pieces; None where a tile is damaged."""
        heads = self._jpeg_heads()
        for data, spans in self._runs(cells):
            for cell, start, end in spans:
                try:
                    yield cell, heads.standalone(data, start, end)
                except ValueError:
                    yield cell, None

    def jpeg(self, cell: Cell, stored: bytes) -> tuple[bytes, bytes]:
        """The stored bytes of a tile as `jpegs` gives them; SlideError says what is damaged."""
        heads = self._jpeg_heads()
        self._check(cell, stored)
        try:
            return heads.standalone(stored)
        except ValueError as error:
            raise SlideError(f"{self._file.path}: tile {cell} is damaged: {error}") from None

    def _jpeg_heads(self) -> JpegHeads:
        if self._heads is None:
            raise TypeError("only tiles that are JPEG streams can be copied")
        return self._heads

    def _runs(self, cells: Sequence[Cell]) -> Iterator[tuple[bytes, list[tuple[Cell, int, int]]]]:
        """Tiles that lie close together in the file are read at once: their bytes, and where each lies in them."""
        places = np.array(cells, np.intp).reshape(-1, 2) @ (self.cols, 1)
        offsets = self._offsets[places].tolist()
        ends = [o + n if n <= self._largest else o for o, n in zip(offsets, self._sizes[places].tolist(), strict=True)]
        start = 0
        while start < len(cells):
            low, high, stop = offsets[start], ends[start], start + 1
            while stop < len(cells) and high <= offsets[stop] <= high + _GAP and ends[stop] - low <= _RUN:
                high, stop = ends[stop], stop + 1
            data = self._file.read(low, high - low)
            yield data, [(cells[k], offsets[k] - low, min(ends[k] - low, len(data))) for k in range(start, stop)]
            start = stop

    def decode(self, cell: Cell, shrink: int = 1) -> NDArray[np.uint8]:
        """The pixels of a tile: uint8 [h, w, 3], the padding of edge tiles included.

        `shrink` 2, 4 or 8 lets libjpeg decode a JPEG tile at that part of its size. Raises SlideError.
        """
        i = cell[0] * self.cols + cell[1]
        size = int(self._sizes[i])
        stored = self._file.read(int(self._offsets[i]), size) if size <= self._largest else b""
        if self._heads:
            stream = b"".join(self.jpeg(cell, stored))
            return self._decode_jpeg(cell, stream, shrink)
        self._check(cell, stored)
        try:
            data, _, shape = self._decode_other(stored, cell[0] * self.cols + cell[1])  # type: ignore[misc]
            return np.ascontiguousarray(data[0, : shape[1], : shape[2]], np.uint8)
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that the tile is damaged
            raise SlideError(f"{self._file.path}: tile {cell} cannot be decoded ({_line(error)})") from None

    def _decode_jpeg(self, cell: Cell, stream: bytes, shrink: int) -> NDArray[np.uint8]:
        """The pixels of a JPEG tile; what libjpeg only warns of is an error, as it is to OpenSlide."""
        width, height = (side // shrink if shrink > 1 else 0 for side in self.tile_px)
        try:
            return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_width=width, min_height=height), np.uint8)
        except ValueError as error:
            raise SlideError(f"{self._file.path}: tile {cell} cannot be decoded ({_line(error)})") from None

    def _check(self, cell: Cell, stored: bytes) -> None:
        size = int(self._sizes[cell[0] * self.cols + cell[1]])
        if size == 0:
            raise SlideError(f"{self._file.path}: tile {cell} is missing: the file holds no bytes for it")
        if size > self._largest:
            raise SlideError(f"{self._file.path}: tile {cell} is damaged: the file says that it has {size} bytes")
        if len(stored) < size:
            raise SlideError(f"{self._file.path}: tile {cell} lies beyond the end of the file: is it complete?")


def name_of(tag: Any) -> str:
    """The name of a TIFF tag's value, its number where that is unknown."""
    return str(getattr(tag, "name", tag))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
    return TiffPage(_size_px(page), tile_px, offsets.astype(np.uint64), sizes.astype(np.uint64), heads)


def pyramid_tiles(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffTiles]:
    """Level -> tiles, for levels of these (width, height) that are each one tiled page of the file."""
    try:
        file = TiffFileBytes(path)
        pages = _jpeg_pages(file, sizes_px) or _any_pages(path, sizes_px)
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; OpenSlide reads the file all the same
        log.info("%s: tiles are not read directly (%s)", path, _line(error))
        return {}
    made = {level: TiffTiles.of(file, page) for level, page in pages.items()}
    return {level: tiles for level, tiles in made.items() if tiles is not None}


def _jpeg_pages(file: TiffFileBytes, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffPage]:
    """Level -> page where all that are tiled are of JPEG streams; nothing where any is not, or is damaged."""
    try:
        tiled = {_size_px(page): page for page in reversed(list(directories(file))) if Tag.TILE_WIDTH in page}
        pages = {level: jpeg_page(tiled[size]) for level, size in enumerate(sizes_px) if size in tiled}
    except ValueError as error:
        log.info("%s: %s", file.path, error)
        return {}
    return {level: page for level, page in pages.items() if page} if all(pages.values()) else {}


def _any_pages(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffPage | None]:
    with tifffile.TiffFile(path, _multifile=False) as tiff:  # never follow names of other files
        pages = [p for p in tiff.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled]
        by_size = {(p.imagewidth, p.imagelength): p for p in reversed(pages)}
        return {level: any_page(by_size[size]) for level, size in enumerate(sizes_px) if size in by_size}


def _size_px(page: Directory) -> tuple[int, int]:
    return page.number(Tag.IMAGE_WIDTH), page.number(Tag.IMAGE_LENGTH)
