"""The patches that pretraining draws from, balanced over slides, and random views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.geometry import Window
from wsipipe.nn.augment import STAIN_STRENGTH, Crop, TissueAugment
from wsipipe.store import SlideStore

POOL_BYTES = 1 << 30
"""Memory for patches; beyond it, every slide contributes the same number of patches."""

MAX_HELD_OUT = 1024
"""Most patches held out for early stopping; more would add little."""

_READ_TOGETHER = 64


@dataclass(frozen=True)
class Pool:
    """Patches uint8 [P, 3, s, s] with the number of their slide int64 [P], 0, 1, .. without gaps."""

    patches: NDArray[np.uint8]
    slide: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patches)

    def draw(self, count: int, g: torch.Generator) -> Tensor:
        """Patches float 0..1 [count, 3, s, s]: slides are equally likely, then patches within a slide."""
        counts = torch.from_numpy(np.bincount(self.slide))
        starts = torch.cumsum(counts, 0) - counts
        slide = torch.randint(0, len(counts), (count,), generator=g)
        within = (torch.rand(count, generator=g, dtype=torch.float64) * counts[slide]).long()
        return torch.from_numpy(self.patches[(starts[slide] + within).numpy()]).float() / 255

    def split(self, share: float, seed: int) -> tuple[Pool, Pool]:
        """Training and held-out patches: `share` of each slide's patches is held out, at most `MAX_HELD_OUT` in all."""
        rng = np.random.default_rng(seed)
        share = min(share, MAX_HELD_OUT / max(1, len(self)))
        aside = np.zeros(len(self), bool)
        for s in np.unique(self.slide):
            (own,) = np.nonzero(self.slide == s)
            aside[rng.permutation(own)[: round(len(own) * share)]] = True
        return self._only(~aside), self._only(aside)

    def _only(self, chosen: NDArray[np.bool_]) -> Pool:
        return Pool(self.patches[chosen], np.unique(self.slide[chosen], return_inverse=True)[1].astype(np.int64))


def patch_pool(stores: Sequence[SlideStore], input_px: int, shrink: int, seed: int) -> Pool:
    """Windows of the stores' patches (one store at least) at the encoder's resolution, evenly over slides.

    input_px: side of the encoder's input. shrink: working px per input px. A window has 1.5 inputs a side (less where
    patches are smaller), so that two views of it overlap without being the same. Each patch gives up to four windows.
    """
    smallest = min(s.grid.patch_px for s in stores)
    side = max(input_px, min(input_px * 3 // 2, smallest // shrink))
    each = POOL_BYTES // (3 * side * side) // max(1, len(stores))
    rng = np.random.default_rng(seed)
    parts = [_windows_of(s, side, shrink, each, rng) for s in stores]
    parts = [p for p in parts if len(p)]
    if not parts:
        return Pool(np.zeros((0, 3, side, side), np.uint8), np.zeros(0, np.int64))
    return Pool(np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(p) for p in parts]))


def _windows_of(store: SlideStore, side: int, shrink: int, most: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Up to `most` shrunk windows of one slide: uint8 [n, 3, side, side]."""
    patches = store.patches().windows
    side_px = side * shrink
    chosen = np.sort(rng.permutation(4 * len(patches))[:most]) // 4
    windows = []
    for i in chosen.tolist():
        w = patches[i]
        dx, dy = (int(rng.integers(0, max(0, n - side_px) + 1)) for n in (w.width_px, w.height_px))
        windows.append(Window(w.x_px + dx, w.y_px + dy, side_px, side_px))
    out = np.empty((len(windows), 3, side, side), np.uint8)
    for k in range(0, len(windows), _READ_TOGETHER):
        rgb = torch.from_numpy(store.read_batch(windows[k : k + _READ_TOGETHER])).float()
        out[k : k + len(rgb)] = (F.avg_pool2d(rgb, shrink) + 0.5).to(torch.uint8).numpy()
    return out


@dataclass(frozen=True)
class Views:
    """Random views of patches: `input_px` is their side, `stain_jitter` the strength of the stain jitter."""

    input_px: int
    stain_jitter: float = STAIN_STRENGTH

    def draw(self, x: Tensor, g: torch.Generator) -> Tensor:
        """One view of each patch: float 0..1 [B, 3, S, S] -> [B, 3, input_px, input_px].

        A crop of 40 to 100 % of the input's area, one of the 8 symmetries of the square, stain jitter in optical
        density, a slight blur.
        """
        return TissueAugment(self.stain_jitter, (Crop((0.4, 1.0), self.input_px),), blur_prob=0.3)(x, g)
