"""Grid: every conversion between slide pixels, working pixels, micrometres and levels.

Frames. `_px0`: level-0 pixels of the slide. `_px`: pixels of the store's level 0, at the working mpp.
`_um`: micrometres. Points are (x, y), sizes (width, height), arrays row-major (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

from wsipipe.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NATIVE_TOLERANCE = 0.01
"""A slide level within 1 % of the working mpp is used unchanged; the grid keeps its true mpp."""

LEVEL_FACTOR = 4
"""Each coarser level of a store is 4 times smaller, as in scanner files."""

COARSEST_PX = 1024
"""Levels are added until the longer side is at most this."""


@overload
def ceil_div(a: int, b: int) -> int: ...
@overload
def ceil_div(a: NDArray[np.int64], b: int) -> NDArray[np.int64]: ...
def ceil_div(a: int | NDArray[np.int64], b: int) -> int | NDArray[np.int64]:
    """The quotient `a / b` rounded up; for arrays, per element."""
    return -(-a // b)


@dataclass(frozen=True)
class Window:
    """A rectangle in working pixels; it may extend beyond the slide."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int

    def grown(self, margin_px: int) -> Window:
        """The window extended by `margin_px` on each side, or shrunk if negative."""
        m = margin_px
        return Window(self.x_px - m, self.y_px - m, self.width_px + 2 * m, self.height_px + 2 * m)

    def intersect(self, other: Window) -> Window:
        """The overlap; its width or height is 0 if there is none."""
        left, top = max(self.x_px, other.x_px), max(self.y_px, other.y_px)
        right = min(self.x_px + self.width_px, other.x_px + other.width_px)
        bottom = min(self.y_px + self.height_px, other.y_px + other.height_px)
        return Window(left, top, max(0, right - left), max(0, bottom - top))


