"""Read a slide at the working resolution: area mean of the nearest finer level, with exact phase."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window
from wsipipe.slides.area_mean import WHOLE_PX, area_mean
from wsipipe.slides.base import Slide
from wsipipe.slides.level import BadTile, LevelPixels

MAX_SOURCE_PX = 2**19
"""Source pixels resampled at once; a larger window is split into halves."""


class SlideView:
    """A slide in the frame of `grid`. Not thread-safe; caches the tiles that it decoded last.

    `fast` lets libjpeg shrink JPEG tiles by 2, 4 or 8 while decoding: faster, but only close to the area mean.
    Bad tiles are read as white and collected in `bad`, each with the reason.
    """

    def __init__(self, slide: Slide, grid: Grid, fast: bool = False) -> None:
        self._slide, self._grid, self._fast = slide, grid, fast
        self._levels: dict[tuple[int, int], LevelPixels] = {}
        self.bad: dict[BadTile, str] = {}

    def read(self, window: Window, factor: int = 1) -> NDArray[np.uint8]:
        """RGB of `window` at `factor` times the working mpp: uint8 [h, w, 3].

        `window` is in pixels of this coarser frame; its pixel i covers working pixels [i * factor, (i + 1) * factor).
        Each output pixel is the mean over the source area that it covers, halves rounded up; nothing is resampled if a
        level has exactly this resolution. If the best level has a bad tile, the next finer level is read.
        """
        for level in _fine_enough(self._slide, min(self._grid.scale) * factor):
            rgb, bad = self._read_level(level, window, factor)
            if not bad:
                return rgb
        self.bad |= bad
        return rgb

    def _read_level(self, level: int, window: Window, factor: int) -> tuple[NDArray[np.uint8], dict[BadTile, str]]:
        """`window` from one level of the slide, and the bad tiles in it."""
        grid, down = self._grid, self._slide.downsamples[level]
        shrink = self._shrink(level, min(grid.scale) * factor / down)
        down *= shrink
        steps = (grid.scale[0] * factor / down, grid.scale[1] * factor / down)
        at = (window.x_px, window.y_px)
        first = [(o + n * s * factor) / down for o, n, s in zip(grid.origin_px0, at, grid.scale, strict=True)]
        last = [first[0] + window.width_px * steps[0], first[1] + window.height_px * steps[1]]
        low = [math.floor(f + WHOLE_PX) for f in first]
        size = [math.ceil(e - WHOLE_PX) - a for e, a in zip(last, low, strict=True)]
        if size[0] * size[1] > MAX_SOURCE_PX and window.width_px * window.height_px > 1 and max(steps) > 1 + WHOLE_PX:
            return self._in_halves(level, window, factor)
        if (level, shrink) not in self._levels:
            self._levels[level, shrink] = LevelPixels(self._slide, level, shrink)
        start = (first[0] - low[0], first[1] - low[1])
        whole = max(*start, *(abs(s - round(s)) for s in steps)) < WHOLE_PX
        source, bad = self._levels[level, shrink].read((low[0], low[1], size[0], size[1]), 0 if whole else 1)
        return area_mean(source, start, steps, (window.width_px, window.height_px)), bad

    def _in_halves(self, level: int, window: Window, factor: int) -> tuple[NDArray[np.uint8], dict[BadTile, str]]:
        """As `_read_level`; bounds the memory."""
        x, y, w, h = window.x_px, window.y_px, window.width_px, window.height_px
        if w >= h:
            parts = (Window(x, y, w // 2, h), Window(x + w // 2, y, w - w // 2, h))
        else:
            parts = (Window(x, y, w, h // 2), Window(x, y + h // 2, w, h - h // 2))
        (one, bad), (two, more) = (self._read_level(level, part, factor) for part in parts)
        return np.concatenate([one, two], axis=int(w >= h)), bad | more

    def _shrink(self, level: int, step: float) -> int:
        """The factor by which libjpeg may shrink the tiles of a level if an output pixel is `step` level px."""
        tiles = self._slide.tiles(level) if self._fast else None
        if tiles is None or not tiles.is_jpeg:
            return 1
        return max(
            s for s in (1, 2, 4, 8) if s == 1 or (s <= step + WHOLE_PX and not any(n % s for n in tiles.tile_px))
        )


def _fine_enough(slide: Slide, scale: float) -> list[int]:
    """The levels not coarser than `scale` level-0 px per px, coarsest first; level 0 if all are coarser."""
    fits = [i for i, d in enumerate(slide.downsamples) if d <= scale * (1 + 1e-6)]
    return sorted(fits, key=lambda i: -slide.downsamples[i]) or [0]


def source_level(slide: Slide, grid: Grid, factor: int = 1) -> int:
    """The coarsest level of a slide whose mpp is at most `factor` times the working mpp."""
    return _fine_enough(slide, min(grid.scale) * factor)[0]


def steps_px(slide: Slide, grid: Grid, factor: int = 1) -> tuple[float, float]:
    """(x, y) px of `source_level` per px at `factor` times the working mpp; (1, 1) if nothing is resampled."""
    down = slide.downsamples[source_level(slide, grid, factor)]
    return grid.scale[0] * factor / down, grid.scale[1] * factor / down
