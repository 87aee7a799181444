"""The compressed tiles of one TIFF level: read by position, decoded one by one, or handed on as JPEG streams."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.jpeg import JpegHeads

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

_MANY_TILES = 50_000
"""Tiles of a file from which on what tifffile leaves in memory is collected at once."""

_GAP, _RUN = 1 << 14, 1 << 22
"""Bytes between two tiles that are read rather than skipped, and the most bytes read at once."""

_MOST_GROWTH = 4
"""A tile that claims to be larger than this many times its pixels is damaged: no encoder makes it so large."""


class TiffFileBytes:
    """A file read by position, so that threads may share it; closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on: fewer than `size` where the file ends. Raises SlideError."""
        try:
            return os.pread(self._file.fileno(), max(0, min(size, self.size - offset)), min(offset, self.size))
        except OSError as error:
            raise SlideError(f"{self.path}: it cannot be read at byte {offset} ({error.strerror})") from None


class TiffTiles:
    """The tiles (or strips) of one page. Safe to use from several threads.

    size_px, tile_px: (width, height) of the level and of a tile. is_jpeg: whether every tile is a JPEG stream, which
    may be copied as it is, or shrunk by libjpeg.
    """

    def __init__(self, file: TiffFileBytes, page: Any) -> None:
        self._file = file
        self.size_px = (int(page.imagewidth), int(page.imagelength))
        strip_px = (self.size_px[0], min(int(page.rowsperstrip), self.size_px[1]))
        self.tile_px = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else strip_px
        self.cols, self.rows = (-(-n // t) for n, t in zip(self.size_px, self.tile_px, strict=True))
        self._offsets = np.array(page.dataoffsets, np.uint64)
        self._sizes = np.array(page.databytecounts, np.uint64)
        self._largest = _MOST_GROWTH * 3 * self.tile_px[0] * self.tile_px[1] + 2**16
        self._heads: JpegHeads | None = None
        self._decode_other: Callable[..., Any] | None = None
        self.is_jpeg: bool = page.is_tiled and page.compression.name == "JPEG"
        if self.is_jpeg:
            self._heads = JpegHeads(page.jpegtables, self.tile_px, rgb=page.photometric.name == "RGB")
        else:
            self._decode_other = partial(page.decode, jpegtables=page.jpegtables)

    @staticmethod
    def of(file: TiffFileBytes, page: Any) -> TiffTiles | None:
        """The tiles of a page of 8-bit RGB in a known compression; None for any other page."""
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
        tiles = TiffTiles(file, page)
        small = tiles.tile_px[0] * tiles.tile_px[1] <= LARGEST_TILE_PX
        return tiles if small and len(tiles._offsets) == len(tiles._sizes) == tiles.rows * tiles.cols else None

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


def pyramid_tiles(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffTiles]:
    """Level -> tiles, for levels of these (width, height) that are each one tiled page of the file."""
    try:
        made = _tiles_of_sizes(path, sizes_px)
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; OpenSlide reads the file all the same
        log.info("%s: tiles are not read directly (%s)", path, _line(error))
        return {}
    if sum(t.rows * t.cols for t in made.values()) > _MANY_TILES:
        gc.collect()  # the pages, which hold each other, keep two Python integers a tile: more than all the rest
    return made


def _tiles_of_sizes(path: Path, sizes_px: Sequence[tuple[int, int]]) -> dict[int, TiffTiles]:
    file = TiffFileBytes(path)
    with tifffile.TiffFile(path, _multifile=False) as tiff:  # never follow names of other files
        pages = [p for p in tiff.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled]
        by_size = {(p.imagewidth, p.imagelength): p for p in reversed(pages)}
        made = {i: TiffTiles.of(file, by_size[size]) for i, size in enumerate(sizes_px) if size in by_size}
    return {level: tiles for level, tiles in made.items() if tiles is not None}
