"""Windows of tissue for the classifiers of images that class maps come from: drawn for training, and stitched again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.geometry import Window
from wsipipe.nn.augment import STAIN_STRENGTH
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, corners_of, read_crops
from wsipipe.pseudolabel.shared.classifier import Retraining, apply_in_batches, train_classifier
from wsipipe.pseudolabel.shared.mil import prevalence_k
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

TOGETHER = 64
"""Windows that go through a network in one call."""


@dataclass(frozen=True)
class Windows:
    """Windows of bags, s input px a side.

    rgb: uint8 [M, 3, s, s]. tissue: bool [M, s, s], whether a pixel is tissue. labels: float32 [M, K] of 1, 0 or nan
    (not known). bag: int64 [M], which bag a window is of. patch: bool [M], whether that bag is one patch, and the
    window so the whole of what its label is about.
    """

    rgb: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    labels: Tensor
    bag: NDArray[np.int64]
    patch: NDArray[np.bool_]


def draw_windows(bags: Sequence[Bag], lattice: InstanceGrid, per_bag: int, most: int, seed: int) -> Windows:
    """Windows around drawn instances with the labels of their bags: one of a patch, `per_bag` of a slide or region.

    At most `most` in all. No window reaches over the edge of its bag, so that of a patch is the patch.
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
        rgb.append(read_crops(bag.store, xy, lattice, bag.bounds))
        tissue.append(read_tissue(bag.store, xy, lattice, bag.bounds))
    labels = torch.tensor([bags[b].label for b in kept[:, 0]], dtype=torch.float32)
    patch = np.array([bags[b].patch for b in kept[:, 0]])
    return Windows(np.concatenate(rgb), np.concatenate(tissue), labels, kept[:, 0], patch)


def read_tissue(
    store: SlideStore, xy_px: NDArray[np.int32], lattice: InstanceGrid, bounds: Window | None = None
) -> NDArray[np.bool_]:
    """Whether the pixels that `read_crops` gives of the same instances are mostly tissue: bool [M, s, s]."""
    array, f, n = store.labels("tissue"), lattice.shrink, lattice.seen_px
    out = np.empty((len(xy_px), lattice.input_px, lattice.input_px), bool)
    for i, (x, y) in enumerate(corners_of(xy_px, lattice, bounds).tolist()):
        tissue = array.read(Window(x, y, n, n)) == 1
        out[i] = tissue.reshape(lattice.input_px, f, lattice.input_px, f).mean((1, 3)) >= 0.5
    return out


