"""Plain CAM: class activation maps of a classifier of windows (Zhou et al., CVPR 2016), the baseline of all methods.

A classifier with global average pooling learns the weak labels of windows of tissue: the patch itself of a patch bag;
windows drawn from a slide or region, each with the label of its bag. With f_k(x, y) the last feature map of a window
and w_k^c the weights of the linear layer behind the pooling,

    S_c       = sum_k w_k^c mean_xy f_k(x, y)      (eq. 1)   the evidence that the classifier is trained on,
    M_c(x, y) = sum_k w_k^c f_k(x, y)              (eq. 2)   the map of where it comes from.

Maps of windows are enlarged bilinearly, as published. A window whose S_c denies class c has no map of it; the maps of
the windows, which overlap by half and count less towards their edges, are averaged, negative evidence is cut off, and
each class is divided by its maximum over the slide.

Deviations, with their reason: independent sigmoids with a bias in place of the softmax without, since several classes
or none may hold; the mean over x, y in place of the sum, which is the same up to a factor; the map is the deepest of
the backbone at a stride of 16 at most (the paper cut its networks there too), without another convolution behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.labels import Classes
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreMap, strongest
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.windows import WindowParams, draw_windows, slide_maps, train_windows
from wsipipe.runtime.device import autocast
from wsipipe.store import SlideStore

REFINEMENT = "none"


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of plain CAM."""

    threshold: float = option(
        0.2, "share of a map's maximum above which a class is painted; 0.2 as published", fit=False
    )
    prevalence: float = option(0.0, "share of a positive slide's windows that keep its label; 0: all, as published")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.threshold < 1, f"cam.threshold: {self.threshold} is outside 0..1")


def lattice(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / cells px; the classifier sees windows of patch_px."""
    return params.lattice(patch_px)


def build(classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Params) -> nn.Module:
    """The classifier of windows."""
    return CamClassifier(encoder, lattice.input_px, len(classes))


def fit(bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    """Train the classifier on windows with the labels of their bags; there is no round of self-training."""
    model = seeded_init(lambda: build(run.classes, run.encoder(), lattice, params), run.compute.seed)
    windows = draw_windows(bags, lattice, params.windows, params.max_windows, run.compute.seed)
    train_windows(model, windows, params.training, run.compute)
    return model


def score(
    model: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    params: Params,
    on: torch.device,
    excluded: NDArray[np.bool_] | None = None,
) -> ScoreMap:
    """Class maps of the whole slide, every class divided by its maximum over the tissue where no label denies it.

    Where the classifier finds a class in no window, its map is 0.
    """
    assert isinstance(model, CamClassifier)
    model.to(on).eval()

    def maps_of(rgb: Tensor, tissue: Tensor) -> Tensor:
        """Maps of windows, 0 in those of which the classifier denies the class."""
        with torch.inference_mode(), autocast(on):
            maps = model.maps(normalise(rgb.to(on))).float()
            return maps * (model.evidence(maps) >= 0)[:, :, None, None]

    values = np.maximum(slide_maps(store, lattice, params.min_tissue, model.linear.out_features, maps_of), 0)
    if excluded is not None:
        values[excluded & ~np.isnan(values)] = 0
    top = np.nanmax(values, axis=(1, 2), keepdims=True, initial=0)
    values = np.divide(values, top, out=values, where=top > 0)
    return ScoreMap(values, np.where(np.isnan(values[0]), np.nan, np.float32(params.threshold)), lattice.instance_px)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The strongest class where it exceeds the threshold, 0 where none does, 255 where nothing was scored."""
    return strongest(scores)
