"""Write the raw scores of a method as masks: the likeliest class where its score is 0.5 or more, 0 elsewhere.

    python benchmarks/quality/methods_bench/raw_masks.py STORES NAME OUT

One PNG a store, in the frame of its level 0, for `wsipipe masks import`. Glass is 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window
from wsipipe.store import SlideStore, find_stores

HALF = 128
"""The least stored score (255 = 1.0) of 0.5 or more."""


def main() -> None:
    """Command line."""
    stores, name, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    for path in find_stores(stores):
        store = SlideStore(path)
        (out / f"{store.slide_id}.png").write_bytes(imagecodecs.png_encode(raw_mask(store, name)))


def raw_mask(store: SlideStore, name: str) -> NDArray[np.uint8]:
    """scores/<name> at 0.5 as mask values: uint8 [h, w] in working px, which spans the slide as level 0 does."""
    width, height = store.grid.size_px
    scores = store.scores(name)
    _, rows, cols = scores.spec.shape
    values = scores.read(Window(0, 0, cols, rows))
    cells = np.where(values.max(0) >= HALF, values.argmax(0) + 1, 0).astype(np.uint8)
    stride_px = int(store.attributes("scores", name)["stride_px"])
    mask = cells[np.ix_(np.arange(height) // stride_px, np.arange(width) // stride_px)]
    mask[store.labels("tissue").read(Window(0, 0, width, height)) != 1] = 0
    return mask


if __name__ == "__main__":
    main()