@dataclass(frozen=True)
class WindowParams:
    """What all methods whose maps come from a classifier of windows have in common; a method adds its own."""

    cells: int = option(16, "scores along the side of a patch: maps are enlarged to this")
    shrink: int = option(2, "working pixels per input pixel of the networks; 2 at 0.5 um/px is 1 um/px")
    min_tissue: float = option(0.5, "least share of tissue in a cell that gets a score")
    windows: int = option(32, "windows of patch size drawn from each slide or region; a patch is one")
    max_windows: int = option(8000, "most windows held in memory for training")
    prevalence: float = option(0.2, "share of a positive slide's windows that keep its label; 0: all, as published")
    steps: int = option(600, "training steps of the classifier")
    lr: float = option(1e-3, "highest learning rate of the classifier")
    batch: int = option(64, "windows in a step of the classifier")
    stain_jitter: float = option(STAIN_STRENGTH, "strength of the stain jitter in training; 0: none")

    def __post_init__(self) -> None:
        for name in ("cells", "shrink", "windows", "steps"):
            self.check(name, getattr(self, name) >= 1, "is below 1")
        for name in ("max_windows", "batch"):
            self.check(name, getattr(self, name) >= 2, "is below 2")
        self.check("lr", self.lr > 0, "is not above 0")
        self.check("min_tissue", 0 < self.min_tissue <= 1, "is not a share above 0")
        for name in ("prevalence", "stain_jitter"):
            self.check(name, 0 <= getattr(self, name) <= 1, "is outside 0..1")

    def check(self, name: str, ok: bool, problem: str) -> None:
        """ConfigError that names the parameter by method and name, what it is and what is wrong with it."""
        check(ok, f"{self._method}.{name}: {getattr(self, name)!r} {problem}")

    @property
    def _method(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def lattice(self, patch_px: int) -> InstanceGrid:
        """Scores of patch_px / cells px; the classifier sees windows of patch_px."""
        m = patch_px // self.cells
        splits = m * self.cells == patch_px
        check(splits, f"{self._method}.cells: a patch of {patch_px} px does not split into {self.cells}")
        return InstanceGrid(m, patch_px, self.shrink)

    @property
    def training(self) -> WindowTraining:
        """How the classifier is trained."""
        return WindowTraining(self.steps, self.lr, self.batch, self.prevalence, self.stain_jitter)


@dataclass(frozen=True)
class WindowTraining:
    """How a classifier of windows is trained.

    prevalence: 0 gives every window the label of its bag, as published. Above 0, after half of the steps only the best
    such share of the windows of a positive slide or region keeps the label; of the others nothing is believed.
    """

    steps: int
    lr: float
    batch: int = 64
    prevalence: float = 0.0
    stain_jitter: float = STAIN_STRENGTH


def train_windows(model: nn.Module, windows: Windows, how: WindowTraining, compute: ComputeContext) -> None:
    """Train `model`, windows (normalised) float [B, 3, s, s] -> logits [B, K], on the labels of windows."""

    def learn(labels: Tensor, steps: int) -> None:
        schedule = Schedule(steps, how.lr, weight_decay=1e-2)
        train_classifier(
            model,
            windows.rgb,
            labels,
            schedule,
            "classify",
            compute,
            how.batch,
            Retraining(stain_jitter=how.stain_jitter),
        )

    if how.prevalence == 0 or windows.patch.all():
        learn(windows.labels, how.steps)
        return
    half = max(1, how.steps // 2)
    learn(windows.labels, half)
    targets_from_picks = likeliest(windows, apply_in_batches(model, windows.rgb, compute.device), how.prevalence)
    learn(targets_from_picks, max(1, how.steps - half))


def likeliest(windows: Windows, logits: Tensor, prevalence: float) -> Tensor:
    """Labels float32 [M, K] where only the best share of a positive slide or region is believed positive, else nan."""
    labels = windows.labels.clone()
    for b in np.unique(windows.bag[~windows.patch]):
        own = torch.from_numpy(np.flatnonzero(windows.bag == b))
        count = prevalence_k(len(own), prevalence)
        for k in torch.nonzero(labels[own[0]] == 1).ravel().tolist():
            order = torch.sort(logits[own, k], descending=True, stable=True).indices
            labels[own[order[count:]], k] = float("nan")
    return labels


MapsOf = Callable[..., Tensor]
"""rgb uint8 [B, 3, s, s] and tissue bool [B, s, s] of windows -> their maps, float [B, channels, h, w].

Where `slide_maps` is given denied classes, a third argument are those of the windows, bool [B, K, n, n].
"""


def slide_maps(
    store: SlideStore,
    lattice: InstanceGrid,
    min_tissue: float,
    channels: int,
    maps_of: MapsOf,
    excluded: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """The maps of a whole slide, one value a cell of the lattice: float32 [channels, rows, cols], nan where not scored.

    Windows start at the slide's top left and overlap by half. Their maps are enlarged bilinearly to their cells and
    averaged over the windows that cover a cell, each with the weight of `hat`, so that no window ends in a step. Cells
    with less than `min_tissue` of tissue are not scored. denied: bool [K, rows, cols], for `maps_of`.
    """
    m, n = lattice.instance_px, lattice.seen_px // lattice.instance_px
    rows, cols = store.grid.cells(m)
    known = np.zeros((rows, cols), bool)
    cells = lattice.cells(store, min_tissue)
    known[cells[:, 0], cells[:, 1]] = True
    total = np.zeros((channels, rows, cols), np.float32)
    weights, hats = np.zeros((rows, cols), np.float32), hat(n)
    corners = window_corners(known, n)
    for first in range(0, len(corners), TOGETHER):
        some = corners[first : first + TOGETHER]
        beside = () if excluded is None else (cut(excluded, some, n),)
        for (r, c), values in zip(some.tolist(), _maps_at(store, some * m, lattice, maps_of, *beside), strict=True):
            add_faded(total, weights, (r, c), values, hats)
    return np.where(known, total / np.where(known, weights, 1), np.nan).astype(np.float32)


def hat(side: int) -> NDArray[np.float32]:
    """Weights of a window of side x side cells, float32 [side, side] above 0: 1, 2, .., 2, 1 along rows and columns.

    Those of windows that overlap by half have the same sum everywhere, and the weight of a window fades towards its
    edges, where its network has seen least.
    """
    along = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32)
    return np.outer(along, along)


def add_faded(
    total: NDArray[np.float32],
    weights: NDArray[np.float32],
    corner: tuple[int, int],
    values: NDArray[np.float32],
    hats: NDArray[np.float32],
) -> None:
    """Add a window, float32 [C, n, n] with its top left cell at `corner`, to the weighted sums of a slide.

    total: float32 [C, rows, cols] and weights: float32 [rows, cols], whose quotient is the mean; hats: `hat(n)`.
    """
    (r, c), (rows, cols), n = corner, weights.shape, len(hats)
    total[:, r : r + n, c : c + n] += (values * hats)[:, : rows - r, : cols - c]
    weights[r : r + n, c : c + n] += hats[: rows - r, : cols - c]


def cut(excluded: NDArray[np.bool_], corners: NDArray[np.int64], side: int) -> Tensor:
    """Windows of side x side cells, top left at `corners` int [M, 2]: bool [K, rows, cols] -> [M, K, side, side]."""
    padded = np.pad(excluded, ((0, 0), (0, side), (0, side)))
    return torch.from_numpy(np.stack([padded[:, r : r + side, c : c + side] for r, c in corners.tolist()]))


def window_corners(known: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Windows of side x side cells that overlap by half and hold a known cell: int [M, 2] (row, col) of the top left.

    The last window of a row or column is shifted to end at the edge of `known` (bool [rows, cols]).
    """

    def starts(length: int) -> list[int]:
        return sorted({max(0, min(i, length - side)) for i in range(0, length, max(1, side // 2))})

    corners = [(r, c) for r in starts(known.shape[0]) for c in starts(known.shape[1])]
    holding = [(r, c) for r, c in corners if known[r : r + side, c : c + side].any()]
    return np.array(holding, np.int64).reshape(-1, 2)


def _maps_at(
    store: SlideStore, corner_px: NDArray[np.int64], lattice: InstanceGrid, maps_of: MapsOf, *beside: Tensor
) -> Iterator[NDArray[np.float32]]:
    """The maps of every window, top left (y, x) at int [M, 2], enlarged to its cells: float32 [channels, n, n] each."""
    n = lattice.seen_px // lattice.instance_px
    instance_px = (corner_px[:, ::-1] + (lattice.seen_px - lattice.instance_px) // 2).astype(np.int32)
    rgb = torch.from_numpy(read_crops(store, instance_px, lattice))
    maps = maps_of(rgb, torch.from_numpy(read_tissue(store, instance_px, lattice)), *beside).float()
    yield from F.interpolate(maps, size=(n, n), mode="bilinear", align_corners=False).cpu().numpy()
