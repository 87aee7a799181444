"""The overview of a slide, read in strips: optical density, marks of pen and black, and how sharp each block is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window
from wsipipe.slides.area_mean import block_mean

GLASS, TISSUE, PEN, BLUR, BLACK = range(5)
"""What a pixel of the overview shows; only TISSUE is tiled."""

MOST_OVERVIEW_PX = 2048**2
"""Pixels of an overview; a larger slide is seen at a coarser step, so that memory does not grow with the slide."""

BLACK_BELOW = 30
"""Brightness (0..255) that no channel of a black border or scanner frame reaches; tissue is never as dark."""

NEAR_UM = 4.0
BLOCK_UM = 48.0
"""Blocks of this side vote, with the 8 around each, on whether it is out of focus; even ones have no vote."""

OD_UNITS = 255
"""Steps of a quantised optical density of 1; what is darker counts as 1."""

_STRIP_ROWS = 64
"""Overview rows read at once: at half the step 256 pixels, which are whole rows of tiles in most files."""

Bytes = NDArray[np.uint8]

View = Callable[[Window, int], Bytes]
"""view(window, factor): RGB uint8 [h, w, 3] of `window`, counted in pixels `factor` times coarser than working px."""


@dataclass(frozen=True)
class Frame:
    """The overview: (height, width) pixels of `step_px` working px, `scale` (x, y) level-0 px and `mpp` um each.

    It is read at `parts` pixels per overview pixel and side (1 or 2); `block` overview pixels are a block of focus.
    """

    shape: tuple[int, int]
    step_px: int
    scale: tuple[float, float]
    mpp: float

    @classmethod
    def plan(cls, grid: Grid, mpp: float) -> Frame:
        """Near `mpp`, the step even so that it can be halved, and at most MOST_OVERVIEW_PX pixels."""
        step = grid.px_of_um(mpp)
        step_px = 2 * max(1, round(step / 2)) if step >= 1.5 else 1
        width, height = grid.size_px
        while -(-width // step_px) * -(-height // step_px) > MOST_OVERVIEW_PX:
            step_px += 2 - step_px % 2
        scale = (grid.scale[0] * step_px, grid.scale[1] * step_px)
        return cls((-(-height // step_px), -(-width // step_px)), step_px, scale, step_px / grid.px_of_um(1.0))

    @property
    def parts(self) -> int:
        """2 where half the step is still about NEAR_UM; never finer, which would be slow and show nothing more."""
        return 2 if self.step_px % 2 == 0 and self.mpp / 2 > 0.75 * NEAR_UM else 1

    @property
    def block(self) -> int:
        """Overview pixels along a block of BLOCK_UM, at least 6."""
        return max(6, round(BLOCK_UM / self.mpp))

    @property
    def near(self) -> int:
        """Pixels as read, about NEAR_UM apart."""
        return max(1, round(NEAR_UM * self.parts / self.mpp))


def survey(
    view: View, grid: Grid, frame: Frame, qc: bool
) -> tuple[Bytes, Bytes, NDArray[np.int64], NDArray[np.float32]]:
    """Read the slide in strips and keep, of each, no more than a byte or two per overview pixel.

    Returns the mean optical density over RGB in 1/255 (uint8 [h, w]), the marks that colour alone gives (uint8 [h, w]
    of GLASS, PEN, BLACK), how often each channel value occurs (int64 [256]), and the squared difference of points
    NEAR_UM and 4 times as far apart in every block (float32 [2, rows, cols]).
    """
    (height, width), block, parts = frame.shape, frame.block, frame.parts
    down, across = -(-height // block), -(-width // block)
    od, marks = (np.zeros(frame.shape, np.uint8) for _ in range(2))
    focus, brightness = np.zeros((2, down, across), np.float32), np.zeros(256, np.int64)
    factor = frame.step_px // parts
    inner_w, inner_h = (max(1, n // factor) for n in grid.size_px)  # pixels wholly inside the slide
    step = max(1, _STRIP_ROWS // block)
    for first in range(0, down, step):
        last = min(first + step, down)
        top, bottom = first * block, min(last * block, height)
        at = min(top * parts, inner_h - 1)
        rgb = view(Window(0, at, inner_w, min(bottom * parts, inner_h) - at), factor)
        whole = ((last - first) * block * parts, across * block * parts)  # blocks; the border is repeated to fill them
        rgb = np.pad(rgb, [*((0, n - m) for n, m in zip(whole, rgb.shape[:2], strict=True)), (0, 0)], mode="edge")
        strip = (rgb if parts == 1 else block_mean(rgb, parts, parts))[: bottom - top, :width]
        brightness += histogram(strip)
        od[top:bottom], marks[top:bottom] = _colours(strip, qc)
        if qc:
            grey = np.asarray(rgb[..., 0].astype(np.float32) + rgb[..., 1] + rgb[..., 2], np.float32)
            focus[:, first:last] = [_contrast(grey, block * parts, lag) for lag in (frame.near, 4 * frame.near)]
    return od, marks, brightness, focus


def _colours(rgb: Bytes, qc: bool) -> tuple[Bytes, Bytes]:
    """Optical density in 1/255 and marks by colour: uint8 [h, w, 3] -> two uint8 [h, w]."""
    table = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    red, green, blue = (np.asarray(c, np.float32) for c in cv2.split(cv2.LUT(rgb, table)))
    od = np.minimum(np.rint((red + green + blue) * (OD_UNITS / 3)), 255).astype(np.uint8)
    marks = np.zeros(od.shape, np.uint8)
    if qc:
        marks[_ink(red, green, blue)] = PEN
    marks[np.minimum(np.minimum(red, green), blue) > table[BLACK_BELOW]] = BLACK
    return od, marks


def _ink(red: NDArray[np.float32], green: NDArray[np.float32], blue: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where optical densities (three float32 [h, w]) are those of a marker and of no stain: bool [h, w].

    Haematoxylin absorbs green at least as much as red (as a counterstain a little less, but then blue as well), eosin
    green before all, DAB blue before all; so does every mixture. Red ink is told from blood only where it hardly dims
    red light; black ink from dark DAB over haematoxylin only where it is as good as neutral. Translucent ink is missed.
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


def histogram(values: Bytes, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Counts of the 256 values of uint8 [h, ...], at `where`; in strips, as bincount copies to int64."""
    counts = np.zeros(256, np.int64)
    for rows in strips(len(values)):
        counts += np.bincount((values[rows] if where is None else values[rows][where[rows]]).ravel(), minlength=256)
    return counts


def quantile(counts: NDArray[np.int64], q: float) -> int:
    """The value (an index of `counts`) that a share `q` of the counted values does not exceed."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, q * total[-1]))


def strips(rows: int) -> Iterator[slice]:
    """All rows, a strip at a time."""
    return (slice(top, min(top + _STRIP_ROWS, rows)) for top in range(0, rows, _STRIP_ROWS))
