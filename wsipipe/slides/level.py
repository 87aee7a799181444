"""The pixels of one slide level, in its own px: caches decoded tiles and remembers bad ones."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.geometry import ceil_div
from wsipipe.slides.base import Slide

CACHE_BYTES = 48 * 2**20
"""Capacity of the tile cache of one LevelPixels: two rows of tiles across a shard take 15 to 30 MB."""

WHITE = 255


@dataclass(frozen=True, order=True)
class BadTile:
    """A tile of a slide level whose pixels cannot be read."""

    level: int
    row: int
    col: int


class LevelPixels:
    """Reads boxes of a level. Not thread-safe.

    `shrink` 2, 4 or 8 makes libjpeg decode JPEG tiles at that fraction of their size; every px is then a px of the
    shrunk level.
    """

    def __init__(self, slide: Slide, level: int, shrink: int = 1) -> None:
        self._slide, self._level, self._shrink = slide, level, shrink
        self._tiles = slide.tiles(level)
        width, height = slide.level_size(level)
        self._size_px = (ceil_div(width, shrink), ceil_div(height, shrink))
        tile_px = self._tiles.tile_px if self._tiles else slide.tile_px(level)
        self._tile_px = (tile_px[0] // shrink, tile_px[1] // shrink)
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8] | str] = OrderedDict()
        self._capacity = max(4, CACHE_BYTES // (3 * self._tile_px[0] * self._tile_px[1]))

    def read(
        self, box_px: tuple[int, int, int, int], overlap_px: int = 0
    ) -> tuple[NDArray[np.uint8], dict[BadTile, str]]:
        """RGB of a box (x, y, w, h): uint8 [h, w, 3], white outside the level and where a tile is bad.

        Also returns the bad tiles of the box, each with the reason. Callers read adjacent boxes that overlap by
        `overlap_px` at the right and lower border; a tile that no other box needs is not cached.
        """
        if not self._tiles:
            try:
                return self._region(*box_px), {}
            except SlideError:
                pass  # one of its tiles is bad: read them one by one
        self._evict_above(box_px[1])
        return self._read_tiles(box_px, overlap_px)

    def _read_tiles(
        self, box_px: tuple[int, int, int, int], overlap_px: int
    ) -> tuple[NDArray[np.uint8], dict[BadTile, str]]:
        """As `read`, tile by tile."""
        x_px, y_px, width_px, height_px = box_px
        bad: dict[BadTile, str] = {}
        (tw, th), (width, height) = self._tile_px, self._size_px
        x2, y2 = min(x_px + width_px, width), min(y_px + height_px, height)
        out = np.empty((height_px, width_px, 3), np.uint8)
        if min(x_px, y_px) < 0 or (x2, y2) != (x_px + width_px, y_px + height_px):
            out[...] = WHITE
        if x2 <= max(x_px, 0) or y2 <= max(y_px, 0):
            return out, bad
        for row in range(max(y_px, 0) // th, ceil_div(y2, th)):
            for col in range(max(x_px, 0) // tw, ceil_div(x2, tw)):
                ya, yb = max(y_px, row * th), min(y2, row * th + th)
                xa, xb = max(x_px, col * tw), min(x2, col * tw + tw)
                target = out[ya - y_px : yb - y_px, xa - x_px : xb - x_px]
                tile = self._tile(row, col, cache=not self._is_inside(row, col, box_px, overlap_px))
                if isinstance(tile, str):
                    bad[BadTile(self._level, row, col)] = tile
                    target[...] = WHITE
                else:
                    target[...] = tile[ya - row * th : yb - row * th, xa - col * tw : xb - col * tw]
        return out, bad

    def _is_inside(self, row: int, col: int, box_px: tuple[int, int, int, int], overlap_px: int) -> bool:
        """Whether no adjacent box needs the tile: it lies inside the box and outside the overlap."""
        (tw, th), (x, y, width, height) = self._tile_px, box_px
        return (
            row * th >= y
            and col * tw >= x
            and row * th + th + overlap_px <= y + height
            and col * tw + tw + overlap_px <= x + width
        )

    def _evict_above(self, y_px: int) -> None:
        """Evict the tiles above a line: levels are read from top to bottom."""
        first = y_px // self._tile_px[1]
        for cell in [c for c in self._cache if c[0] < first]:
            del self._cache[cell]

    def _tile(self, row: int, col: int, cache: bool) -> NDArray[np.uint8] | str:
        """A decoded tile from the cache or the file, or the reason why it is bad; `cache` stores it."""
        if (row, col) in self._cache:
            self._cache.move_to_end((row, col))
            return self._cache[row, col]
        tile: NDArray[np.uint8] | str
        try:
            tile = self._decode(row, col)
        except SlideError as error:
            tile = str(error)
        if cache:
            self._cache[row, col] = tile
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return tile

    def _decode(self, row: int, col: int) -> NDArray[np.uint8]:
        """The pixels of a tile: uint8 [h, w, 3]."""
        if self._tiles:
            return self._tiles.decode((row, col), self._shrink)
        (tw, th), (width, height) = self._tile_px, self._size_px
        x, y = col * tw, row * th
        return self._region(x, y, min(tw, width - x), min(th, height - y))

    def _region(self, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """The pixels of a box as the slide's reader gives them."""
        down = self._slide.downsamples[self._level]
        return self._slide.read((round(x_px * down), round(y_px * down)), self._level, (width_px, height_px))
