"""Area-mean resampling: exact for whole factors, otherwise weighted by the covered part of each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

WHOLE_PX = 1e-6
"""Positions and steps within this distance of a whole number of pixels are treated as whole."""


def area_mean(
    source: NDArray[np.uint8], start_px: tuple[float, float], steps: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Area mean of an image: uint8 [h, w, 3] -> uint8 [size_px[1], size_px[0], 3], halves rounded up.

    Output pixel (i, j) is the mean over x in start + [j, j + 1) * step and y likewise; pixels on the border of this box
    count by the part inside. Tuples are (x, y), in source px.
    """
    (width, height), (fx, fy) = size_px, (round(s) for s in steps)
    inside = source[: height * fy, : width * fx]
    whole = inside.shape[:2] == (height * fy, width * fx)
    if not whole or max(*start_px, abs(steps[0] - fx), abs(steps[1] - fy)) >= WHOLE_PX:
        return _weighted_mean(source, start_px, steps, size_px)
    return np.ascontiguousarray(inside) if fx == fy == 1 else block_mean(inside, fx, fy)


def block_mean(source: NDArray[np.uint8], block_width: int, block_height: int) -> NDArray[np.uint8]:
    """Mean of every `block_height` x `block_width` block: uint8 [h, w, 3] of whole blocks; exact, halves rounded up."""
    if block_width == block_height == 2:  # the usual case; this is the only factor where OpenCV rounds halves up
        return np.asarray(cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    n, width = block_width * block_height, source.shape[1] // block_width
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if n <= 2**8 else np.uint32
    blocks = source.reshape(-1, block_height, width * block_width * 3)
    rows = _sum([blocks[:, k] for k in range(block_height)], dtype)
    out = np.empty((len(rows), width, 3), np.uint8)
    for channel in range(3):
        total = _sum([rows[:, channel + 3 * k :: 3 * block_width] for k in range(block_width)], dtype)
        total += dtype(n // 2)
        out[..., channel] = np.floor_divide(total, dtype(n), out=total)
    return out


def _sum(parts: Sequence[NDArray[Any]], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """The elementwise sum of arrays of one shape, in `dtype`."""
    total: NDArray[Any] = np.add(parts[0], parts[1] if len(parts) > 1 else 0, dtype=dtype)
    for part in parts[2:]:
        total += part
    return total


def _weighted_mean(
    source: NDArray[np.uint8], start_px: tuple[float, float], steps: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """As `area_mean` for any start and step: one sparse matrix product per axis."""
    (width, height), (w, h) = size_px, (source.shape[1], source.shape[0])
    rows = _weights(start_px[1], steps[1], height, h, 1) @ source.reshape(h, w * 3).astype(np.float32)
    means = _weights(start_px[0], steps[0], width, w, 3) @ np.ascontiguousarray(rows.T)
    means += np.float32(0.5)
    return np.ascontiguousarray(means.astype(np.uint8).T).reshape(height, width, 3)


def _weights(start: float, step: float, count: int, n: int, channels: int) -> Any:
    """Weight of each source px in the mean over [start, start + step) + i * step: sparse [count * c, n * c] float32.

    Both axes are interleaved: pixel i of channel k is at i * c + k, with c = `channels`.
    """
    low = (start + step * np.arange(count))[:, None]
    at = np.floor(low + WHOLE_PX).astype(np.int32) + np.arange(math.ceil(step) + 1, dtype=np.int32)
    weights = np.clip((np.minimum(at + 1, low + step) - np.maximum(at, low)) / step, 0, 1).astype(np.float32)
    columns = np.minimum(at, n - 1)[:, None] * channels + np.arange(channels, dtype=np.int32)[:, None]
    ends = np.arange(0, columns.size + 1, columns.shape[2], dtype=np.int32)
    shape = (count * channels, n * channels)
    return csr_array((weights.repeat(channels, axis=0).ravel(), columns.ravel(), ends), shape=shape)
