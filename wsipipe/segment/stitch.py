"""Blend overlapping windows into one map, band by band: memory follows the width of the slide, not its area."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window
from wsipipe.windows import blend_weight, starts


@dataclass(frozen=True)
class Band:
    """Finished rows of a map: values float32 [C, h, W] from row `y_px` on, nan where no window reached."""

    y_px: int
    values: NDArray[np.float32]


def stitch(
    predict: Callable[[Sequence[Window]], NDArray[np.float32]],
    size_px: tuple[int, int],
    channels: int,
    window_px: int,
    stride_px: int,
    *,
    wanted: Callable[[Window], bool] = lambda w: True,
) -> Iterator[Band]:
    """Yield the map of `size_px` (w, h) from top to bottom.

    `predict` maps windows to float32 [N, C, window_px, window_px]; `wanted` tells which windows are worth it. Each
    pixel is sum(w p) / sum(w) over the windows that cover it, w the half-pixel-offset Hann weight: a partition of
    unity for every stride, also at borders and beside windows left out.
    """
    width, height = size_px
    weight = blend_weight(window_px)
    total = np.zeros((channels, window_px, width), np.float32)
    norm = np.zeros((window_px, width), np.float32)
    tops = starts(height, window_px, stride_px)
    for y, below in zip(tops, [*tops[1:], height], strict=True):
        row = [w for x in starts(width, window_px, stride_px) if wanted(w := Window(x, y, window_px, window_px))]
        values = predict(row) if row else np.zeros((0, channels, window_px, window_px), np.float32)
        for w, p in zip(row, values, strict=True):
            n = min(window_px, width - w.x_px)
            total[:, :, w.x_px : w.x_px + n] += (p * weight)[:, :, :n]
            norm[:, w.x_px : w.x_px + n] += weight[:, :n]
        done = below - y
        with np.errstate(invalid="ignore", divide="ignore"):
            yield Band(y, total[:, :done] / norm[:done])
        total = np.concatenate([total[:, done:], np.zeros((channels, done, width), np.float32)], axis=1)
        norm = np.concatenate([norm[done:], np.zeros((done, width), np.float32)])
