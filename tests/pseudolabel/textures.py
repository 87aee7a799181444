"""Tissue of noise, and a square of coarser noise of the same colours to be planted in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PINK = np.array([205.0, 150.0, 185.0])
CONTRAST = np.array([22.0, 30.0, 18.0])


def noise(size_px: tuple[int, int], grain_px: float, seed: int) -> NDArray[np.uint8]:
    """Pink noise of one variance and a grain of about `grain_px`: uint8 [h, w, 3] for size (w, h)."""
    field = np.random.default_rng(seed).standard_normal((size_px[1], size_px[0]))
    field = ndimage.gaussian_filter(field, grain_px) if grain_px else field
    field = (field - field.mean()) / field.std()
    return np.clip(np.rint(PINK + CONTRAST * field[..., None]), 0, 255).astype(np.uint8)


def tissue(size_px: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Fine noise."""
    return noise(size_px, 0.6, seed)


def plant(rgb: NDArray[np.uint8], xy_px: tuple[int, int], side_px: int, kind: int = 0) -> None:
    """Put a square of another texture into `rgb`: coarse blobs (kind 0) or broad stripes (kind 1)."""
    x, y = xy_px
    if kind == 0:
        square = noise((side_px, side_px), 4.0, 1000 + x + 7 * y)
    else:
        stripes = np.sign(np.sin((np.arange(side_px) + x) * 2 * np.pi / 6))
        square = np.broadcast_to(np.rint(PINK + CONTRAST * stripes[:, None]), (side_px, side_px, 3)).astype(np.uint8)
    rgb[y : y + side_px, x : x + side_px] = square
