"""Overlapping windows over a map and the weights that blend them into a partition of unity."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def starts(length_px: int, window_px: int, stride_px: int) -> list[int]:
    """Starts of the windows that cover [0, length_px); the last is shifted back to end at the border.

    A map shorter than the window gets one window, which reaches over the border.
    """
    if length_px <= window_px:
        return [0]
    n = math.ceil((length_px - window_px) / stride_px)
    return [min(i * stride_px, length_px - window_px) for i in range(n + 1)]


def hann(window_px: int) -> NDArray[np.float32]:
    """Blending weight along one axis: float32 [window_px], in (0, 1], symmetric.

    w_i = (1 - cos(2 pi (i + 1/2) / n)) / 2. The half-pixel offset keeps every weight above zero, so that a pixel
    covered by a single window is still defined after division by the sum of weights.
    """
    i = np.arange(window_px, dtype=np.float64)
    return (0.5 - 0.5 * np.cos(2 * np.pi * (i + 0.5) / window_px)).astype(np.float32)


def blend_weight(window_px: int) -> NDArray[np.float32]:
    """Separable two-dimensional weight: float32 [window_px, window_px]."""
    w = hann(window_px)
    return np.outer(w, w)
