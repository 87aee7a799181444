"""The compressed tiles of one TIFF level: read by position, decoded one by one, or copied as JPEG streams."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.geometry import ceil_div
from wsipipe.slides.tiff.file import Tag, TiffFileBytes, directories
from wsipipe.slides.tiff.jpeg import JpegHeaders
from wsipipe.slides.tiff.pages import TiffPage, parse_jpeg_page, parse_page, size_px_of

log = logging.getLogger(__name__)

Cell = tuple[int, int]
"""(row, col) of a tile in its level."""

MAX_TILE_PX = 2**26
"""Pixels of the largest tile or strip that is decoded; a larger one is damage or an attack."""

_MAX_GAP, _MAX_RUN = 1 << 14, 1 << 22
"""Tiles at most _MAX_GAP bytes apart are read together, up to _MAX_RUN bytes at once."""

_MAX_EXPANSION = 4
"""A compressed tile larger than this multiple of its pixels is damaged: no encoder produces it."""


class TiffTiles:
    """The tiles (or strips) of one page. Thread-safe.

    size_px, tile_px: (width, height) of the level and of a tile. is_jpeg: whether every tile is a JPEG stream, which
    can be copied unchanged or shrunk by libjpeg.
    """

    def __init__(self, file: TiffFileBytes, page: TiffPage) -> None:
        self._file = file
        self.size_px, self.tile_px = page.size_px, page.tile_px
        self.cols, self.rows = (ceil_div(n, t) for n, t in zip(self.size_px, self.tile_px, strict=True))
        self._offsets, self._sizes = page.offsets, page.sizes
        self._max_bytes = _MAX_EXPANSION * 3 * self.tile_px[0] * self.tile_px[1] + 2**16
        self._headers, self._decode_other = page.jpeg, page.decode
        self.is_jpeg = page.jpeg is not None

    @staticmethod
    def of(file: TiffFileBytes, page: TiffPage | None) -> TiffTiles | None:
        """The tiles of a page; None if there is no page, a tile is too large, or the number of tiles is wrong."""
        if page is None or min(page.tile_px) < 1 or page.tile_px[0] * page.tile_px[1] > MAX_TILE_PX:
            return None
        tiles = TiffTiles(file, page)
        return tiles if len(page.offsets) == len(page.sizes) == tiles.rows * tiles.cols else None

    def stored(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, bytes]]:
        """The compressed bytes of tiles, in the order of `cells`.

        b"" for a tile that is missing or whose recorded size is implausible; truncated at the end of the file.
        """
        for data, spans in self._runs(cells):
            for cell, start, end in spans:
                yield cell, data[start:end]

    def jpegs(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, tuple[bytes, bytes] | None]]:
        """Tiles as complete JPEG streams in two parts, header and rest; None for a damaged tile."""
        headers = self._jpeg_headers()
        for data, spans in self._runs(cells):
            for cell, start, end in spans:
                try:
                    yield cell, headers.standalone(data, start, end)
                except ValueError:
                    yield cell, None

    def jpeg(self, cell: Cell, stored: bytes) -> tuple[bytes, bytes]:
        """The stored bytes of a tile as a complete JPEG stream, as from `jpegs`. Raises SlideError if it is damaged."""
        headers = self._jpeg_headers()
        self._check(cell, stored)
        try:
            return headers.standalone(stored)
        except ValueError as error:
            raise SlideError(f"{self._file.path}: tile {cell} is damaged: {error}") from None

    def _jpeg_headers(self) -> JpegHeaders:
        if self._headers is None:
            raise TypeError("only JPEG tiles can be copied")
        return self._headers

    def _runs(self, cells: Sequence[Cell]) -> Iterator[tuple[bytes, list[tuple[Cell, int, int]]]]:
        """Tiles that are close together in the file, read at once: their bytes, and (cell, start, end) of each tile."""
        indices = np.array(cells, np.intp).reshape(-1, 2) @ (self.cols, 1)
        offsets, sizes = self._offsets[indices].tolist(), self._sizes[indices].tolist()
        ends = [o + n if n <= self._max_bytes else o for o, n in zip(offsets, sizes, strict=True)]
        start = 0
        while start < len(cells):
            low, high, stop = offsets[start], ends[start], start + 1
            while stop < len(cells) and high <= offsets[stop] <= high + _MAX_GAP and ends[stop] - low <= _MAX_RUN:
                high, stop = ends[stop], stop + 1
            data = self._file.read(low, high - low)
            yield data, [(cells[k], offsets[k] - low, min(ends[k] - low, len(data))) for k in range(start, stop)]
            start = stop

    def decode(self, cell: Cell, shrink: int = 1) -> NDArray[np.uint8]:
        """The pixels of a tile, including the padding of edge tiles: RGB uint8 [h, w, 3].

        `shrink` 2, 4 or 8 makes libjpeg decode a JPEG tile at that fraction of its size. Raises SlideError.
        """
        i = cell[0] * self.cols + cell[1]
        size = int(self._sizes[i])
        stored = self._file.read(int(self._offsets[i]), size) if size <= self._max_bytes else b""
        if self._headers:
            stream = b"".join(self.jpeg(cell, stored))
            return self._decode_jpeg(cell, stream, shrink)
        self._check(cell, stored)
        try:
            data, _, shape = self._decode_other(stored, cell[0] * self.cols + cell[1])  # type: ignore[misc]
            return np.ascontiguousarray(data[0, : shape[1], : shape[2]], np.uint8)
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that the tile is damaged
            raise SlideError(f"{self._file.path}: tile {cell} cannot be decoded ({_line(error)})") from None

    def _decode_jpeg(self, cell: Cell, stream: bytes, shrink: int) -> NDArray[np.uint8]:
        """The pixels of a JPEG tile; a warning of libjpeg is an error, as in OpenSlide."""
        width, height = (side // shrink if shrink > 1 else 0 for side in self.tile_px)
        try:
            return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_width=width, min_height=height), np.uint8)
        except ValueError as error:
            raise SlideError(f"{self._file.path}: tile {cell} cannot be decoded ({_line(error)})") from None

    def _check(self, cell: Cell, stored: bytes) -> None:
        """Raise SlideError unless the file holds all bytes of a tile."""
        size = int(self._sizes[cell[0] * self.cols + cell[1]])
        if size == 0:
            raise SlideError(f"{self._file.path}: tile {cell} is missing: the file has no bytes for it")
        if size > self._max_bytes:
            raise SlideError(f"{self._file.path}: tile {cell} is damaged: its size is given as {size} bytes")
        if len(stored) < size:
            raise SlideError(f"{self._file.path}: tile {cell} lies beyond the end of the file; is the file complete?")


def _line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def pyramid_tiles(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffTiles]:
    """Level -> tiles, for those levels of these (width, height) that are a tiled page of the file."""
    try:
        file = TiffFileBytes(path)
        pages = _jpeg_pages(file, sizes_px) or _any_pages(path, sizes_px)
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; OpenSlide reads the file all the same
        log.info("%s: not decoding tiles directly (%s)", path, _line(error))
        return {}
    found = {level: TiffTiles.of(file, page) for level, page in pages.items()}
    return {level: tiles for level, tiles in found.items() if tiles is not None}


def _jpeg_pages(file: TiffFileBytes, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffPage]:
    """Level -> page, if the tiles of all tiled levels are JPEG streams; empty if one is not, or is damaged."""
    try:
        tiled = {size_px_of(page): page for page in reversed(list(directories(file))) if Tag.TILE_WIDTH in page}
        pages = {level: parse_jpeg_page(tiled[size]) for level, size in enumerate(sizes_px) if size in tiled}
    except ValueError as error:
        log.info("%s: %s", file.path, error)
        return {}
    return {level: page for level, page in pages.items() if page} if all(pages.values()) else {}


def _any_pages(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffPage | None]:
    """Level -> page in any compression, read with tifffile; None for a page that is not 8-bit RGB."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:  # never open other files that the header names
        pages = [p for p in tiff.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled]
        by_size = {(p.imagewidth, p.imagelength): p for p in reversed(pages)}
        return {level: parse_page(by_size[size]) for level, size in enumerate(sizes_px) if size in by_size}