@dataclass(frozen=True)
class Grid:
    """The working frame of one slide and a lattice of patches in it.

    size_px0: (w, h) of the frame in level-0 px: the whole slide, or the area that the scanner recorded.
    mpp: (x, y) um per working px. scale: (x, y) level-0 px per working px.
    origin_px0: (x, y) of the frame's top left corner, where working px (0, 0) starts.
    Patch (row, col) starts at (col, row) * stride_px; the last row and column may extend over the border.
    """

    size_px0: tuple[int, int]
    mpp: tuple[float, float]
    scale: tuple[float, float]
    patch_px: int
    stride_px: int
    origin_px0: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.patch_px < 1 or self.stride_px < 1:
            raise ConfigError(
                f"patch {self.patch_px} px, stride {self.stride_px} px: both must be at least 1 (--patch, --stride)"
            )

    @classmethod
    def plan(
        cls,
        size_px0: tuple[int, int],
        mpp0: tuple[float, float],
        downsamples: Sequence[float],
        mpp: float,
        patches: tuple[int, int],
        origin_px0: tuple[int, int] = (0, 0),
    ) -> Grid:
        """Grid at `mpp` um/px for a slide with these levels; `patches` is (patch_px, stride_px).

        A level within `NATIVE_TOLERANCE` of `mpp` is used with its true mpp, so that its pixels are not resampled.
        """
        patch_px, stride_px = patches
        for d in downsamples:
            native = (mpp0[0] * d, mpp0[1] * d)
            if all(abs(n / mpp - 1) <= NATIVE_TOLERANCE for n in native):
                return cls(size_px0, native, (float(d), float(d)), patch_px, stride_px, origin_px0)
        return cls(size_px0, (mpp, mpp), (mpp / mpp0[0], mpp / mpp0[1]), patch_px, stride_px, origin_px0)

    @property
    def mean_mpp(self) -> float:
        """Mean of the x and y um per working px."""
        return sum(self.mpp) / 2

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the frame in whole working pixels, at least 1."""
        width, height = (max(1, math.floor(n / s + 1e-6)) for n, s in zip(self.size_px0, self.scale, strict=True))
        return width, height

    @property
    def cols(self) -> int:
        """Patches along x: enough to cover the width."""
        return max(0, math.ceil((self.size_px[0] - self.patch_px) / self.stride_px)) + 1

    @property
    def rows(self) -> int:
        """Patches along y: enough to cover the height."""
        return max(0, math.ceil((self.size_px[1] - self.patch_px) / self.stride_px)) + 1

    @property
    def levels(self) -> int:
        """Number of store levels, including the working level."""
        longest, n = max(self.size_px), 1
        while longest > COARSEST_PX:
            longest, n = math.ceil(longest / LEVEL_FACTOR), n + 1
        return n

    def level_shape(self, level: int) -> tuple[int, int]:
        """(height, width) in pixels of store level `level`."""
        w, h = self.size_px
        f = LEVEL_FACTOR**level
        return math.ceil(h / f), math.ceil(w / f)

    def cells(self, cell_px: int) -> tuple[int, int]:
        """(rows, columns) of `cell_px` squares that cover the slide."""
        w, h = self.size_px
        return math.ceil(h / cell_px), math.ceil(w / cell_px)

    @property
    def frame(self) -> Window:
        """The whole slide."""
        return Window(0, 0, *self.size_px)

    def window(self, row: int, col: int) -> Window:
        """The patch at (row, col), in working pixels."""
        return Window(col * self.stride_px, row * self.stride_px, self.patch_px, self.patch_px)

    def windows(self) -> Iterator[tuple[int, int, Window]]:
        """All patches in row-major order as (row, col, window)."""
        for row in range(self.rows):
            for col in range(self.cols):
                yield row, col, self.window(row, col)

    def with_patches(self, patch_px: int, stride_px: int) -> Grid:
        """Another lattice of patches in the same frame."""
        return replace(self, patch_px=patch_px, stride_px=stride_px)

    def to_px(self, xy_px0: tuple[float, float]) -> tuple[float, float]:
        """Convert a level-0 point to working pixels."""
        (x, y), (x0, y0) = xy_px0, self.origin_px0
        return (x - x0) / self.scale[0], (y - y0) / self.scale[1]

    def to_px0(self, xy_px: tuple[float, float]) -> tuple[float, float]:
        """Convert a point in working pixels to level-0 pixels."""
        return xy_px[0] * self.scale[0] + self.origin_px0[0], xy_px[1] * self.scale[1] + self.origin_px0[1]

    @property
    def origin_um(self) -> tuple[float, float]:
        """(x, y) in um from the slide's top left corner to the frame's."""
        x, y = (o / s * m for o, s, m in zip(self.origin_px0, self.scale, self.mpp, strict=True))
        return x, y

    def px_of_um(self, length_um: float) -> float:
        """Convert a length in um to working pixels (by the mean of x and y)."""
        return length_um * 2 / (self.mpp[0] + self.mpp[1])

    def window_of_px0(self, box_px0: tuple[float, float, float, float]) -> Window:
        """The level-0 box (x, y, width, height) as a window with edges rounded to working pixels."""
        x, y, w, h = box_px0
        (x1, y1), (x2, y2) = self.to_px((x, y)), self.to_px((x + w, y + h))
        return Window(round(x1), round(y1), round(x2) - round(x1), round(y2) - round(y1))

    def window_over_px0(self, box_px0: tuple[float, float, float, float]) -> Window:
        """The smallest window that contains every working pixel touched by the level-0 box (x, y, width, height)."""
        x, y, w, h = box_px0
        (x1, y1), (x2, y2) = self.to_px((x, y)), self.to_px((x + w, y + h))
        left, top = math.floor(x1 + 1e-6), math.floor(y1 + 1e-6)
        return Window(left, top, math.ceil(x2 - 1e-6) - left, math.ceil(y2 - 1e-6) - top)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready values; `from_dict` is the inverse."""
        return {
            "size_px0": list(self.size_px0),
            "origin_px0": list(self.origin_px0),
            "mpp": list(self.mpp),
            "scale": list(self.scale),
            "patch_px": self.patch_px,
            "stride_px": self.stride_px,
        }

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Grid:
        """The grid of `to_dict`."""
        d: dict[str, list[float]] = data  # type: ignore[assignment]
        (w, h), (x, y) = d["size_px0"], d["origin_px0"]
        return cls(
            (int(w), int(h)),
            (float(d["mpp"][0]), float(d["mpp"][1])),
            (float(d["scale"][0]), float(d["scale"][1])),
            int(data["patch_px"]),  # type: ignore[call-overload]
            int(data["stride_px"]),  # type: ignore[call-overload]
            (int(x), int(y)),
        )
