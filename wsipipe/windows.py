"""Overlapping windows over a map and the weights that blend them into a partition of unity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window, ceil_div

BLENDS = ("hann", "constant")
"""Names of the blending weights."""

NEAR_PX = 64
"""A window is used if it shares a square of this side with a patch."""


def starts(length_px: int, window_px: int, stride_px: int) -> list[int]:
    """Starts of windows that cover [0, length_px); the last window ends at the border.

    A map shorter than the window gets one window, which extends over the border.
    """
    if length_px <= window_px:
        return [0]
    n = math.ceil((length_px - window_px) / stride_px)
    return [min(i * stride_px, length_px - window_px) for i in range(n + 1)]


def hann(window_px: int) -> NDArray[np.float32]:
    """Blending weight along one axis: float32 [window_px], in (0, 1], symmetric.

    w_i = (1 - cos(2 pi (i + 1/2) / n)) / 2. The half-pixel offset keeps every weight above zero, so a pixel covered
    by only one window remains defined after division by the sum of weights.
    """
    i = np.arange(window_px, dtype=np.float64)
    return (0.5 - 0.5 * np.cos(2 * np.pi * (i + 0.5) / window_px)).astype(np.float32)


def blend_weight(window_px: int, blend: str = "hann") -> NDArray[np.float32]:
    """Separable two-dimensional weight, `blend` being one of `BLENDS`: float32 [window_px, window_px], above 0."""
    if blend not in BLENDS:
        raise ValueError(f"blend {blend!r} is not one of {', '.join(BLENDS)}")
    w = hann(window_px) if blend == "hann" else np.ones(window_px, np.float32)
    return np.outer(w, w)


@dataclass(frozen=True, eq=False)
class WindowLattice:
    """Square windows on a lattice over a map, some of them used.

    ys, xs: int64, starts of the rows and columns, ascending. used: bool [rows, cols].
    """

    side_px: int
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]
    used: NDArray[np.bool_]

    @classmethod
    def plan(
        cls, size_px: tuple[int, int], side_px: int, stride_px: int, patches: Iterable[Window] | None = None
    ) -> WindowLattice:
        """Windows every `stride_px` over a map of `size_px` (w, h).

        All are used, or with `patches` those that share a square of `NEAR_PX` with a patch.
        """
        xs, ys = (np.array(starts(n, side_px, stride_px), np.int64) for n in size_px)
        every = np.ones((len(ys), len(xs)), bool)
        return cls(side_px, ys, xs, every if patches is None else _near(size_px, side_px, ys, xs, patches))

    def touching(self, area: Window) -> Iterator[Window]:
        """The used windows that overlap `area`, row by row from left to right."""
        cols = self._between(self.xs, area.x_px, area.width_px)
        rows = self._between(self.ys, area.y_px, area.height_px)
        for row in range(rows.start, rows.stop):
            for x in self.xs[cols][self.used[row, cols]]:
                yield Window(int(x), int(self.ys[row]), self.side_px, self.side_px)

    def count(self, area: Window) -> int:
        """Number of used windows that overlap `area`."""
        cols = self._between(self.xs, area.x_px, area.width_px)
        return int(self.used[self._between(self.ys, area.y_px, area.height_px), cols].sum())

    def _between(self, first_px: NDArray[np.int64], start_px: int, length_px: int) -> slice:
        """The rows or columns of the lattice that overlap [start_px, start_px + length_px)."""
        return slice(
            int(np.searchsorted(first_px, start_px - self.side_px, "right")),
            int(np.searchsorted(first_px, start_px + length_px, "left")),
        )


def _near(
    size_px: tuple[int, int], side_px: int, ys: NDArray[np.int64], xs: NDArray[np.int64], patches: Iterable[Window]
) -> NDArray[np.bool_]:
    """Which windows share a square of `NEAR_PX` with a patch: bool [len(ys), len(xs)]."""
    width, height = (ceil_div(n, NEAR_PX) for n in size_px)
    occupied = np.zeros((height, width), bool)
    for p in patches:
        occupied[_squares(p.y_px, p.height_px), _squares(p.x_px, p.width_px)] = True
    (top, bottom), (left, right) = (
        (np.minimum(first // NEAR_PX, n), np.minimum(ceil_div(first + side_px, NEAR_PX), n))
        for first, n in ((ys, height), (xs, width))
    )
    near = np.empty((len(ys), len(xs)), bool)
    before = np.zeros(width + 1, np.int64)  # occupied columns to the left
    for i in range(len(ys)):
        occupied[top[i] : bottom[i]].any(0).cumsum(out=before[1:])
        near[i] = before[right] > before[left]
    return near


def _squares(start_px: int, length_px: int) -> slice:
    return slice(start_px // NEAR_PX, ceil_div(start_px + length_px, NEAR_PX))
