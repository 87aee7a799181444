"""Area means of pictures: exact by whole factors, weighted by covered area otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

WHOLE = 1e-6
"""Positions and steps this near to a whole number of pixels are whole."""


def area_mean(
    source: NDArray[np.uint8], start_px: tuple[float, float], steps: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Means over boxes of a picture: uint8 [h, w, 3] -> uint8 [size_px[1], size_px[0], 3], halves rounded up.

    Output pixel (i, j) is the mean over x in start + [j, j + 1) * step and y alike, where pixels at the border of the
    box count with the part of them that lies inside. Tuples are (x, y), in source px.
    """
    (width, height), (fx, fy) = size_px, (round(s) for s in steps)
    inside = source[: height * fy, : width * fx]
    whole = inside.shape[:2] == (height * fy, width * fx)
    if not whole or max(*start_px, abs(steps[0] - fx), abs(steps[1] - fy)) >= WHOLE:
        return _weighted_mean(source, start_px, steps, size_px)
    return np.ascontiguousarray(inside) if fx == fy == 1 else block_mean(inside, fx, fy)


def block_mean(source: NDArray[np.uint8], fx: int, fy: int) -> NDArray[np.uint8]:
    """Means over whole blocks of `fx` x `fy` pixels: exact, halves rounded up."""
    if fx == fy == 2:  # what most slides need; OpenCV's mean rounds in just this way for this factor alone
        return np.asarray(cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    n, width = fx * fy, source.shape[1] // fx
    kind: type[np.unsignedinteger[Any]] = np.uint16 if n <= 2**8 else np.uint32
    lines = source.reshape(-1, fy, width * fx * 3)
    rows = _total([lines[:, k] for k in range(fy)], kind)
    out = np.empty((len(rows), width, 3), np.uint8)
    for channel in range(3):
        total = _total([rows[:, channel + 3 * k :: 3 * fx] for k in range(fx)], kind)
        total += kind(n // 2)
        out[..., channel] = np.floor_divide(total, kind(n), out=total)
    return out


def _total(parts: Sequence[NDArray[Any]], kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    total: NDArray[Any] = np.add(parts[0], parts[1] if len(parts) > 1 else 0, dtype=kind)
    for part in parts[2:]:
        total += part
    return total


def _weighted_mean(
    source: NDArray[np.uint8], start_px: tuple[float, float], steps: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Means over any boxes: a sparse product along each axis."""
    (width, height), (w, h) = size_px, (source.shape[1], source.shape[0])
    rows = _weights(start_px[1], steps[1], height, h, 1) @ source.reshape(h, w * 3).astype(np.float32)
    means = _weights(start_px[0], steps[0], width, w, 3) @ np.ascontiguousarray(rows.T)
    means += np.float32(0.5)
    return np.ascontiguousarray(means.astype(np.uint8).T).reshape(height, width, 3)


def _weights(start: float, step: float, count: int, n: int, channels: int) -> Any:
    """Sparse float32 [count * channels, n * channels]: the share of each source px in [start, start + step) + i * step.

    Pixel i of channel c is at i * channels + c on either side.
    """
    low = (start + step * np.arange(count))[:, None]
    at = np.floor(low + WHOLE).astype(np.int32) + np.arange(math.ceil(step) + 1, dtype=np.int32)
    shares = np.clip((np.minimum(at + 1, low + step) - np.maximum(at, low)) / step, 0, 1).astype(np.float32)
    picked = np.minimum(at, n - 1)[:, None] * channels + np.arange(channels, dtype=np.int32)[:, None]
    ends = np.arange(0, picked.size + 1, picked.shape[2], dtype=np.int32)
    shape = (count * channels, n * channels)
    return csr_array((shares.repeat(channels, axis=0).ravel(), picked.ravel(), ends), shape=shape)
