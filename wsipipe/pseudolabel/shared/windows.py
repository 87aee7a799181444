"""Windows of tissue for classifiers of images, whose class activation maps become scores: drawn and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.geometry import Window
from wsipipe.labels import Tissue
from wsipipe.nn.augment import STAIN_STRENGTH
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, corners_of, read_crops
from wsipipe.pseudolabel.params import MethodParams
from wsipipe.pseudolabel.shared.classifier import ClassifierTraining, apply_in_batches, train_classifier
from wsipipe.pseudolabel.shared.sampling import prevalence_k
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

WINDOWS_PER_CALL = 64
"""Windows that go through a network in one call."""


@dataclass(frozen=True)
class Windows:
    """Windows of bags, s input px a side.

    rgb: uint8 [M, 3, s, s]. tissue: bool [M, s, s]. labels: float32 [M, K] of 1, 0 or nan (unknown). bag: int64 [M],
    index of the bag. patch: bool [M], whether the bag is a single patch; its window is then all that the label is
    about.
    """

    rgb: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    labels: Tensor
    bag: NDArray[np.int64]
    patch: NDArray[np.bool_]


def draw_windows(bags: Sequence[Bag], instance_grid: InstanceGrid, per_bag: int, most: int, seed: int) -> Windows:
    """Windows around random instances with the labels of their bags: one per patch, `per_bag` per slide or region.

    At most `most` in total. No window reaches over the bounds of its bag, so that of a patch is the patch itself.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for b, bag in enumerate(bags):
        count = 1 if bag.patch else per_bag
        pairs += [(b, int(i)) for i in rng.choice(len(bag.xy_px), count, replace=count > len(bag.xy_px))]
    kept = np.array([pairs[k] for k in np.sort(rng.permutation(len(pairs))[:most])], np.int64).reshape(-1, 2)
    rgb, tissue = [], []
    for b in np.unique(kept[:, 0]):
        bag, xy = bags[b], bags[b].xy_px[kept[kept[:, 0] == b, 1]]
        rgb.append(read_crops(bag.store, xy, instance_grid, bag.bounds))
        tissue.append(read_tissue(bag.store, xy, instance_grid, bag.bounds))
    labels = torch.tensor([bags[b].label for b in kept[:, 0]], dtype=torch.float32)
    patch = np.array([bags[b].patch for b in kept[:, 0]])
    return Windows(np.concatenate(rgb), np.concatenate(tissue), labels, kept[:, 0], patch)


def read_tissue(
    store: SlideStore, xy_px: NDArray[np.int32], instance_grid: InstanceGrid, bounds: Window | None = None
) -> NDArray[np.bool_]:
    """Whether at least half of each input pixel is tissue, for the crops of `read_crops`: bool [M, s, s]."""
    array, f, n = store.labels("tissue"), instance_grid.shrink, instance_grid.seen_px
    side = instance_grid.input_px
    out = np.empty((len(xy_px), side, side), bool)
    for i, (x, y) in enumerate(corners_of(xy_px, instance_grid, bounds).tolist()):
        tissue = array.read(Window(x, y, n, n)) == Tissue.TISSUE
        out[i] = tissue.reshape(side, f, side, f).mean((1, 3)) >= 0.5
    return out


@dataclass(frozen=True)
class WindowParams(MethodParams):
    """Parameters shared by all methods whose maps come from a classifier of windows; a method adds its own."""

    map_size: int = option(16, "scores along each side of a patch; class maps are resized to it")
    shrink: int = option(2, "working px per input px of the networks; 2 at 0.5 um/px is 1 um/px")
    min_tissue: float = option(0.5, "least fraction of tissue in a cell that gets a score")
    windows: int = option(32, "windows of patch size drawn per slide or region; a patch is one window")
    max_windows: int = option(8000, "most windows in memory for training")
    prevalence: float = option(0.2, "fraction of a positive slide's windows that keep its label; 0: all, as published")
    steps: int = option(600, "training steps of the classifier")
    lr: float = option(1e-3, "peak learning rate of the classifier")
    batch: int = option(64, "windows per step of the classifier")
    stain_jitter: float = option(STAIN_STRENGTH, "strength of the stain jitter in training; 0: none")

    def __post_init__(self) -> None:
        self.check_min(1, "map_size", "shrink", "windows", "steps")
        self.check_min(2, "max_windows", "batch")
        self.check_positive("lr")
        self.check("min_tissue", 0 < self.min_tissue <= 1, "is not a fraction above 0")
        for name in ("prevalence", "stain_jitter"):
            self.check(name, 0 <= getattr(self, name) <= 1, "is outside 0..1")

    def check_scales(self, name: str) -> None:
        """ConfigError unless parameter `name` holds at least one size between 0.25 and 4."""
        scales = getattr(self, name)
        self.check(
            name, len(scales) > 0 and all(0.25 <= s <= 4 for s in scales), "holds no or other sizes than 0.25..4"
        )

    def instance_grid(self, patch_px: int) -> InstanceGrid:
        """Scores of patch_px / map_size px; the classifier sees windows of patch_px."""
        m = patch_px // self.map_size
        self.check("map_size", m * self.map_size == patch_px, f"does not divide a patch of {patch_px} px")
        return InstanceGrid(m, patch_px, self.shrink)


def train_windows(model: nn.Module, windows: Windows, params: WindowParams, compute: ComputeContext) -> None:
    """Train `model`, windows (normalised) float [B, 3, s, s] -> logits [B, K], on the labels of windows.

    With a `prevalence` above 0, after half of the steps only that fraction of the windows of a positive slide or
    region, the highest by score, keeps the label; the others become unknown.
    """
    training = ClassifierTraining(params.batch, params.stain_jitter)

    def learn(labels: Tensor, steps: int) -> None:
        schedule = Schedule(steps, params.lr, weight_decay=1e-2)
        train_classifier(model, windows.rgb, labels, schedule, training, "classify", compute)

    if params.prevalence == 0 or windows.patch.all():
        learn(windows.labels, params.steps)
        return
    half = max(1, params.steps // 2)
    learn(windows.labels, half)
    logits = apply_in_batches(model, windows.rgb, compute.device)
    learn(prevalent_labels(windows, logits, params.prevalence), max(1, params.steps - half))


def prevalent_labels(windows: Windows, logits: Tensor, prevalence: float) -> Tensor:
    """Labels float32 [M, K]; of a positive slide or region only the highest windows stay 1, the others become nan."""
    labels = windows.labels.clone()
    for b in np.unique(windows.bag[~windows.patch]):
        own = torch.from_numpy(np.flatnonzero(windows.bag == b))
        count = prevalence_k(len(own), prevalence)
        for k in torch.nonzero(labels[own[0]] == 1).ravel().tolist():
            order = torch.sort(logits[own, k], descending=True, stable=True).indices
            labels[own[order[count:]], k] = float("nan")
    return labels
