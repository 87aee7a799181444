"""Plain CAM: class activation maps of a classifier of windows (Zhou et al., CVPR 2016), the baseline of all methods.

A classifier with global average pooling learns the weak labels of windows of tissue: the patch itself of a patch bag;
windows drawn from a slide or region, each with the label of its bag. With f_k(x, y) the last feature map of a window
and w_k^c the weights of the linear layer after the pooling,

    S_c       = sum_k w_k^c mean_xy f_k(x, y)      (eq. 1)   the evidence that the classifier is trained on,
    M_c(x, y) = sum_k w_k^c f_k(x, y)              (eq. 2)   the map of where it comes from.

Maps of windows are resized bilinearly, as published. The map of class c is 0 in a window with S_c < 0. The maps of
windows, which overlap by half and count less towards their edges, are averaged, negative values become 0, and each
class is divided by its maximum over the slide.

Deviations, with their reason: independent sigmoids with a bias instead of a softmax without, since several classes or
none may be present; the mean over x, y instead of the sum, which is the same up to a factor; the map is the deepest of
the backbone at a stride of up to 16 (the paper cut its networks there too), without another convolution after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.labels import Classes
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap, argmax_mask
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.slide_maps import slide_maps
from wsipipe.pseudolabel.shared.windows import WindowParams, draw_windows, train_windows
from wsipipe.runtime.device import autocast

REFINEMENT = "none"


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of plain CAM."""

    NAME = "cam"

    threshold: float = option(
        0.2, "fraction of a map's maximum above which a class is painted; 0.2 as published", fit=False
    )
    prevalence: float = option(0.0, "fraction of a positive slide's windows that keep its label; 0: all, as published")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("threshold", 0 < self.threshold < 1, "is outside 0..1")


def instance_grid(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / map_size px; the classifier sees windows of patch_px."""
    return params.instance_grid(patch_px)


def build(classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Params) -> nn.Module:
    """The classifier of windows."""
    return CamClassifier(encoder, instance_grid.input_px, len(classes))


def fit(bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    """Train the classifier on windows with the labels of their bags; there is no round of self-training."""
    compute = context.compute
    model = seeded_init(lambda: build(context.classes, context.encoder(), instance_grid, params), compute.seed)
    windows = draw_windows(bags, instance_grid, params.windows, params.max_windows, compute.seed)
    train_windows(model, windows, params, compute)
    return model


def score(model: nn.Module, context: ScoreContext, params: Params) -> ScoreMap:
    """Class maps of the whole slide, each divided by its maximum over the tissue where no label excludes the class.

    A class that the classifier finds in no window has a map of zeros.
    """
    assert isinstance(model, CamClassifier)
    device = context.device
    model.to(device).eval()

    def maps_of(rgb: Tensor, tissue: Tensor, excluded: Tensor | None) -> Tensor:
        """Maps of windows, 0 where the classifier does not find the class in the window."""
        with torch.inference_mode(), autocast(device):
            maps = model.maps(normalise(rgb.to(device))).float()
            return maps * (model.evidence(maps) >= 0)[:, :, None, None]

    values = np.maximum(slide_maps(context, params.min_tissue, model.linear.out_features, maps_of), 0)
    if context.excluded is not None:
        values[context.excluded & ~np.isnan(values)] = 0
    top = np.nanmax(values, axis=(1, 2), keepdims=True, initial=0)
    values = np.divide(values, top, out=values, where=top > 0)
    background = np.where(np.isnan(values[0]), np.nan, np.float32(params.threshold))
    return ScoreMap(values, background, context.instance_grid.instance_px)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The highest class where it exceeds the threshold, 0 where none does, 255 where nothing was scored."""
    return argmax_mask(scores)
