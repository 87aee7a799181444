"""IRNet (Ahn, Cho & Kwak, CVPR 2019): class maps spread by a random walk up to boundaries learned from them.

1. A classifier of windows gives class maps M_c: ReLU(CAM) of the image and its mirror image, summed over scales.
2. Confident cells become seeds (see `seeds`).
3. A network on a frozen backbone (see `boundary`) learns boundaries B: between seeds that differ, and not between equal
   ones (see `losses`); it sees pairs of cells closer than `pair_radius`.
4. Maps walk, M* = (M (1 - B)) T^t with t = 2^exp_times steps (see `shared.walk`), and the highest class is painted
   where it exceeds a constant, `background`.
5. If asked for, the network also learns displacements D to the centres of objects, and painted cells become objects by
   the centre that they point to (see `pseudolabel.centres`, also for deviations).

Adaptations to tissue, each with its reason; `as_published` reverts those marked *:
* The tissue mask tells glass, not low class maps; glass is background 0 of the seeds, and no walk enters it.
* Tissue without a class is a kind of seed, K + 1, since it is not glass: otherwise the network would learn no boundary
  between a class and other tissue. Thresholds are applied once, without a CRF.
* P+_fg counts per class, so that the most common tissue does not dominate the loss.
* Maps have one scale per class, their mean maximum over its training windows: scaled per window (published: by the
  highest of its classes), the faintest map would be as certain as any.
- The walk has 4 steps (published: exp_times 8, 256 steps), which smear mosaics of tissue less; maps come from one scale
  (published: 0.5, 1, 1.5, 2); seeds start at 0.7, since lower ones reach over the edges of coarse maps and put
  boundaries outside them (published: seed_fg 0.3); only the highest windows of a positive slide keep its label
  (published: prevalence 0, all do).
- At least half of the windows of a step hold seeds of two kinds, or the loss drives B to 0.

Deviations: AdamW with warm-up and cosine, with one learning rate for both branches, instead of SGD with polynomial
decay and a tenfold rate for displacement. (The released optimiser gets weight decay in place of its momentum, so the
published optimiser is SGD with momentum 1e-4, whose rate of 0.1 does not carry over to SGD with momentum.) Training
windows are augmented by 8 symmetries and stain jitter, not rescaled, since um per px are known. The frozen backbone is
that of the trained classifier; `backbone: start` takes the starting encoder, as published. All layers of the classifier
learn (published: early stages and batch norms are frozen), it has a bias, and its map is the deepest at a stride of up
to 16 (published: a modified last stage); the map of a class with a negative logit in a window is 0 there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

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
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE, BoundaryNet
from wsipipe.pseudolabel.methods.irnet.boundary_training import train_boundary
from wsipipe.pseudolabel.methods.irnet.displacements import displacement_px, slide_displacements
from wsipipe.pseudolabel.methods.irnet.network import EPS, IrNet, tissue_cells
from wsipipe.pseudolabel.methods.irnet.params import Params
from wsipipe.pseudolabel.methods.irnet.window_seeds import mean_maxima, window_seeds
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.slide_maps import slide_maps
from wsipipe.pseudolabel.shared.windows import draw_windows, train_windows
from wsipipe.runtime.device import autocast

__all__ = [
    "REFINEMENT",
    "Params",
    "build",
    "displacement_px",
    "displacements",
    "fit",
    "instance_grid",
    "mask",
    "score",
]

REFINEMENT = "none"


def instance_grid(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / map_size px; the networks see windows of patch_px."""
    grid = params.instance_grid(patch_px)
    divides = grid.input_px % STRIDE == 0
    params.check("shrink", divides, f"gives windows of {grid.input_px} px, which {STRIDE} does not divide")
    return grid


def build(classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Params) -> nn.Module:
    """The classifier and the boundary network, each on its own encoder."""
    boundary = BoundaryNet(copy.deepcopy(encoder), params.displacement)
    return IrNet(CamClassifier(encoder, instance_grid.input_px, len(classes)), boundary, params.scales)


def fit(bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    """Train the classifier, take seeds from its maps, learn boundaries from them, and measure the scale of the maps."""
    compute = context.compute
    model = seeded_init(lambda: build(context.classes, context.encoder(), instance_grid, params), compute.seed)
    assert isinstance(model, IrNet)
    windows = draw_windows(bags, instance_grid, params.windows, params.max_windows, compute.seed)
    train_windows(model.classifier, windows, params, compute)
    if params.backbone == "classifier":
        model.boundary.backbone.encoder.load_state_dict(model.classifier.encoder.state_dict())
    model.to(compute.device).eval()
    train_boundary(model.boundary, windows.rgb, window_seeds(model, windows, params), params, compute)
    model.top.copy_(mean_maxima(model, windows, params))
    return model


def score(model: nn.Module, context: ScoreContext, params: Params) -> ScoreMap:
    """Walked maps of the whole slide, averaged over windows; the background is the constant `background`."""
    assert isinstance(model, IrNet)
    device = context.device
    model.to(device).eval()

    def maps_of(rgb: Tensor, tissue: Tensor, excluded: Tensor | None) -> Tensor:
        """Walked maps of windows, 0 where the classifier does not find the class in the window."""
        x, cells = normalise(rgb.to(device)), tissue_cells(tissue.to(device))
        with torch.inference_mode(), autocast(device):
            maps, logits = model.class_maps(x)
            maps = maps * (logits >= 0)[:, :, None, None]
            if params.as_published:
                walked = model.walked(maps, x, torch.ones_like(cells), params.walk)
                return walked / (walked.amax((1, 2, 3), keepdim=True) + EPS)
            return model.walked(maps, x, cells, params.walk) / model.top[:, None, None]

    values = np.minimum(slide_maps(context, params.min_tissue, len(model.top), maps_of), 1)
    background = np.where(np.isnan(values[0]), np.nan, np.float32(params.background)).astype(np.float32)
    return ScoreMap(values, background, context.instance_grid.instance_px)


def displacements(
    model: nn.Module, context: ScoreContext, wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Step 5: displacements (y, x) to object centres, float32 [2, rows, cols], and where they are known.

    In cells of 4 input px, as `wanted`, bool [rows, cols]: the cells whose displacement is needed.
    """
    assert isinstance(model, IrNet)
    device = context.device
    net = model.to(device).eval().boundary

    def displacements_of(rgb: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device):
            return cast(Tensor, net(normalise(rgb.to(device)))[1])

    return slide_displacements(context.store, context.instance_grid, wanted, displacements_of)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The highest class where it exceeds the background, 0 where none does, 255 where nothing was scored."""
    return argmax_mask(scores)
