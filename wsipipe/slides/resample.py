"""Read a window of a slide at the working resolution: nearest finer level, then area mean with the right phase."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window
from wsipipe.slides.base import Slide

MOST_SOURCE_PX = 2048**2
"""Source pixels resampled at once (float64, so about 100 MB); a larger window is read in halves."""


def read_window(slide: Slide, grid: Grid, window: Window, factor: int = 1) -> NDArray[np.uint8]:
    """RGB of `window` at `factor` times the working mpp: uint8 [h, w, 3].

    `window` counts pixels of that coarser frame, whose pixel i covers working pixels [i * factor, (i + 1) * factor).
    Each output pixel is the mean of the source area that it covers; no resampling where source and output agree.
    """
    scale = (grid.scale[0] * factor, grid.scale[1] * factor)
    level = _level_for(slide, min(scale))
    down = slide.downsamples[level]
    steps = (scale[0] / down, scale[1] / down)
    first = [window.x_px * steps[0], window.y_px * steps[1]]
    last = [first[0] + window.width_px * steps[0], first[1] + window.height_px * steps[1]]
    low = [math.floor(f + 1e-6) for f in first]
    high = [math.ceil(e - 1e-6) for e in last]
    native = all(abs(s - 1) < 1e-6 for s in steps)
    size = (high[0] - low[0], high[1] - low[1])
    if not native and size[0] * size[1] > MOST_SOURCE_PX and window.width_px * window.height_px > 1:
        return _in_halves(slide, grid, window, factor)
    source = slide.read((round(low[0] * down), round(low[1] * down)), level, size)
    if native:
        return source
    out = area_mean(source, first[1] - low[1], steps[1], window.height_px)
    out = area_mean(out.swapaxes(0, 1), first[0] - low[0], steps[0], window.width_px).swapaxes(0, 1)
    return np.ascontiguousarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def _in_halves(slide: Slide, grid: Grid, window: Window, factor: int) -> NDArray[np.uint8]:
    x, y, w, h = window.x_px, window.y_px, window.width_px, window.height_px
    if w >= h:
        parts = (Window(x, y, w // 2, h), Window(x + w // 2, y, w - w // 2, h))
    else:
        parts = (Window(x, y, w, h // 2), Window(x, y + h // 2, w, h - h // 2))
    return np.concatenate([read_window(slide, grid, p, factor) for p in parts], axis=int(w >= h))


def area_mean(values: NDArray[np.generic], start: float, step: float, count: int) -> NDArray[np.float64]:
    """Means over [start + i * step, start + (i + 1) * step) along axis 0, i = 0..count-1: float64 [count, ...].

    The running integral of the piecewise-constant signal, linear between samples, taken at the cell edges.
    """
    integral = np.zeros((values.shape[0] + 1, *values.shape[1:]), np.float64)
    np.cumsum(values, axis=0, dtype=np.float64, out=integral[1:])
    edges = np.clip(start + step * np.arange(count + 1), 0, values.shape[0])
    i = np.minimum(edges.astype(np.intp), values.shape[0] - 1)
    t = (edges - i).reshape(-1, *[1] * (values.ndim - 1))
    at = integral[i] * (1 - t) + integral[i + 1] * t
    return np.asarray(np.diff(at, axis=0) / step)


def _level_for(slide: Slide, scale: float) -> int:
    """The coarsest level that is not coarser than `scale` (level-0 px per output px)."""
    fits = [i for i, d in enumerate(slide.downsamples) if d <= scale * (1 + 1e-6)]
    return max(fits, key=lambda i: slide.downsamples[i]) if fits else 0
