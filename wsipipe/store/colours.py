"""Colours of mask values, and masks laid over images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wsipipe.labels import IGNORE
from wsipipe.store.layout import COLOURS

GREY = (128, 128, 128)
"""Colour of 255, and of values to which a label image gives no colour."""

RGB = tuple[int, int, int]


def class_colours() -> dict[int, RGB]:
    """Mask value -> RGB 0..255 of every class and of 255, as stores assign them; 0 has none."""
    return {**{v: COLOURS[(v - 1) % len(COLOURS)] for v in range(1, IGNORE)}, IGNORE: GREY}


def blend(
    rgb: NDArray[np.uint8], mask: NDArray[np.uint8], colours: Mapping[int, RGB], opacity: float | NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Lay the colours of a mask over an image: uint8 [h, w, 3] and uint8 [h, w] -> uint8 [h, w, 3].

    `opacity` 0..1, of all pixels or float32 [h, w]. Values without a colour keep the image.
    """
    table, coloured = np.zeros((256, 3), np.float32), np.zeros(256, np.float32)
    for value, colour in colours.items():
        table[value], coloured[value] = colour, 1
    share = (coloured[mask] * opacity)[..., None]
    return np.asarray(np.rint(rgb * (1 - share) + table[mask] * share), np.uint8)
