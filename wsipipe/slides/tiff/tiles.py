"""The compressed tiles of one TIFF level: read by position, decoded one by one, or handed on as JPEG streams."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.tiff.file import Tag, TiffFileBytes, directories
from wsipipe.slides.tiff.jpeg import JpegHeads
from wsipipe.slides.tiff.pages import TiffPage, any_page, jpeg_page, size_px_of

log = logging.getLogger(__name__)

Cell = tuple[int, int]
"""(row, col) of a tile in the lattice of its level."""

LARGEST_TILE_PX = 2**26
"""Pixels of the largest tile or strip that is decoded at once; a larger one is an error or an attack."""

_GAP, _RUN = 1 << 14, 1 << 22
"""Bytes between two tiles that are read rather than skipped, and the most bytes read at once."""

_MOST_GROWTH = 4
"""A tile that claims to be larger than this many times its pixels is damaged: no encoder makes it so large."""


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        tiled = {size_px_of(page): page for page in reversed(list(directories(file))) if Tag.TILE_WIDTH in page}
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
