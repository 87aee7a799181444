"""HistoSegNet: class maps of a classifier of windows, adjusted by rule (Chan et al., ICCV 2019).

1. A network learns the weak labels of windows. s_c = sigmoid(z_c) is its score for a class.
2. A class is present in a window where s_c >= theta_c: sensitivity equals specificity there, and theta_c >= 1/3.
3. Grad-CAM: G_c = s_c max(0, sum_k a_ck A_k) / its maximum over the window where c is present, else 0. The weights a_ck
   are the same for all images, so no backward pass is needed (see `x17` and `activation`).
4. Background: glass, minus classes that are as bright as glass (`exempt`).
5. Other: u (1 - max_c G_c), or the highest of the `other` classes, which are learned but not painted.
6. Only the highest map keeps something, its margin: S_c = max(0, G_c - max over d != c of G_d); S_other = G_other.
7. Maps are averaged over overlapping windows. 8. A dense CRF follows (see `refine.crf`).

With two classes, or one class and background, nothing but u holds a class back. As published, u = 0.05, a position is
painted from 2u / (1 + 2u) = 0.09 of a window's maximum, and the CRF has to find the edge. The default u = 0.2 paints
from 0.29: a map that is blurred by the field of view of its cells crosses the edge of a class at about half of its
height, at less where the class looks different in places. With `other_evidence: absence`, other tissue is the evidence
against the class that is least surely absent; it rivals the classes and comes from the Grad-CAM of -z:
    N = min_c n_c,   n_c = s_c max(0, -sum_k a_ck A_k) / max |sum_k a_ck A_k| where c is present, else 1 - s_c.
Squares of a texture, from patch labels, before any refinement, were found with an IoU of 0.76 by u = 0.2, 0.44 as
published and 0.25 by absence (a ResNet, averaged), and of 0.64, 0.61 and 0.59 by x1.7: next to a class its blurred
evidence exceeds that of its absence.

Adaptations to tissue, with the parameter that restores the published behaviour: the package's encoder with average
pooling instead of X1.7 (`network: x1.7`); the tissue mask instead of brightness (`background: brightness`), whose
threshold is measured from the slide's own glass (`glass: 240`); only the highest windows of a positive slide keep its
label (`prevalence: 0`); u (`other_share: 0.05`; 0 for morphological types, which have no other); windows are patches of
128 px at 1 um/px, so that a patch label is that of one window (published: 224 at 1.2, patches of 448 px with shrink 2).

Deviations without a parameter: AdamW on a cosine with balanced sampling of classes (published: SGD in steps, weighted
classes); X1.7 starts untrained, and its batch norms get their statistics from the training windows at the end; thetas
are those of the training windows; averages are over all windows that cover a position, whereas the released code leaves
out those without the class, so that one window of four decides; windows overlap by half (published: a quarter) and
count less towards their edges, so that no seam shows; maps are stored at the size of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.labels import Classes
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap, argmax_mask
from wsipipe.pseudolabel.methods.histosegnet.adjust import Adjustment, adjusted
from wsipipe.pseudolabel.methods.histosegnet.network import HistoSegNet
from wsipipe.pseudolabel.methods.histosegnet.params import Params
from wsipipe.pseudolabel.methods.histosegnet.thresholds import thresholds
from wsipipe.pseudolabel.methods.histosegnet.x17 import X17
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.classifier import apply_in_batches
from wsipipe.pseudolabel.shared.slide_maps import slide_maps
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL, draw_windows, prevalent_labels, train_windows

__all__ = ["REFINEMENT", "Params", "build", "fit", "instance_grid", "mask", "score"]

REFINEMENT = "crf"


def instance_grid(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / map_size px; the classifier sees windows of patch_px (x1.7: a multiple of 4 input px)."""
    grid = params.instance_grid(patch_px)
    fits = params.network == "encoder" or grid.input_px % 4 == 0
    params.check("shrink", fits, f"gives windows of {grid.input_px} px; x1.7 needs a multiple of 4")
    return grid


def build(classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Params) -> nn.Module:
    """The classifier of windows; x1.7 does not use the encoder."""
    network: X17 | CamClassifier
    if params.network == "x1.7":
        network = X17(len(classes), params.width)
    else:
        network = CamClassifier(encoder, instance_grid.input_px, len(classes))
    return HistoSegNet(network, classes, params)


def fit(bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    """Train the classifier on windows with the labels of their bags, then set the thresholds by the same labels."""
    compute = context.compute
    encoder = context.encoder() if params.network == "encoder" else nn.Identity()
    model = seeded_init(lambda: build(context.classes, encoder, instance_grid, params), compute.seed)
    assert isinstance(model, HistoSegNet)
    windows = draw_windows(bags, instance_grid, params.windows, params.max_windows, compute.seed)
    train_windows(model, windows, params, compute)
    if isinstance(model.network, X17):
        parts = range(0, len(windows.rgb), WINDOWS_PER_CALL)
        some = (torch.from_numpy(windows.rgb[i : i + WINDOWS_PER_CALL]) for i in parts)
        model.network.settle(normalise(rgb.to(compute.device)) for rgb in some)
    logits = apply_in_batches(model, windows.rgb, compute.device)
    labels = prevalent_labels(windows, logits, params.prevalence) if params.prevalence else windows.labels
    model.theta.copy_(thresholds(logits.sigmoid(), labels))
    return model


def score(model: nn.Module, context: ScoreContext, params: Params) -> ScoreMap:
    """The adjusted maps of the whole slide; the background is the higher of glass and other tissue.

    A class that a label excludes does not hold back the others.
    """
    assert isinstance(model, HistoSegNet)
    device = context.device
    model.to(device).eval()
    adjust = Adjustment.of(context, params)

    def maps_of(rgb: Tensor, tissue: Tensor, excluded: Tensor | None) -> Tensor:
        on_device = None if excluded is None else excluded.to(device)
        return adjusted(model, rgb.to(device), tissue.to(device), adjust, params, on_device)

    maps = slide_maps(context, params.min_tissue, 2 + len(model.theta), maps_of)
    return ScoreMap(maps[2:], maps[:2].max(0), context.instance_grid.instance_px)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The highest of background and classes; 255 where nothing was scored."""
    return argmax_mask(scores)
