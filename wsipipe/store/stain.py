"""Stain normalisation: read every slide with its mean optical density over tissue scaled to one reference.

By the Lambert-Beer law the amount of stain is proportional to optical density, -ln(I / 255). Laboratories differ far
more in it than tissues do. A factor g on optical density is a gamma on intensity, I' = 255 (I / 255)^g: one lookup
table per colour channel. White stays white and the stored pixels do not change. The aim: a network that does not learn
which laboratory stained a slide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import Tissue
from wsipipe.store.shards import CHUNK_PX, ShardedArray

MAX_MPP = 8.0
"""Coarsest um/px at which stain is measured."""

REFERENCE_OD = (0.27, 0.63, 0.23)
"""Mean optical densities (R, G, B) over tissue after normalisation: about those of the GlaS images (16 patients of one
hospital), so that typical slides change little. Any fixed values would do."""

MIN_GAMMA, MAX_GAMMA = 0.25, 4.0
"""Gammas are clipped to this range; beyond it the difference is not one of stain."""


def measure_gamma(pixels: ShardedArray, tissue: ShardedArray) -> tuple[float, float, float]:
    """Gamma per colour channel, from one level of a store: pixels uint8 (c, y, x), tissue uint8 (y, x)."""
    height, width = tissue.spec.shape
    total, count = np.zeros(3), 0
    for y in range(0, height, CHUNK_PX):
        band = Window(0, y, width, min(CHUNK_PX, height - y))
        inside = tissue.read(band) == Tissue.TISSUE
        if inside.any():
            total += density_sum(np.moveaxis(pixels.read(band), 0, -1).astype(np.uint8, copy=False), inside)
            count += int(inside.sum())
    return gamma_of((total / count).tolist()) if count else (1.0, 1.0, 1.0)


def common_setting(normalised: Iterable[bool]) -> bool:
    """Whether all training slides are read with normalised stain; raises ConfigError if only some are."""
    found = set(normalised)
    if len(found) > 1:
        raise ConfigError(
            "some training stores were tiled with --normalise-stain and some without; tile all with the same setting"
        )
    return found.pop()


def density_sum(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum of -ln(I / 255) over the tissue pixels: uint8 [h, w, 3] and bool [h, w] -> float64 [3]."""
    table = -np.log(np.maximum(np.arange(256), 1) / 255)
    return np.array([np.bincount(rgb[..., c][tissue], minlength=256) @ table for c in range(3)])


def gamma_of(mean_od: Sequence[float]) -> tuple[float, float, float]:
    """Gamma per colour channel that scales mean optical densities to the reference, rounded to 4 digits."""
    r, g, b = (
        round(float(np.clip(wanted / max(found, 1e-6), MIN_GAMMA, MAX_GAMMA)), 4)
        for wanted, found in zip(REFERENCE_OD, mean_od, strict=True)
    )
    return r, g, b


def gamma_tables(gamma: Sequence[float]) -> NDArray[np.uint8]:
    """Lookup table per colour channel: uint8 [3, 256], ascending, with 0 and 255 fixed."""
    level = np.arange(256) / 255
    return np.rint(255 * level ** np.asarray(gamma, np.float64)[:, None]).astype(np.uint8)


def apply_tables(pixels: NDArray[np.uint8], tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels uint8 [.., 3, h, w] mapped by `gamma_tables`, in the same memory order."""
    out = np.empty_like(pixels)
    for c in range(3):  # bytes.translate is faster than any numpy indexing
        plane = pixels[..., c, :, :]
        out[..., c, :, :] = np.frombuffer(plane.tobytes().translate(tables[c].tobytes()), np.uint8).reshape(plane.shape)
    return out
