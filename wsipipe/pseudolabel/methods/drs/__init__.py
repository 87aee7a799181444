"""DRS: discriminative region suppression (Kim, Han, Kim, AAAI 2021).

1. Every ReLU of a classifier of windows also caps each channel at a fraction of its maximum (see `suppression`).
2. The classifier ends in maps f_c(x, y) of the classes at a stride of 8; their means are trained on the weak labels of
   windows, each class by its own cross-entropy.
3. Localisation maps, fused over three sizes of the input (see `localisation`):
       M_c = ReLU(f_c) / (max_xy ReLU(f_c) + 1e-5), times y_c, the label.
4. A network without suppression regresses them from the image (see `refiner`).
5. With P_0 the background cue and P_c = M_c where M_c >= alpha, else 0, the mask is the argmax of P_0 .. P_K, the first
   of equal values; 255 where more than two channels exceed 0.9, or where tissue is unexplained: nothing reaches alpha.
   Glass is 0 whatever the maps say.

Adaptations to tissue, each with the parameter that restores the published behaviour. The published background is glass
here, P_0 = 1 - T, where T is the tissue mask; with it alone tissue would be a class or 255, never 0. The evidence
against all classes is
    absence(x, y) = min(1, min_c ReLU(-f_c) / a),
since f is trained to be negative on bags without the class, and `a` is its mean over the tissue of their windows. With
w_c = p_c y_c, p_c the classifier's probability of a class in the window (its map has a maximum of 1 however little of
the class there is), and w the largest w_c, by the law of total probability
    M_c <- w_c M_c,      P_0 = (1 - w) + w absence       (`absence: false`: glass alone; `weigh: false`: w_c = y_c).
Labels are known for training windows alone; elsewhere y_c = 1, and the stage sets excluded classes to 0. Textures need
less spreading than objects: on planted textures, suppression in every layer spilt over whole windows, so only the last
stages and the head suppress (`suppress_from: 1`), and the head alone if the encoder has no ReLU. Maps are averaged over
sizes of the input instead of their maximum, which inflates noise (`fusion: max`); maps come from the package's encoders
(`network: vgg16`); only the highest windows of a positive slide keep its label (`prevalence: 0`); the refinement
network starts from the classifier, since encoders are seldom trained on more than this (`refiner_from: encoder`).

Deviations without a parameter: AdamW with one learning rate and a cosine (published: SGD with a higher rate for new
layers, in steps, and Adam for the refinement); the eight symmetries and stain jitter as augmentation; maps are resized
with cells as areas (published: aligned corners) and stored at their own size; refined maps are clipped to 0..1; no
checkpoint is selected (published: by pixel truth); the conflict rule never changes cells that no class won.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods.drs.localisation import Drs, Pooled
from wsipipe.pseudolabel.methods.drs.network import copy_weights, map_network
from wsipipe.pseudolabel.methods.drs.params import Params
from wsipipe.pseudolabel.methods.drs.refiner import RefinerTraining, train_refiner
from wsipipe.pseudolabel.methods.drs.suppression import Suppression, Suppressor, suppress
from wsipipe.pseudolabel.methods.drs.vgg import copy_convolutions, init_convolutions, vgg16_trunk
from wsipipe.pseudolabel.methods.drs.window_maps import absence_level, window_maps
from wsipipe.pseudolabel.shared.slide_maps import slide_maps
from wsipipe.pseudolabel.shared.windows import draw_windows, train_windows

__all__ = ["REFINEMENT", "Params", "build", "fit", "instance_grid", "mask", "score"]

log = logging.getLogger(__name__)

REFINEMENT = "none"


def instance_grid(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / map_size px; the classifier sees windows of patch_px."""
    return params.instance_grid(patch_px)


def build(classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Params) -> nn.Module:
    """The classifier with suppression and, if wanted, the refinement network, both starting from `encoder`."""
    suppression = Suppression(params.suppression, params.delta, params.suppress_from)
    refiner = None
    if params.refiner:
        refiner = map_network(copy.deepcopy(encoder), len(classes) + params.absence, params)
        head = cast(nn.Sequential, refiner[1])
        init_convolutions(head if params.network == "vgg16" else head[-1], std=0.01)
    classifier = suppress(map_network(encoder, len(classes), params), suppression)
    return Drs((classifier, refiner), len(classes), instance_grid.seen_px // instance_grid.instance_px, params)


def fit(bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    """Train the classifier on windows, then the refinement network on its maps where the labels allow them."""
    compute = context.compute
    model = cast(Drs, seeded_init(lambda: _starting_model(instance_grid, params, context), compute.seed))
    if not any(isinstance(m, Suppressor) for m in cast(nn.Sequential, model.classifier)[0].modules()):
        log.warning("drs: only the head suppresses, since --encoder has no ReLU; a ResNet, RegNet, DenseNet or VGG has")
    windows = draw_windows(bags, instance_grid, params.windows, params.max_windows, compute.seed)
    train_windows(Pooled(model.classifier), windows, params, compute)
    model.to(compute.device).eval()
    if params.absence:
        model.absent.copy_(absence_level(model, windows))
    if model.refiner is not None:
        maps = window_maps(model, windows)[:, 0 if params.absence else 1 :]
        if params.refiner_from == "classifier":
            copy_weights(model.refiner, model.classifier)
        training = RefinerTraining(params.refiner_steps, params.refiner_lr, params.refiner_batch, params.stain_jitter)
        train_refiner(model.refiner, windows.rgb, maps, training, compute, params.absence)
    return model


def _starting_model(instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    encoder = context.encoder()
    if params.network == "vgg16" and not copy_convolutions(vgg16_trunk(), encoder):
        log.warning(
            "drs.network: vgg16 starts with random weights, since the encoder is %s; use --encoder vgg16",
            type(encoder).__name__,
        )
    return build(context.classes, encoder, instance_grid, params)


def score(model: nn.Module, context: ScoreContext, params: Params) -> ScoreMap:
    """Maps of the classes and P_0 for the whole slide, averaged over windows that overlap by half."""
    assert isinstance(model, Drs)
    model.to(context.device).eval()

    def maps_of(rgb: Tensor, tissue: Tensor, excluded: Tensor | None) -> Tensor:
        return model.maps(rgb, tissue)

    maps = slide_maps(context, params.min_tissue, 1 + model.classes, maps_of)
    return ScoreMap(maps[1:], maps[0], context.instance_grid.instance_px)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """Step 5: the argmax of P_0, P_1, ..; 255 where too many are certain, nothing reaches alpha, or not scored."""
    maps, background = (np.nan_to_num(v, nan=0.0) for v in (scores.values, scores.background))
    channels = np.concatenate([background[None], np.where(maps >= params.alpha, maps, 0)])
    found: NDArray[np.uint8] = channels.argmax(0).astype(np.uint8)
    certain = (np.concatenate([background[None], maps]) > params.conflict_level).sum(0)
    found[(found > 0) & (certain > params.conflict)] = IGNORE
    if params.unexplained == "ignore":
        found[(found == 0) & (background < params.alpha)] = IGNORE
    found[~scores.known] = IGNORE
    return found
