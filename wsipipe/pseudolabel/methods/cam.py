"""Plain CAM: class activation maps of a classifier of windows (Zhou et al., CVPR 2016), the baseline of all methods.

A classifier with global average pooling learns the weak labels of windows of tissue: the patch itself of a patch bag;
windows drawn from a slide or region, each with the label of its bag. With f_k(x, y) the last feature map of a window
and w_k^c the weights of the linear layer behind the pooling,

    S_c       = sum_k w_k^c mean_xy f_k(x, y)      (eq. 1)   the evidence that the classifier is trained on,
    M_c(x, y) = sum_k w_k^c f_k(x, y)              (eq. 2)   the map of where it comes from.

Maps of windows are enlarged bilinearly, as published. A window whose S_c denies class c has no map of it; the maps of
the windows, which overlap by half, are averaged, negative evidence is cut off, and each class is divided by its
maximum over the slide.

Deviations, with their reason: independent sigmoids with a bias in place of the softmax without, since several classes
or none may hold; the mean over x, y in place of the sum, which is the same up to a factor; the map is the deepest of
the backbone at a stride of 16 at most (the paper cut its networks there too), without another convolution behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config import check, option
from wsipipe.errors import ConfigError
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.encoders import normalise, tokens
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.lattice import Lattice, read_crops
from wsipipe.pseudolabel.method import Fitting, ScoreMap
from wsipipe.pseudolabel.parts.classifier import train_classifier
from wsipipe.runtime import autocast
from wsipipe.store import SlideStore

MOST_STRIDE = 16
"""Input px that one cell of the feature map may stand for; 14 x 14 cells of 224 px in the paper."""

TOGETHER = 64
"""Windows that go through the network in one call."""


@dataclass(frozen=True)
class Params:
    """Parameters of plain CAM."""

    cells: int = option(16, "scores along the side of a patch: the map is enlarged to this")
    shrink: int = option(2, "working pixels per input pixel of the classifier; 2 at 0.5 um/px is 1 um/px")
    min_tissue: float = option(0.5, "least share of tissue in a cell that gets a score")
    windows: int = option(32, "windows of patch size drawn from each slide or region; a patch is one")
    max_windows: int = option(8000, "most windows held in memory for training")
    steps: int = option(600, "training steps of the classifier")
    lr: float = option(1e-3, "highest learning rate of the classifier")
    batch: int = option(64, "windows in a step")
    threshold: float = option(0.2, "share of a map's maximum above which a class is painted; 0.2 as published")

    def __post_init__(self) -> None:
        for name in ("cells", "shrink", "windows", "steps"):
            check(getattr(self, name) >= 1, f"cam.{name}: {getattr(self, name)} is below 1")
        for name in ("max_windows", "batch"):
            check(getattr(self, name) >= 2, f"cam.{name}: {getattr(self, name)} is below 2")
        check(0 < self.min_tissue <= 1, f"cam.min_tissue: {self.min_tissue} is not a share above 0")
        check(0 < self.threshold < 1, f"cam.threshold: {self.threshold} is outside 0..1")


class CamClassifier(nn.Module):
    """A backbone, global average pooling, and a linear layer that may stand before the pooling too."""

    def __init__(self, encoder: nn.Module, input_px: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.level = _level(encoder)
        encoder.eval()
        with torch.inference_mode():
            width = self.features(torch.zeros(1, 3, input_px, input_px)).shape[1]
        self.linear = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """f_k(x, y): windows (normalised) float [B, 3, s, s] -> float [B, D, h, w]."""
        return tokens(self.encoder, x, self.level).movedim(-1, 1)

    def maps(self, x: Tensor) -> Tensor:
        """M_c(x, y), eq. 2: windows (normalised) float [B, 3, s, s] -> float [B, K, h, w]."""
        return torch.einsum("ck,bkyx->bcyx", self.linear.weight, self.features(x))

    def evidence(self, maps: Tensor) -> Tensor:
        """S_c, eq. 1, with the bias: maps float [B, K, h, w] -> logits float [B, K]."""
        return maps.mean((2, 3)) + self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Windows (normalised) float [B, 3, s, s] -> logits float [B, K]: several, one or none may hold."""
        return self.evidence(self.maps(x))


def _level(encoder: nn.Module) -> int:
    """Index of the deepest feature map at a stride of `MOST_STRIDE` at most, or of the last if all are coarser."""
    strides = [int(level["reduction"]) for level in cast(Any, getattr(encoder, "feature_info", None) or ())]
    if not strides or not hasattr(encoder, "forward_intermediates"):
        raise ConfigError(f"cam: {type(encoder).__name__} gives no feature maps; choose another --encoder")
    return max((i for i, s in enumerate(strides) if s <= MOST_STRIDE), default=len(strides) - 1)


def lattice(patch_px: int, params: Params) -> Lattice:
    """Scores of patch_px / cells px; the classifier sees windows of patch_px."""
    m = patch_px // params.cells
    check(m * params.cells == patch_px, f"cam.cells: a patch of {patch_px} px does not split into {params.cells}")
    return Lattice(m, patch_px, params.shrink)


