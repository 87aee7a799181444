"""The pixels of one slide level, in its own px: tiles are decoded once while they are near, bad ones remembered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import Slide

KEPT_BYTES = 48 * 2**20
"""Decoded tiles that one reader keeps at most: two rows of tiles across a shard need 15 to 30 MB."""

WHITE = 255


@dataclass(frozen=True, order=True)
class BadTile:
    """A tile of a slide level that holds no readable pixels."""

    level: int
    row: int
    col: int


class LevelPixels:
    """Reads any box of a level; not for several threads.

    `shrink` 2, 4 or 8 lets libjpeg decode JPEG tiles at that part of their size: all px are then of the shrunk level.
    """

    def __init__(self, slide: Slide, level: int, shrink: int = 1) -> None:
        self._slide, self._level, self._shrink = slide, level, shrink
        self._tiles = slide.tiles(level)
        width, height = slide.level_size(level)
        self._size_px = (-(-width // shrink), -(-height // shrink))
        tile_px = self._tiles.tile_px if self._tiles else slide.tile_px(level)
        self._tile_px = (tile_px[0] // shrink, tile_px[1] // shrink)
        self._near: OrderedDict[tuple[int, int], NDArray[np.uint8] | str] = OrderedDict()
        self._most_near = max(4, KEPT_BYTES // (3 * self._tile_px[0] * self._tile_px[1]))

    def read(
        self, box_px: tuple[int, int, int, int], again_px: int = 0
    ) -> tuple[NDArray[np.uint8], dict[BadTile, str]]:
        """RGB of a box (x, y, w, h): uint8 [h, w, 3]; white outside the level and where a tile is bad.

        The second answer names those tiles, and why they could not be read. Boxes come one beside the other, and
        `again_px` along the right and lower border of each belong to its neighbours too: tiles that are wholly used
        are not kept.
        """
        x_px, y_px, width_px, height_px = box_px
        if not self._tiles:
            try:
                return self._region(*box_px), {}
            except SlideError:
                pass  # one of its tiles is bad: read them one by one
        bad: dict[BadTile, str] = {}
        self._forget_above(y_px)
        (tw, th), (width, height) = self._tile_px, self._size_px
        x2, y2 = min(x_px + width_px, width), min(y_px + height_px, height)
        out = np.empty((height_px, width_px, 3), np.uint8)
        if min(x_px, y_px) < 0 or (x2, y2) != (x_px + width_px, y_px + height_px):
            out[...] = WHITE
        if x2 <= max(x_px, 0) or y2 <= max(y_px, 0):
            return out, bad
        for row in range(max(y_px, 0) // th, -(-y2 // th)):
            for col in range(max(x_px, 0) // tw, -(-x2 // tw)):
                ya, yb = max(y_px, row * th), min(y2, row * th + th)
                xa, xb = max(x_px, col * tw), min(x2, col * tw + tw)
                place = out[ya - y_px : yb - y_px, xa - x_px : xb - x_px]
                used = row * th >= y_px and col * tw >= x_px
                used &= row * th + th + again_px <= y_px + height_px and col * tw + tw + again_px <= x_px + width_px
                tile = self._tile(row, col, keep=not used)
                if isinstance(tile, str):
                    bad[BadTile(self._level, row, col)] = tile
                    place[...] = WHITE
                else:
                    place[...] = tile[ya - row * th : yb - row * th, xa - col * tw : xb - col * tw]
        return out, bad

    def _forget_above(self, y_px: int) -> None:
        """Let go of the tiles above a line: levels are read from top to bottom."""
        first = y_px // self._tile_px[1]
        for cell in [c for c in self._near if c[0] < first]:
            del self._near[cell]

    def _tile(self, row: int, col: int, keep: bool) -> NDArray[np.uint8] | str:
        """A decoded tile from memory or file, or why it is bad; kept in memory for the boxes beside if so asked."""
        if (row, col) in self._near:
            self._near.move_to_end((row, col))
            return self._near[row, col]
        tile: NDArray[np.uint8] | str
        try:
            tile = self._decoded(row, col)
        except SlideError as error:
            tile = str(error)
        if keep:
            self._near[row, col] = tile
        if len(self._near) > self._most_near:
            self._near.popitem(last=False)
        return tile

    def _decoded(self, row: int, col: int) -> NDArray[np.uint8]:
        if self._tiles:
            return self._tiles.decode((row, col), self._shrink)
        (tw, th), (width, height) = self._tile_px, self._size_px
        x, y = col * tw, row * th
        return self._region(x, y, min(tw, width - x), min(th, height - y))

    def _region(self, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        down = self._slide.downsamples[self._level]
        return self._slide.read((round(x_px * down), round(y_px * down)), self._level, (width_px, height_px))
