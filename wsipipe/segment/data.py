"""Training windows with their masks, drawn straight from the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.nn.augment import STAIN_STRENGTH, blur, dihedral, random_dihedral, stain_jitter
from wsipipe.nn.train import generator
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class Sample:
    """A window of a store and the mask values (0..K) that occur in at least 1 % of it."""

    store: SlideStore
    window: Window
    values: tuple[int, ...]


def find_samples(stores: Sequence[SlideStore], labels: str, classes: int) -> list[Sample]:
    """The usable patches whose mask says something somewhere; ConfigError if no patch does."""
    samples = []
    for store in stores:
        array = store.labels(labels)
        for window in store.patches().windows:
            counts = np.bincount(array.read(window).ravel(), minlength=256)
            values = tuple(v for v in range(classes + 1) if counts[v] >= 0.01 * window.width_px * window.height_px)
            if values:
                samples.append(Sample(store, window, values))
    if not samples:
        raise ConfigError(f"labels/{labels} is 255 (ignore) in every patch of every training store: nothing to learn")
    return samples


class Batches:
    """Batches by step: windows that hold each class in equal numbers, augmented. Depends on nothing but the step."""

    def __init__(self, samples: Sequence[Sample], labels: str, size: int, seed: int) -> None:
        self.samples, self.labels, self.size, self.seed = samples, labels, size, seed
        values = sorted({v for s in samples for v in s.values})
        self.pools = [[i for i, s in enumerate(samples) if v in s.values] for v in values]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float 0..1 [B, 3, S, S] and masks int64 [B, S, S] of one step."""
        g = generator(self.seed, 4, step)
        chosen = []
        for b in range(self.size):
            pool = self.pools[(step * self.size + b) % len(self.pools)]
            chosen.append(self.samples[pool[int(torch.randint(0, len(pool), (1,), generator=g))]])
        rgb = np.stack([s.store.read(s.window) for s in chosen]).transpose(0, 3, 1, 2)
        mask = np.stack([s.store.labels(self.labels).read(s.window) for s in chosen])
        element = random_dihedral(g, self.size)
        x = dihedral(torch.from_numpy(np.ascontiguousarray(rgb)).float() / 255, element)
        y = dihedral(torch.from_numpy(mask).unsqueeze(1), element).squeeze(1)
        return blur(stain_jitter(x, STAIN_STRENGTH, g), 0.2, g), y.long()
