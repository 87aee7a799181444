"""Evening out stains: every slide is read with its mean optical density over tissue brought to one reference.

By Lambert and Beer the amount of stain is proportional to optical density, -ln(I / 255), and laboratories differ by it
far more than tissues do. A factor g on it is a gamma of intensity, I' = 255 (I / 255)^g: one table for each colour,
which leaves glass white and the stored pixels as they are. What a class is like is then not learnt by who stained it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.store.shards import CHUNK_PX, ShardedArray

MPP = 8.0
"""um/px, at the coarsest, at which stain is measured."""

REFERENCE_OD = (0.27, 0.63, 0.23)
"""Mean optical densities (R, G, B) over tissue that slides are brought to: about those of the GlaS images, 16 patients
of one hospital, so that ordinary slides are changed little. What they are matters less than that they are the same."""

LEAST, MOST = 0.25, 4.0
"""Gammas are held within these: beyond, it is no stain that differs."""


def measured(pixels: ShardedArray, tissue: ShardedArray) -> tuple[float, float, float]:
    """Gamma of each colour from one level of a store: pixels uint8 (c, y, x), tissue uint8 (y, x), 1 where it is."""
    height, width = tissue.spec.shape
    total, count = np.zeros(3), 0
    for y in range(0, height, CHUNK_PX):
        band = Window(0, y, width, min(CHUNK_PX, height - y))
        held = tissue.read(band) == 1
        if held.any():
            total += density_sum(np.moveaxis(pixels.read(band), 0, -1).astype(np.uint8, copy=False), held)
            count += int(held.sum())
    return gammas((total / count).tolist()) if count else (1.0, 1.0, 1.0)


def alike(even: Iterable[bool]) -> bool:
    """Whether all training slides are read with their stain evened out; ConfigError if some are and some are not."""
    found = set(even)
    if len(found) > 1:
        raise ConfigError("some training stores were tiled with --normalise-stain and some were not; tile them alike")
    return found.pop()


def density_sum(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum of -ln(I / 255) over the pixels of tissue: uint8 [h, w, 3] and bool [h, w] -> float64 [3]."""
    table = -np.log(np.maximum(np.arange(256), 1) / 255)
    return np.array([np.bincount(rgb[..., c][tissue], minlength=256) @ table for c in range(3)])


def gammas(mean_od: Sequence[float]) -> tuple[float, float, float]:
    """Gamma of each colour that takes mean optical densities to the reference, to 4 digits."""
    r, g, b = (
        round(float(np.clip(wanted / max(found, 1e-6), LEAST, MOST)), 4)
        for wanted, found in zip(REFERENCE_OD, mean_od, strict=True)
    )
    return r, g, b


def tables(gamma: Sequence[float]) -> NDArray[np.uint8]:
    """What each intensity of each colour becomes: uint8 [3, 256], rising, 0 and 255 fixed."""
    level = np.arange(256) / 255
    return np.rint(255 * level ** np.asarray(gamma, np.float64)[:, None]).astype(np.uint8)


def evened(pixels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels with a colour axis third from the end, uint8 [.., 3, h, w], by `tables`; the memory keeps its order."""
    out = np.empty_like(pixels)
    for c in range(3):  # translate is faster than any indexing of numpy's
        plane = pixels[..., c, :, :]
        out[..., c, :, :] = np.frombuffer(plane.tobytes().translate(table[c].tobytes()), np.uint8).reshape(plane.shape)
    return out
