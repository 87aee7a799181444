"""The overview of a slide, read in strips: optical density, pen and black by colour, and the contrast of each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window, ceil_div
from wsipipe.slides.area_mean import block_mean


class OverviewKind(IntEnum):
    """What a pixel of the overview shows; only TISSUE is tiled. Not the values of `labels/tissue` (`labels.Tissue`)."""

    GLASS = 0
    TISSUE = 1
    PEN = 2
    BLUR = 3
    BLACK = 4


MAX_OVERVIEW_PX = 2048**2
"""Pixels of an overview; a larger slide gets a coarser overview, so that memory does not grow with the slide."""

BLACK_BELOW = 30
"""Brightness (0..255) below which all channels of a black border or scanner frame lie; tissue is never as dark."""

NEAR_UM = 4.0
"""Distance of the points whose contrast is compared with that of points 4 times as far apart."""

BLOCK_UM = 48.0
"""Side of the blocks that vote, each with its 8 neighbours, on whether it is out of focus."""

OD_UNITS = 255
"""Steps per unit of quantised optical density; an optical density above 1 is stored as 1."""

_STRIP_ROWS = 64
"""Overview rows read at once: 256 px at half the step, which are whole rows of tiles in most files."""

Uint8Array = NDArray[np.uint8]

ReadWindow = Callable[[Window, int], Uint8Array]
"""read(window, factor): RGB uint8 [h, w, 3] of `window`, in pixels `factor` times coarser than working px."""


@dataclass(frozen=True)
class OverviewFrame:
    """The frame of an overview: (height, width) px of `step_px` working px, `scale` (x, y) level-0 px and `mpp` um."""

    shape: tuple[int, int]
    step_px: int
    scale: tuple[float, float]
    mpp: float

    @classmethod
    def plan(cls, grid: Grid, mpp: float) -> OverviewFrame:
        """A frame near `mpp` with at most MAX_OVERVIEW_PX pixels; the step is even, so that it can be halved."""
        step = grid.px_of_um(mpp)
        step_px = 2 * max(1, round(step / 2)) if step >= 1.5 else 1
        width, height = grid.size_px
        while ceil_div(width, step_px) * ceil_div(height, step_px) > MAX_OVERVIEW_PX:
            step_px += 2 - step_px % 2
        scale = (grid.scale[0] * step_px, grid.scale[1] * step_px)
        return cls((ceil_div(height, step_px), ceil_div(width, step_px)), step_px, scale, step_px / grid.px_of_um(1.0))

    @property
    def oversampling(self) -> int:
        """Pixels read per overview pixel and side: 2 if half the step is still about NEAR_UM, otherwise 1.

        More would be slower and would not improve the detection of blur.
        """
        return 2 if self.step_px % 2 == 0 and self.mpp / 2 > 0.75 * NEAR_UM else 1

    @property
    def block_px(self) -> int:
        """Overview pixels along a block of BLOCK_UM, at least 6."""
        return max(6, round(BLOCK_UM / self.mpp))

    @property
    def near_px(self) -> int:
        """NEAR_UM in pixels as read, at least 1."""
        return max(1, round(NEAR_UM * self.oversampling / self.mpp))


@dataclass(frozen=True)
class Overview:
    """What is kept of a slide's overview: a few bytes per overview pixel.

    od: mean optical density over RGB in 1 / OD_UNITS, uint8 [h, w]. kind: by colour alone, uint8 [h, w] of GLASS, PEN
    and BLACK. brightness: count of each channel value, int64 [256]. contrast: squared difference of points NEAR_UM
    and 4 times as far apart in each block, float32 [2, rows, cols].
    """

    od: Uint8Array
    kind: Uint8Array
    brightness: NDArray[np.int64]
    contrast: NDArray[np.float32]


def read_overview(read: ReadWindow, grid: Grid, frame: OverviewFrame, qc: bool) -> Overview:
    """Read the overview of a slide strip by strip; without `qc`, pen and contrast are not computed."""
    (height, width), block, n = frame.shape, frame.block_px, frame.oversampling
    rows, cols = ceil_div(height, block), ceil_div(width, block)
    od, kind = (np.zeros(frame.shape, np.uint8) for _ in range(2))
    contrast, brightness = np.zeros((2, rows, cols), np.float32), np.zeros(256, np.int64)
    factor = frame.step_px // n
    inner_w, inner_h = (max(1, side // factor) for side in grid.size_px)  # pixels wholly inside the slide
    step = max(1, _STRIP_ROWS // block)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        top, bottom = first * block, min(last * block, height)
        y = min(top * n, inner_h - 1)
        rgb = read(Window(0, y, inner_w, min(bottom * n, inner_h) - y), factor)
        whole = ((last - first) * block * n, cols * block * n)  # whole blocks, filled by repeating the border
        rgb = np.pad(rgb, [*((0, a - b) for a, b in zip(whole, rgb.shape[:2], strict=True)), (0, 0)], mode="edge")
        strip = (rgb if n == 1 else block_mean(rgb, n, n))[: bottom - top, :width]
        brightness += histogram(strip)
        od[top:bottom], kind[top:bottom] = _classify_colours(strip, qc)
        if qc:
            grey = np.asarray(rgb[..., 0].astype(np.float32) + rgb[..., 1] + rgb[..., 2], np.float32)
            contrast[:, first:last] = [_contrast(grey, block * n, lag) for lag in (frame.near_px, 4 * frame.near_px)]
    return Overview(od, kind, brightness, contrast)


def _classify_colours(rgb: Uint8Array, qc: bool) -> tuple[Uint8Array, Uint8Array]:
    """Optical density in 1 / OD_UNITS, and GLASS, PEN or BLACK by colour: uint8 [h, w, 3] -> two uint8 [h, w]."""
    table = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    red, green, blue = (np.asarray(c, np.float32) for c in cv2.split(cv2.LUT(rgb, table)))
    od = np.minimum(np.rint((red + green + blue) * (OD_UNITS / 3)), 255).astype(np.uint8)
    kind = np.zeros(od.shape, np.uint8)
    if qc:
        kind[_is_ink(red, green, blue)] = OverviewKind.PEN
    kind[np.minimum(np.minimum(red, green), blue) > table[BLACK_BELOW]] = OverviewKind.BLACK
    return od, kind


def _is_ink(red: NDArray[np.float32], green: NDArray[np.float32], blue: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where optical densities (three float32 [h, w]) are those of a marker pen and of no stain: bool [h, w].

    Haematoxylin absorbs green at least as much as red (as a counterstain slightly less, but then blue as well), eosin
    mainly green, DAB mainly blue; so does every mixture. Red ink is distinguished from blood only if it hardly absorbs
    red, black ink from dark DAB over haematoxylin only if it is almost neutral. Translucent ink is missed.
    """
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    blue_ink = (red > 0.95 * green) & (((red > 0.8) & (blue < 0.4 * red)) | ((red > 1.4) & (blue < 0.5 * red)))
    teal_ink = (red > 0.8) & (red > 1.8 * green)
    green_ink = (red > green + 0.2) & (blue > green + 0.1)
    red_ink = (np.minimum(green, blue) > 1.4) & (red < 0.12 * high)
    black_ink = ((low > 1.3) & (low > 0.82 * high)) | ((low > 1.0) & (low > 0.92 * high))
    return blue_ink | teal_ink | green_ink | red_ink | black_ink


