"""Polygons of an annotation file, and their pixels by centre: in one colour, or painted one over the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window

MOST_VERTICES = 5_000_000

FARTHEST_PX0 = 1e7
"""Coordinates beyond it are errors: slides are at most some 10**6 px wide."""

_CROSSINGS = 2**20
"""Crossings of edges with rows computed at once; bounds the memory whatever the polygons are."""

Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """One polygon: `rings` float64 [N, 2] (x, y) in level-0 px, the outline and then its holes; `name` of its class.

    `name` is empty where the file gives no class. `above`: the names of the groups that the class belongs to, nearest
    first, for what is said of a whole group.
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
    """Which pixels have their centre in a region: bool [h, w] of `shape`.

    The frame starts at `origin_px0`; its pixels are `px0_per_px` (x, y) level-0 px large. Within a region rings are
    even-odd, so that holes are empty; regions add up. Of centres on an edge, those at its left or top end are inside.
    """
    out = np.zeros(shape, np.bool_)
    for region in regions:
        _Rings.of(region, origin_px0, px0_per_px).paint(out, (0, 0), True)
    return out


class Painting:
    """Regions in the frame of a slide, painted in their order: a later one covers an earlier one.

    values: what each region paints; `ground` is where there is none. Only the asked window is ever held as pixels.
    """

    def __init__(self, regions: Sequence[Region], values: Sequence[int], grid: Grid, ground: int = 0) -> None:
        self._regions = [_Rings.of(r, grid.origin_px0, grid.scale) for r in regions]
        self._values, self._ground = values, ground

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The values of the pixels of `window` (working px) by their centres: uint8 [h, w]."""
        out = np.full((window.height_px, window.width_px), self._ground, np.uint8)
        for region, value in zip(self._regions, self._values, strict=True):
            region.paint(out, (window.x_px, window.y_px), value)
        return out


@dataclass(frozen=True, eq=False)
class _Rings:
    """A region in a frame: rings (x, y) in its px, and the corners (x, y) of the box that they lie in, whole px."""

    rings: Sequence[Ring]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, region: Region, origin_px0: tuple[int, int], px0_per_px: tuple[float, float]) -> _Rings:
        """In the frame that starts at `origin_px0` and has pixels of `px0_per_px` (x, y) level-0 px."""
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
    """Pixels of `window` whose centre an odd number of edges has to its left: rings [N, 2] (x, y) in px -> bool [h, w].

    Each edge flips, in every row whose centre line it crosses, the pixels from the crossing on. All is computed in the
    frame of the rings, so that a pixel comes out the same in whichever window it is asked for.
    """
    x0, y0, width, height = window.x_px, window.y_px, window.width_px, window.height_px
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        closed, chunk = np.concatenate([ring, ring[:1]]), max(1, _CROSSINGS // height)
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
