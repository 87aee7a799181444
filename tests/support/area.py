"""A slow area mean, written from its definition, and pictures to try it on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]

NEAR = 0.02
"""Grey levels by which a mean may be off: for float32, and for a step within 1e-6 of a whole number, which counts as
that number; over 40 px it adds up."""


def shares(start: float, step: float, count: int, n: int) -> NDArray[np.float64]:
    """Row i: the weight of each of n px, and last of the area outside, in [i, i + 1) * step + start: [count, n + 1]."""
    out = np.zeros((count, n + 1))
    for i in range(count):
        low, high = start + i * step, start + (i + 1) * step
        for px in range(math.floor(low), math.ceil(high)):
            out[i, px if 0 <= px < n else n] += max(0.0, min(px + 1, high) - max(px, low)) / step
    return out


def noise(w: int, h: int, seed: int = 0) -> Rgb:
    """Random RGB: uint8 [h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
