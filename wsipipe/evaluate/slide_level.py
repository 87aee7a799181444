"""From pixels to slides: how strongly a slide shows a class, and how well that ranks the slides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsipipe.evaluate.metrics import Floats

LEVELS = 256
"""Stored scores are uint8; 255 is 1.0."""


def slide_scores(pixels: NDArray[np.int64], top: float) -> Floats:
    """The mean of the highest `top` share of a slide's tissue scores: int64 [K, LEVELS] counts of px -> float64 [K].

    A share above 0 is not at the mercy of one pixel as the maximum is; a class that fills less of the tissue than `top`
    is thinned by what surrounds it. With `top` 0 it is the maximum. nan where there is no tissue.
    """
    total = pixels.sum(-1, keepdims=True)
    wanted = np.maximum(np.ceil(top * total), 1)
    above = np.cumsum(pixels[:, ::-1], axis=1)[:, ::-1] - pixels  # px with a higher score
    taken = np.clip(wanted - above, 0, pixels)
    values = np.arange(LEVELS) / (LEVELS - 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((taken @ values) / np.where(total[:, 0] > 0, taken.sum(-1), np.nan))