def build(classes: Classes, encoder: nn.Module, lattice: Lattice) -> nn.Module:
    """The classifier of windows."""
    return CamClassifier(encoder, lattice.input_px, len(classes))


def fit(bags: Sequence[Bag], lattice: Lattice, params: Params, run: Fitting) -> nn.Module:
    """Train the classifier on windows with the labels of their bags; there is no round of self-training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.compute.seed)
        model = build(run.classes, run.encoder(), lattice)
    windows, targets = training_windows(bags, lattice, params, run.compute.seed)
    schedule = Schedule(params.steps, params.lr, weight_decay=1e-2)
    train_classifier(model, windows, targets, schedule, "classify", run.compute, params.batch)
    return model


def training_windows(
    bags: Sequence[Bag], lattice: Lattice, params: Params, seed: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Windows around drawn cells with tissue, and the labels of their bags: uint8 [M, 3, s, s], float [M, K].

    No window of a patch or region reaches over its edge, so that of a patch is the patch.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for b, bag in enumerate(bags):
        count = 1 if bag.patch else params.windows
        pairs += [(b, int(i)) for i in rng.choice(len(bag.xy_px), count, replace=count > len(bag.xy_px))]
    keep = np.sort(rng.permutation(len(pairs))[: params.max_windows])
    of_bag: dict[int, list[int]] = {}
    for b, i in (pairs[k] for k in keep):
        of_bag.setdefault(b, []).append(i)
    windows = [read_crops(bags[b].store, bags[b].xy_px[i], lattice, bags[b].bounds) for b, i in of_bag.items()]
    labels = [bags[b].label for b, cells in of_bag.items() for _ in cells]
    return np.concatenate(windows), torch.tensor(labels, dtype=torch.float32)


def score(model: nn.Module, store: SlideStore, lattice: Lattice, params: Params, on: torch.device) -> ScoreMap:
    """Class maps of the whole slide, every class divided by its maximum over the slide's tissue.

    Windows start at the slide's top left and overlap by half. Where the classifier finds a class in no window, its map
    is 0.
    """
    assert isinstance(model, CamClassifier)
    m, n = lattice.instance_px, lattice.seen_px // lattice.instance_px
    rows, cols = (-(-size // m) for size in (store.grid.size_px[1], store.grid.size_px[0]))
    known = np.zeros((rows, cols), bool)
    cells = lattice.cells(store, params.min_tissue)
    known[cells[:, 0], cells[:, 1]] = True
    total = np.zeros((model.linear.out_features, rows, cols), np.float32)
    count = np.zeros((rows, cols), np.float32)
    corners = window_corners(known, n)
    for first in range(0, len(corners), TOGETHER):
        some = corners[first : first + TOGETHER]
        maps = _window_maps(model, store, some * m, lattice, on)
        for (r, c), values in zip(some.tolist(), maps, strict=True):
            total[:, r : r + n, c : c + n] += values[:, : rows - r, : cols - c]
            count[r : r + n, c : c + n] += 1
    mean = np.where(known, np.maximum(total / np.maximum(count, 1), 0), np.nan).astype(np.float32)
    top = np.nanmax(mean, axis=(1, 2), keepdims=True, initial=0)
    return ScoreMap(np.divide(mean, top, out=mean, where=top > 0), m)


def window_corners(known: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Windows of side x side cells that overlap by half and hold a known cell: int [M, 2] (row, col) of the top left.

    The last window of a row or column is shifted to end at the edge of `known` (bool [rows, cols]).
    """

    def starts(length: int) -> list[int]:
        return sorted({max(0, min(i, length - side)) for i in range(0, length, max(1, side // 2))})

    corners = [(r, c) for r in starts(known.shape[0]) for c in starts(known.shape[1])]
    holding = [(r, c) for r, c in corners if known[r : r + side, c : c + side].any()]
    return np.array(holding, np.int64).reshape(-1, 2)


def _window_maps(
    model: CamClassifier, store: SlideStore, corner_px: NDArray[np.int64], lattice: Lattice, on: torch.device
) -> Iterator[NDArray[np.float32]]:
    """The map of every window, top left (y, x) at int [M, 2], enlarged to its cells: float32 [K, n, n] each.

    A class that the classifier denies of the window is 0 in it.
    """
    n = lattice.seen_px // lattice.instance_px
    instance_px = corner_px[:, ::-1] + (lattice.seen_px - lattice.instance_px) // 2
    crops = torch.from_numpy(read_crops(store, instance_px.astype(np.int32), lattice))
    model.to(on).eval()
    with torch.inference_mode(), autocast(on):
        maps = model.maps(normalise(crops.to(on))).float()
        maps = maps * (model.evidence(maps) >= 0)[:, :, None, None]
    yield from F.interpolate(maps, size=(n, n), mode="bilinear", align_corners=False).cpu().numpy()


def refine(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The strongest class where it exceeds the threshold, 0 where none does, 255 where nothing was scored."""
    m = np.nan_to_num(scores.values, nan=0.0)
    mask = np.where(m.max(0) > params.threshold, m.argmax(0) + 1, 0).astype(np.uint8)
    mask[np.isnan(scores.values).all(0)] = IGNORE
    return mask
