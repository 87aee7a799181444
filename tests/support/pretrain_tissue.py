"""Generated patches of tissue for the tests of pretraining."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def tissue(size_px: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Pink fibres: uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.standard_normal((size_px[1], size_px[0])), (1 + seed % 3, 1)) * 60
    return np.clip(np.array([205, 140, 185]) + texture[..., None], 0, 255).astype(np.uint8)


def patches(count: int, side: int = 24) -> NDArray[np.uint8]:
    """Patches of four brightnesses and three textures: uint8 [count, 3, side, side]."""
    return np.stack([tissue((side, side), s).transpose(2, 0, 1) // (1 + s % 4) for s in range(count)])
