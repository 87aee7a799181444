"""Rasterise the polygons of an annotation file: the pixels whose centres they contain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window

MAX_VERTICES = 5_000_000
"""Vertices that one annotation file may have."""

MAX_COORDINATE_PX0 = 1e7
"""Larger coordinates are errors: slides are at most about 10**6 px wide."""

_MAX_CROSSINGS = 2**20
"""Crossings of edges with pixel rows computed at once; bounds the memory for any polygon."""

Ring = NDArray[np.float64]
"""Vertices of a closed line: float64 [N, 2] (x, y)."""


@dataclass(frozen=True)
class Region:
    """One polygon. `rings`: its outline and then its holes, in level-0 px. `name`: its class, empty if it has none.

    `above`: the groups that contain the class, nearest first; a value map may name a group in place of its classes.
    """

    rings: tuple[Ring, ...]
    name: str = ""
    above: tuple[str, ...] = ()


def rasterise(
    regions: Iterable[Region],
    shape: tuple[int, int],
    px0_per_px: tuple[float, float],
    origin_px0: tuple[int, int] = (0, 0),
) -> NDArray[np.bool_]:
    """Pixels whose centre lies in any of the regions: bool [h, w] of `shape`.

    The frame starts at `origin_px0`; its pixels are `px0_per_px` (x, y) level-0 px large. The rings of a region follow
    the even-odd rule, so that holes are empty. Of the centres on an edge, those on left and top edges are inside.
    """
    out = np.zeros(shape, np.bool_)
    for region in regions:
        _Rings.of(region, origin_px0, px0_per_px).paint(out, (0, 0), True)
    return out


class RegionPainter:
    """Regions in the frame of a slide, painted in this order: a later region covers an earlier one.

    values: the value of each region; `background` is the value outside. Only the requested window is rasterised.
    """

    def __init__(self, regions: Sequence[Region], values: Sequence[int], grid: Grid, background: int = 0) -> None:
        self._regions = [_Rings.of(r, grid.origin_px0, grid.scale) for r in regions]
        self._values, self._background = values, background

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The values at the pixel centres of `window` (working px): uint8 [h, w]."""
        out = np.full((window.height_px, window.width_px), self._background, np.uint8)
        for region, value in zip(self._regions, self._values, strict=True):
            region.paint(out, (window.x_px, window.y_px), value)
        return out


@dataclass(frozen=True, eq=False)
class _Rings:
    """A region in the px of a frame: its rings, and the corners (x, y) of their bounding box in whole px."""

    rings: Sequence[Ring]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, region: Region, origin_px0: tuple[int, int], px0_per_px: tuple[float, float]) -> _Rings:
        """The region in the frame that starts at `origin_px0`, with pixels of `px0_per_px` (x, y) level-0 px."""
        rings = [(ring - origin_px0) / px0_per_px for ring in region.rings]
        return cls(rings, np.floor([r.min(0) for r in rings]).min(0), np.ceil([r.max(0) for r in rings]).max(0))

    def paint(self, out: NDArray[np.generic], corner_px: tuple[int, int], value: int) -> None:
        """Set the pixels of the region to `value`, in place: `out` [h, w] starts at `corner_px` (x, y)."""
        (x0, y0), (height, width) = corner_px, out.shape
        x1, y1 = np.maximum(self.low, (x0, y0)).astype(int)
        x2, y2 = np.minimum(self.high, (x0 + width, y0 + height)).astype(int)
        if x1 < x2 and y1 < y2:
            inside = _even_odd(self.rings, Window(x1, y1, x2 - x1, y2 - y1))
            out[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0][inside] = value


def _even_odd(rings: Iterable[Ring], window: Window) -> NDArray[np.bool_]:
    """Pixels of `window` with an odd number of edges to the left of their centre: rings in px -> bool [h, w].

    In every row whose centre line it crosses, an edge flips the pixels to the right of the crossing. All coordinates
    are in the frame of the rings, so that a pixel has the same value in every window.
    """
    x0, y0, width, height = window.x_px, window.y_px, window.width_px, window.height_px
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        closed, chunk = np.concatenate([ring, ring[:1]]), max(1, _MAX_CROSSINGS // height)
        for first in range(0, len(ring), chunk):
            start, end = ring[first : first + chunk], closed[first + 1 : first + chunk + 1]
            up = end[:, 1:] < start[:, 1:]
            (x1, y1), (x2, y2) = np.where(up, end, start).T, np.where(up, start, end).T
            top, bottom = (np.clip(np.ceil(y - 0.5), y0, y0 + height).astype(np.intp) for y in (y1, y2))
            rows = bottom - top
            edge = np.repeat(np.arange(len(rows)), rows)
            row = np.arange(len(edge)) - (np.cumsum(rows) - rows - top)[edge]
            x = x1[edge] + (row + 0.5 - y1[edge]) * ((x2 - x1)[edge] / (y2 - y1)[edge])
            col = np.clip(np.ceil(x - 0.5), x0, x0 + width).astype(np.intp) - x0
            np.bitwise_xor.at(flips, (row - y0, col), np.uint8(1))
    return np.asarray(np.bitwise_xor.accumulate(flips, axis=1)[:, :width] == 1)
