"""Training windows with their masks, drawn straight from the stores and augmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Generator, Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.nn.augment import STAIN_STRENGTH, TissueAugment, Zoom
from wsipipe.nn.train import generator
from wsipipe.store import SlideStore

CPU = torch.device("cpu")

PRESENT = 0.01
"""Least fraction of a patch that a mask value must cover to count as present."""

PURE = 0.98
"""Least fraction of a quarter of a patch that one value must cover for the quarter to be pure."""


@dataclass(frozen=True)
class Sample:
    """A usable patch of a store.

    values: the mask values (0..K) present in it. labelled: fraction of its pixels that are not ignored. pure: for each
    of its four quarters, row by row, the value that the quarter is pure in, -1 if it is not.
    """

    store: SlideStore
    window: Window
    values: tuple[int, ...]
    labelled: float
    pure: tuple[int, int, int, int]


@dataclass(frozen=True)
class Batch:
    """rgb: float32 0..1 [B, 3, S, S]; mask: int64 [B, S, S] of 0..K and 255.

    valid: bool [B, S, S], the pixels whose label a teacher may correct. allowed: bool [B, K + 1], the values that occur
    in the mask of the slide.
    """

    rgb: Tensor
    mask: Tensor
    valid: Tensor
    allowed: Tensor

    def split(self, parts: int) -> list[Batch]:
        """At most `parts` batches of equal size, the last perhaps smaller."""
        size = -(-len(self.rgb) // parts)
        columns = (torch.split(t, size) for t in (self.rgb, self.mask, self.valid, self.allowed))
        return [Batch(*c) for c in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Variation:
    """How windows are augmented, beside the symmetries of the square.

    max_zoom: largest enlargement or reduction (1: none). shift: whether windows may lie between patches. mosaic_prob:
    fraction of images built as 2 x 2 mosaics of single-class quarters. stain_jitter: strength of the stain jitter.
    border_px: distance on either side of a border between two values in which the mask is ignored.
    """

    max_zoom: float = 1.0
    shift: bool = True
    mosaic_prob: float = 0.0
    stain_jitter: float = STAIN_STRENGTH
    border_px: int = 0


def find_samples(stores: Sequence[SlideStore], labels: str, classes: int) -> list[Sample]:
    """The usable patches with a labelled pixel; ConfigError if there are none."""
    samples = []
    for store in stores:
        array = store.labels(labels)
        for window in store.patches().windows:
            mask = array.read(window)
            share = np.bincount(mask.ravel(), minlength=256) / mask.size
            values = tuple(v for v in range(classes + 1) if share[v] >= PRESENT)
            if values:
                samples.append(Sample(store, window, values, float(1 - share[IGNORE]), _pure(mask)))
    if not samples:
        raise ConfigError(f"labels/{labels} is 255 (ignore) in every patch of every training store: nothing to learn")
    return samples


def _pure(mask: NDArray[np.generic]) -> tuple[int, int, int, int]:
    h, w = (n // 2 for n in mask.shape)
    out = []
    for part in (mask[:h, :w], mask[:h, w:], mask[h:, :w], mask[h:, w:]):
        counts = np.bincount(part.ravel(), minlength=256)
        value = int(counts.argmax())
        out.append(value if value != IGNORE and counts[value] >= PURE * part.size else -1)
    a, b, c, d = out
    return a, b, c, d


class Batches:
    """Batches by step, class-balanced, then slide-balanced; patches with fewer ignored pixels are drawn more often.

    A batch depends on its step alone; it is augmented on the device `on`.
    """

    def __init__(
        self, samples: Sequence[Sample], labels: str, size: int, seed: int, how: Variation = Variation()
    ) -> None:
        self.samples, self.labels, self.size, self.seed, self.how = samples, labels, size, seed, how
        self.side_px = samples[0].window.width_px
        zoom = (Zoom(how.max_zoom, self.side_px),) if how.max_zoom > 1 else ()
        self._augment = TissueAugment(how.stain_jitter, zoom)
        self.pools = _pools(samples)
        self._pure = _pure_pools(samples)
        stores = {s.store.path: s.store for s in samples}
        self._usable = {path: _Usable(store) for path, store in stores.items()}
        allowed: dict[Path, set[int]] = {path: set() for path in stores}
        for s in samples:
            allowed[s.store.path] |= set(s.values)
        most = max(v for values in allowed.values() for v in values)
        self._allowed = {path: [v in values for v in range(most + 1)] for path, values in allowed.items()}

    def __call__(self, step: int, on: torch.device = CPU, only: slice = slice(None)) -> Batch:
        """The images `only` (default: all) of the batch of one step."""
        g = generator(self.seed, 4, step)
        drawn = [self._drawn(step * self.size + b, g) for b in range(self.size)]
        moved = [self._shift(g) for _ in drawn]
        mosaics = (torch.rand(self.size, generator=g) < self.how.mosaic_prob).tolist()
        parts = [[self._quarter(g) for _ in range(4)] if m and len(self._pure) > 1 else [] for m in mosaics]
        raw = [self._read(*item) for item in list(zip(drawn, moved, parts, strict=True))[only]]
        rgb, mask, valid = (torch.from_numpy(np.stack(column)).to(on) for column in zip(*raw, strict=True))
        allowed = torch.tensor([self._allowed[s.store.path] for s in drawn[only]], device=on)
        own = generator(self.seed, 5, step, only.start or 0)
        x, y, there = self._augmented(rgb.movedim(-1, 1), mask, valid, own)
        return Batch(x, y, there, allowed)

    def _drawn(self, number: int, g: Generator) -> Sample:
        """The patch around which image `number` of the training lies."""
        slides = self.pools[number % len(self.pools)]
        pool = slides[int(torch.randint(0, len(slides), (1,), generator=g))]
        at = torch.searchsorted(pool.weights, torch.rand(1, generator=g) * pool.weights[-1], right=True)
        return self.samples[pool.members[min(int(at), len(pool.members) - 1)]]

    def _shift(self, g: Generator) -> tuple[int, int]:
        """Offset of a window from its patch, in px."""
        far = self.side_px // 4
        x, y = torch.randint(-far, far + 1, (2,), generator=g).tolist()
        return (x, y) if self.how.shift else (0, 0)

    def _quarter(self, g: Generator) -> tuple[Sample, int]:
        """A pure quarter, balanced over values."""
        pool = self._pure[int(torch.randint(0, len(self._pure), (1,), generator=g))]
        i, quarter = pool[int(torch.randint(0, len(pool), (1,), generator=g))]
        return self.samples[i], quarter

    def _read(
        self, sample: Sample, moved: tuple[int, int], parts: Sequence[tuple[Sample, int]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels uint8 [R, R, 3], mask uint8 [R, R] and the valid pixels, bool [R, R], with margin for the zoom."""
        if parts:
            return self._mosaic(parts)
        margin = math.ceil(self.side_px * (self.how.max_zoom - 1) / 2)
        w = sample.window
        w = Window(w.x_px + moved[0], w.y_px + moved[1], w.width_px, w.height_px).grown(margin)
        mask = self._mask(sample.store, w)
        valid = self._usable[sample.store.path].read(w)
        mask[~valid] = IGNORE
        return sample.store.read(w), mask, valid

    def _mask(self, store: SlideStore, w: Window) -> NDArray[np.uint8]:
        """The mask of a window, ignored near its borders: uint8 [h, w]."""
        far = self.how.border_px
        mask = store.labels(self.labels).read(w.grown(far)).astype(np.uint8)
        if far:
            mask[near_borders(mask, far)] = IGNORE
        return mask[far : far + w.height_px, far : far + w.width_px]

    def _mosaic(
        self, parts: Sequence[tuple[Sample, int]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """A 2 x 2 mosaic of pure quarters, mirrored outwards as far as the zoom reaches."""
        n, half = self.side_px, self.side_px // 2
        rgb, mask = np.empty((n, n, 3), np.uint8), np.empty((n, n), np.uint8)
        for k, (sample, quarter) in enumerate(parts):
            w = sample.window
            source = Window(w.x_px + quarter % 2 * half, w.y_px + quarter // 2 * half, half, half)
            at = np.s_[k // 2 * half : k // 2 * half + half, k % 2 * half : k % 2 * half + half]
            rgb[at], mask[at] = sample.store.read(source), sample.store.labels(self.labels).read(source)
        margin = math.ceil(n * (self.how.max_zoom - 1) / 2)
        around = ((margin, margin), (margin, margin))
        return (
            np.pad(rgb, (*around, (0, 0)), "reflect"),
            np.pad(mask, around, "reflect"),
            np.zeros((n + 2 * margin, n + 2 * margin), bool),
        )

    def _augmented(self, rgb: Tensor, mask: Tensor, valid: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Augment on the device of `rgb`, uint8 [B, 3, R, R] -> S x S."""
        both = torch.stack([mask.float(), valid.float()], 1)
        x, both = self._augment.with_maps(rgb.float() / 255, both, g)
        return x, both[:, 0].round().long(), both[:, 1] > 0.5


def near_borders(mask: NDArray[np.uint8], far_px: int) -> NDArray[np.bool_]:
    """Whether two values other than 255 lie within `far_px` rows and columns of a pixel: bool [h, w]."""
    side = 2 * far_px + 1
    known = mask != IGNORE
    low = minimum_filter(mask, side, mode="nearest")  # 255 is above all values
    high = maximum_filter(np.where(known, mask + 1, 0).astype(np.uint8), side, mode="nearest")  # 0 is below them
    return np.asarray((high > 0) & (high.astype(np.int16) - 1 > low))


class Pool:
    """Samples of one value in one slide: `members` are indices, `weights` the running sum of labelled fractions."""

    def __init__(self, members: list[int], samples: Sequence[Sample]) -> None:
        self.members = members
        self.weights = torch.tensor([samples[i].labelled for i in members], dtype=torch.float64).cumsum(0).float()


def _pools(samples: Sequence[Sample]) -> list[list[Pool]]:
    """For each value, a pool of each slide that has it."""
    found: dict[int, dict[Path, list[int]]] = {}
    for i, s in enumerate(samples):
        for value in s.values:
            found.setdefault(value, {}).setdefault(s.store.path, []).append(i)
    return [[Pool(members, samples) for members in found[v].values()] for v in sorted(found)]


def _pure_pools(samples: Sequence[Sample]) -> list[list[tuple[int, int]]]:
    """For each value that has any, its pure quarters: (sample, quarter)."""
    found: dict[int, list[tuple[int, int]]] = {}
    for i, s in enumerate(samples):
        for quarter, value in enumerate(s.pure):
            if value >= 0:
                found.setdefault(value, []).append((i, quarter))
    return [found[v] for v in sorted(found)]


class _Usable:
    """Where a store has pixels to learn from: inside its usable patches."""

    def __init__(self, store: SlideStore) -> None:
        table = store.patches()
        self._cell_px = math.gcd(table.grid.patch_px, table.grid.stride_px)
        width, height = store.grid.size_px
        n = self._cell_px
        self._size = width, height
        self._cells = np.zeros((-(-height // n) + 1, -(-width // n) + 1), bool)
        for w in table.windows:
            self._cells[w.y_px // n : (w.y_px + w.height_px) // n, w.x_px // n : (w.x_px + w.width_px) // n] = True

    def read(self, w: Window) -> NDArray[np.bool_]:
        """Bool [h, w] of a window, false beyond the slide."""
        y, x = np.arange(w.y_px, w.y_px + w.height_px), np.arange(w.x_px, w.x_px + w.width_px)
        inside = ((y >= 0) & (y < self._size[1]))[:, None] & ((x >= 0) & (x < self._size[0]))
        rows, cols = (np.clip(v // self._cell_px, 0, n - 1) for v, n in zip((y, x), self._cells.shape, strict=True))
        return np.asarray(self._cells[np.ix_(rows, cols)] & inside)
