"""From pixels to slides: the score of a slide for each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsipipe.evaluate.confusion import Floats

LEVELS = 256
"""Stored scores are uint8; 255 is 1.0."""


def slide_scores(pixels: NDArray[np.int64], top: float) -> Floats:
    """The mean of the top fraction of a slide's tissue scores: int64 [K, LEVELS] counts of px -> float64 [K].

    `top` 0 is the maximum. A larger fraction does not hinge on a single pixel; a class that fills less of the tissue
    than `top` is diluted by its surroundings. nan where there is no tissue.
    """
    total = pixels.sum(-1, keepdims=True)
    wanted = np.maximum(np.ceil(top * total), 1)
    above = np.cumsum(pixels[:, ::-1], axis=1)[:, ::-1] - pixels  # px with a higher score
    taken = np.clip(wanted - above, 0, pixels)
    values = np.arange(LEVELS) / (LEVELS - 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((taken @ values) / np.where(total[:, 0] > 0, taken.sum(-1), np.nan))
