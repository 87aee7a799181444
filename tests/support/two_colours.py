"""What the tests of segmentation share: a slide of two colours, its masks, and networks whose answer is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wsipipe.geometry import Window
from wsipipe.nn.encoders import MEAN, STD
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ShardedArray

PATCH_PX = 64


class RedNet(nn.Module):
    """Says that each pixel is class 1 with the probability of its red value, 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        red = (x[:, :1].double() * STD[0] + MEAN[0]).clamp(1e-7, 1 - 1e-7)
        return torch.cat([torch.zeros_like(red), red.logit()], 1)


class CountingNet(RedNet):
    """RedNet that counts the windows it sees and dies at one of its calls."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.calls = self.windows = 0
        self.dies_at = dies_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.windows += len(x)
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return super().forward(x)


class SureNet(nn.Module):
    """Says class 1 everywhere, as surely as a float can."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[:, :1], -80.0), torch.zeros_like(x[:, :1])], 1)


def two_colours(width: int, height: int, seed: int) -> np.ndarray:
    """Glass around tissue, whose left half is pink and right half purple: uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), 243.0)
    inner = np.s_[height // 8 : -height // 8]
    rgb[inner, width // 8 : width // 2] = (226, 160, 192)
    rgb[inner, width // 2 : -width // 8] = (120, 70, 150)
    return np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)


def paint(store: SlideStore, mask: np.ndarray, name: str = "truth", **meta: object) -> None:
    """Write a whole mask uint8 [h, w] as `labels/<name>` of classes pink and purple."""
    values = {0: "none", 1: "pink", 2: "purple", 255: "ignore"}
    attributes = {"digest": f"{name} {store.slide_id}", "classes": ["pink", "purple"], **meta}
    shards = (
        (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
        for shard, w in shard_windows(store.pixels().spec)
    )
    store.write_labels(name, values, attributes, shards)


def colour_mask(rgb: np.ndarray) -> np.ndarray:
    """What `two_colours` drew: 0 glass, 1 pink, 2 purple."""
    green = rgb[..., 1].astype(int)
    return np.select([green > 200, green > 115], [0, 1], 2).astype(np.uint8)


def whole(array: ShardedArray) -> np.ndarray:
    """All pixels of a sharded array."""
    height, width = array.spec.shape[-2:]
    return np.asarray(array.read(Window(0, 0, width, height)))


def frame(store: SlideStore) -> Window:
    """The window of the whole slide."""
    return Window(0, 0, *store.grid.size_px)
