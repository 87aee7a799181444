"""Stores that hold nothing but masks, and slow answers to what a mask and its polygons say of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

NAMES = {0: "none", 1: "stroma", 2: "tumour", 3: "fat", 255: "ignore"}

Mask = NDArray[np.uint8]


def mask_store(
    path: Path,
    masks: dict[str, Mask],
    scale: tuple[float, float] = (1.0, 1.0),
    origin_px0: tuple[int, int] = (0, 0),
    bounds_px0: tuple[int, int] | None = None,
) -> SlideStore:
    """A store at 0.5 um/px, `scale` level-0 px per px, whose slide's bounds begin at `bounds_px0`, else the origin."""
    height, width = next(iter(masks.values())).shape
    size_px0 = (int(np.ceil(width * scale[0])), int(np.ceil(height * scale[1])))
    grid = Grid(size_px0, (0.5, 0.5), scale, 16, 16, origin_px0)
    assert grid.size_px == (width, height)
    bounds = [*(origin_px0 if bounds_px0 is None else bounds_px0), *size_px0]
    meta = {"slide_id": path.stem, "pixel_digest": "p", "slide": {"bounds_px0": bounds}}
    store = SlideStore.create(path, grid, 0, meta)
    for name, mask in masks.items():
        write_mask(store, name, mask)
    return store


def write_mask(store: SlideStore, name: str, mask: Mask, digest: str = "d") -> None:
    """Write `labels/<name>` with the classes of NAMES."""
    shards = (
        (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
        for shard, w in shard_windows(store.mask_spec)
    )
    store.write_labels(name, NAMES, {"digest": digest}, shards)


def inside(rings: Sequence[NDArray[np.generic]], x: float, y: float) -> bool:
    """Whether a point lies in a polygon, by the edges to its left, one by one."""
    odd = False
    for ring in rings:
        points = ring.tolist()
        for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
            if (y1 > y) != (y2 > y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) < x:
                odd = not odd
    return odd


def pixels_of(rings: Sequence[NDArray[np.generic]], shape: tuple[int, int]) -> set[tuple[int, int]]:
    """(y, x) of the pixels whose centre lies in a polygon."""
    return {(y, x) for y in range(shape[0]) for x in range(shape[1]) if inside(rings, x + 0.5, y + 0.5)}


def pieces_of(mask: Mask) -> list[tuple[int, set[tuple[int, int]]]]:
    """Value and pixels (y, x) of all pieces but those of 0, by flooding from pixel to pixel; first pixels ascending."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    out = []
    while left:
        start = min(left)
        value, piece, border = mask[start], set[tuple[int, int]](), [start]
        left.remove(start)
        while border:
            y, x = border.pop()
            piece.add((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and mask[near] == value:
                    left.remove(near)
                    border.append(near)
        out.append((int(value), piece))
    return out