def _contrast(grey: NDArray[np.float32], side: int, lag: int) -> NDArray[np.float32]:
    """Mean squared difference of pixels `lag` apart along x and y: float32 [h, w] -> one per `side` x `side` block."""
    blocks = grey.reshape(grey.shape[0] // side, side, grey.shape[1] // side, side)
    down, across = blocks[:, lag:] - blocks[:, :-lag], blocks[..., lag:] - blocks[..., :-lag]
    total = np.einsum("iajb,iajb->ij", down, down) + np.einsum("iajb,iajb->ij", across, across)
    return np.asarray(total / (2 * side * (side - lag)), np.float32)


def histogram(values: Uint8Array, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Counts of the 256 values of uint8 [h, ...] at `where`: int64 [256]; in strips, as bincount copies to int64."""
    counts = np.zeros(256, np.int64)
    for rows in strips(len(values)):
        counts += np.bincount((values[rows] if where is None else values[rows][where[rows]]).ravel(), minlength=256)
    return counts


def quantile(counts: NDArray[np.int64], q: float) -> int:
    """The `q` quantile (0..1) of a histogram: an index of `counts`."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, q * total[-1]))


def strips(rows: int) -> Iterator[slice]:
    """All rows in strips of _STRIP_ROWS."""
    return (slice(top, min(top + _STRIP_ROWS, rows)) for top in range(0, rows, _STRIP_ROWS))
