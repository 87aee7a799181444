"""PNG of the slide with the classes in colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsipipe.config.options import ExportConfig
from wsipipe.errors import check
from wsipipe.export.values import label_classes
from wsipipe.geometry import LEVEL_FACTOR, Window, ceil_div
from wsipipe.labels import IGNORE, Tissue
from wsipipe.runtime.atomic import write_bytes
from wsipipe.slides.area_mean import area_mean
from wsipipe.store import SlideStore
from wsipipe.store.colours import GREY, RGB, blend
from wsipipe.store.shards import ShardedArray

SUFFIX = ".png"
BY_DEFAULT = True

OPACITY = 0.45
"""Opacity of a class; the stain below remains visible."""

OUTLINE_PER_PX = 1 / 800
"""Width of an outline as a fraction of the longer side: 2 px at 1600 px."""

_BAND_PX = 128
"""Output rows averaged at a time; bounds the float copies."""


def write(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Write the picture of a store."""
    write_overlay(store, options.masks, path, options.overlay_px)


def write_overlay(store: SlideStore, name: str, path: Path, longest_px: int = 1600) -> Path:
    """Write the slide with `labels/<name>` over it as PNG, its longer side at most `longest_px`; returns `path`.

    Classes have their colours and outlines; tissue of value 255 is grey; everything else, glass included, keeps its
    pixels. Written aside, then renamed.
    """
    check(longest_px >= 16, f"overlay of {longest_px} px: 16 at least")
    level = max(k for k in range(store.grid.levels) if k == 0 or max(store.grid.level_shape(k)) >= longest_px)
    height, width = store.grid.level_shape(level)
    step = max(1.0, max(height, width) / longest_px)
    shape = (max(1, int(height / step + 1e-6)), max(1, int(width / step + 1e-6)))  # whole output pixels only
    mask, tissue = (_nearest(store.labels(key, level), step, shape) for key in (name, "tissue"))
    rgb = _image(store, level, step, shape)
    if level == 0 and store.grid.levels > 1:
        _fill_glass(rgb, store, step)
    shown = np.where((mask == IGNORE) & (tissue != Tissue.TISSUE), np.uint8(0), mask)
    painted = _paint(rgb, shown, {IGNORE: GREY, **{v: c.rgb for v, c in label_classes(store, name).items()}})
    write_bytes(path, bytes(imagecodecs.png_encode(painted, level=6)))
    return path


def _image(store: SlideStore, level: int, step: float, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The slide at `step` pixels of `level` per output pixel, area mean: uint8 [h, w, 3]."""
    height, width = store.grid.level_shape(level)
    if step == 1:
        return store.read(Window(0, 0, width, height), level)
    out = np.empty((*shape, 3), np.uint8)
    for first in range(0, shape[0], _BAND_PX):
        rows = min(_BAND_PX, shape[0] - first)
        top, bottom = int(first * step), min(height, int(np.ceil((first + rows) * step)))
        source = store.read(Window(0, top, width, bottom - top), level)
        out[first : first + rows] = area_mean(source, (0, first * step - top), (step, step), (shape[1], rows))
    return out


def _fill_glass(rgb: NDArray[np.uint8], store: SlideStore, step: float) -> None:
    """Give rgb uint8 [h, w, 3], made from level 0, the pixels of level 1 where level 0 holds no chunk (glass)."""
    array, coarse = store.pixels(0), store.pixels(1).spec.shape
    n = array.spec.chunk_px
    y, x = (
        np.minimum((np.arange(size) + 0.5) * step / LEVEL_FACTOR, end - 1).astype(np.intp)
        for size, end in zip(rgb.shape[:2], coarse[1:], strict=True)
    )
    for row in range(ceil_div(array.spec.shape[1], n)):
        for col in range(ceil_div(array.spec.shape[2], n)):
            if array.chunk((row, col)) is None:
                top, left = int(row * n / step), int(col * n / step)
                ys, xs = y[top : int(np.ceil((row + 1) * n / step))], x[left : int(np.ceil((col + 1) * n / step))]
                if len(ys) and len(xs):
                    window = Window(int(xs[0]), int(ys[0]), int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1)
                    part = store.read(window, 1)[np.ix_(ys - ys[0], xs - xs[0])]
                    rgb[top : top + len(ys), left : left + len(xs)] = part


def _nearest(labels: ShardedArray, step: float, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask value at the centre of each output pixel: uint8 [h, w]."""
    height, width = labels.spec.shape[-2:]
    whole = labels.read(Window(0, 0, width, height))
    y, x = (
        np.minimum((np.arange(n) + 0.5) * step, size - 1).astype(np.intp)
        for n, size in zip(shape, (height, width), strict=True)
    )
    return whole[np.ix_(y, x)].astype(np.uint8, copy=False)


def _paint(rgb: NDArray[np.uint8], mask: NDArray[np.uint8], colours: Mapping[int, RGB]) -> NDArray[np.uint8]:
    """Blend and outline: rgb uint8 [h, w, 3] and mask uint8 [h, w] -> uint8 [h, w, 3]."""
    width = max(1, round(max(mask.shape) * OUTLINE_PER_PX))
    side = 2 * width + 1
    border = ndimage.maximum_filter(mask, side, mode="nearest") != ndimage.minimum_filter(mask, side, mode="nearest")
    outlined = border & (mask > 0) & (mask != IGNORE)
    return blend(rgb, mask, colours, np.where(outlined, np.float32(1), np.float32(OPACITY)))
