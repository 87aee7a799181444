"""DRS: discriminative region suppression (Kim, Han, Kim, AAAI 2021).

1. Every ReLU of a classifier of windows also caps each channel at a share of its maximum (see `nn.suppress`).
2. The classifier ends in maps f_c(x, y) of the classes at a stride of 8; their means are trained on the weak labels of
   windows, each class by its own cross-entropy.
3. Localisation maps, fused over three sizes of the input:
       M_c = ReLU(f_c) / (max_xy ReLU(f_c) + 1e-5), times y_c, the label.
4. A network without suppression regresses them from the image (see `parts.refiner`).
5. With P_0 the background cue and P_c = M_c where M_c >= alpha, else 0, the mask is the argmax of P_0 .. P_K, the first
   of equals; 255 where more than two channels exceed 0.9, or where tissue is unexplained: nothing reaches alpha.
   Glass stays 0 whatever the maps say.

Adaptations to tissue, each with the parameter that gives back what is published. The backdrop is glass, P_0 = 1 - T,
where T is the tissue mask. Without more, tissue would be a class or 255, never 0. What speaks against all classes is
    absence(x, y) = min(1, min_c ReLU(-f_c) / a),
f being trained to be negative on bags without the class, and `a` the mean over the tissue of their windows. With
w_c = p_c y_c, p_c the classifier's probability of a class in the window (its map has a maximum of 1 however little of
it there is), and w the largest w_c, by the law of total probability
    M_c <- w_c M_c,      P_0 = (1 - w) + w absence       (`absence: false`: glass alone; `weigh: false`: w_c = y_c).
Labels are known of training windows alone; elsewhere y_c = 1, and the stage excludes what a label excludes. Textures
need less spreading than objects: on planted ones suppression in every layer spilt over whole windows, so that only the
last stages and the head suppress (`suppress_from: 1`); with an encoder without ReLU, the head alone. The mean over
sizes of the input replaces the maximum, which inflates noise (`fusion: max`); maps are of the package's encoders
(`network: vgg16`); only the best windows of a positive slide keep its label (`prevalence: 0`); and the refinement
network goes on from the classifier, as encoders are seldom trained on more than this (`refiner_from: encoder`).

Deviations that have no parameter: AdamW on one rate and a cosine (published: SGD, faster for new layers, in steps, and
Adam for the refinement); the eight symmetries and stain jitter as views; maps are resized with cells as areas
(published: corners aligned), and stored at the size of the cells; refined maps are clipped to 0..1; no checkpoint is
selected (published: by pixel truth); the conflict rule never touches what no class won.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.errors import ConfigError, check
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.encoders import expect, normalise, statistics_of, tokens
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreMap
from wsipipe.pseudolabel.methods.drs.refiner import RefinerTraining, as_bytes, train_refiner
from wsipipe.pseudolabel.methods.drs.suppression import FIXED, MODES, Suppression, Suppressor, suppressed
from wsipipe.pseudolabel.methods.drs.vgg import WIDTH, map_head, pooled, start, take_convolutions, vgg16_trunk
from wsipipe.pseudolabel.shared.windows import (
    TOGETHER,
    WindowParams,
    Windows,
    draw_windows,
    slide_maps,
    train_windows,
)
from wsipipe.runtime.device import autocast
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)

REFINEMENT = "none"

EPSILON = 1e-5
"""Added to the maximum that a map is divided by."""


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of DRS."""

    network: str = option(
        "encoder", "encoder: maps of --encoder; vgg16: as published, from --encoder vgg16 or else untrained; lr 1e-4"
    )
    suppression: str = option(
        FIXED, "fixed: every channel is capped at drs.delta of its maximum; learnable: at a share"
    )
    delta: float = option(0.55, "share of a channel's maximum that it is capped at; 1: no suppression")
    suppress_from: int = option(8, "suppress in maps of this stride (input px a cell) or coarser; 1: all, as published")
    stride: int = option(8, "input px that a cell of the class maps stands for; the encoder's nearest is taken")
    scales: tuple[float, ...] = option(
        (0.8, 1.0, 1.2), "sizes of the input, against a window, that maps are fused over"
    )
    fusion: str = option("mean", "how maps are fused over sizes: mean, or max as published")
    weigh: bool = option(True, "weigh maps by the window's probability of the class; false as published")
    absence: bool = option(True, "hold what denies all classes against them; false as published: glass alone")
    refiner: bool = option(True, "train a refinement network on the maps and score with it, as published")
    refiner_from: str = option("classifier", "first weights of that network: classifier, or encoder as published")
    refiner_steps: int = option(600, "training steps of the refinement network")
    refiner_lr: float = option(1e-3, "highest learning rate of the refinement network")
    refiner_batch: int = option(16, "windows in a step of the refinement network")
    alpha: float = option(0.2, "least value of a map that paints its class", fit=False)
    conflict: int = option(
        2, "255 where more than so many of the classes and none are beyond drs.conflict_level", fit=False
    )
    conflict_level: float = option(0.9, "value beyond which a class, or none, counts as certain", fit=False)
    unexplained: str = option(
        "ignore", "tissue where nothing reaches drs.alpha: ignore (255, as published) or none (0)", fit=False
    )
    batch: int = option(32, "windows in a step of the classifier")

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "network", ("encoder", "vgg16"))
        _one_of(self, "suppression", MODES)
        _one_of(self, "fusion", ("mean", "max"))
        _one_of(self, "unexplained", ("ignore", "none"))
        _one_of(self, "refiner_from", ("classifier", "encoder"))
        for name in ("suppress_from", "stride", "conflict"):
            check(getattr(self, name) >= 1, f"drs.{name}: {getattr(self, name)} is below 1")
        for name in ("refiner_steps", "refiner_batch"):
            check(getattr(self, name) >= 1, f"drs.{name}: {getattr(self, name)} is below 1")
        self.check("refiner_lr", self.refiner_lr > 0, "is not above 0")
        check(0 < self.delta <= 1, f"drs.delta: {self.delta} is not a share above 0; for 'learnable' see suppression")
        check(0 < self.alpha < 1, f"drs.alpha: {self.alpha} is outside 0..1")
        check(0 < self.conflict_level <= 1, f"drs.conflict_level: {self.conflict_level} is outside 0..1")
        sizes = len(self.scales) > 0 and all(0.25 <= s <= 4 for s in self.scales)
        check(sizes, f"drs.scales: {list(self.scales)} is not a list of sizes between 0.25 and 4")


def _one_of(params: Params, name: str, known: Sequence[str]) -> None:
    value = getattr(params, name)
    check(value in known, f"drs.{name}: {value!r} is not {' or '.join(known)}")


class EncoderTrunk(nn.Module):
    """The feature map of an encoder whose stride is nearest to `stride`: images [B, 3, H, W] -> [B, D, h, w]."""

    def __init__(self, encoder: nn.Module, stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.level = feature_level(encoder, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features of normalised images."""
        return tokens(self.encoder, x, self.level).movedim(-1, 1)


def feature_level(encoder: nn.Module, stride: int) -> int:
    """Index of an encoder's feature map of the nearest stride, on a scale of octaves; of equals the deepest."""
    strides = [int(level["reduction"]) for level in cast(Any, getattr(encoder, "feature_info", None) or ())]
    if not strides or not hasattr(encoder, "forward_intermediates"):
        raise ConfigError(f"drs: {type(encoder).__name__} gives no feature maps; choose another --encoder")
    return min(range(len(strides)), key=lambda i: (abs(math.log2(strides[i] / stride)), -i))


class Pooled(nn.Module):
    """The classifier that a network of maps is: normalised windows [B, 3, s, s] -> logits [B, K]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each map."""
        return pooled(self.network(x))


class Drs(nn.Module):
    """Classifier with suppression, and refinement network (None: without).

    cells: side n of a window in cells, the size of the maps. absent: float [], the `a` of the module's text; infinite
    where no window was known to hold no class, so that absence is never seen.
    """

    absent: Tensor

    def __init__(self, networks: tuple[nn.Module, nn.Module | None], classes: int, cells: int, params: Params) -> None:
        super().__init__()
        self.classifier, self.refiner = networks
        self.classes, self.cells, self.params = classes, cells, params
        self.register_buffer("absent", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised windows float [B, 3, s, s] -> maps f_c of the classifier, float [B, K, h, w]."""
        out: Tensor = self.classifier(x)
        return out

    def localised(self, rgb: Tensor, tissue: Tensor, labels: Tensor | None = None) -> Tensor:
        """Steps 2 and 3: P_0 and the maps M_c of windows, float [B, 1 + K, n, n] in 0..1.

        rgb: uint8 [B, 3, s, s]. tissue: bool [B, s, s]. labels: [B, K] of 1, 0 or nan; default: nothing is known.
        """
        raw = [self(x).float() for x in self._sizes(rgb)]
        weight = torch.stack([pooled(f) for f in raw]).mean(0).sigmoid()
        if not self.params.weigh:
            weight = torch.ones_like(weight)
        if labels is not None:
            weight = weight * (labels != 0)
        at_cells = [self._resized(f) for f in raw]
        maps = scaled(self._fused([scaled(f.relu()) for f in at_cells])) * weight[:, :, None, None]
        none = torch.zeros_like(maps[:, :1])
        if self.params.absence:
            w = weight.amax(1)[:, None, None, None]
            none = (1 - w) + w * (self._fused([excluded(f) for f in at_cells]) / self.absent).clamp(max=1)
        return on_glass(torch.cat([none, maps], 1), self.tissue_cells(tissue))

    def refined(self, rgb: Tensor, tissue: Tensor) -> Tensor:
        """Step 4 for windows as in `localised`: what the refinement network gives, float [B, 1 + K, n, n] in 0..1."""
        assert self.refiner is not None
        maps = self._fused([self._resized(self.refiner(x).float()) for x in self._sizes(rgb)]).clamp(0, 1)
        if not self.params.absence:
            maps = F.pad(maps, (0, 0, 0, 0, 1, 0))
        return on_glass(maps, self.tissue_cells(tissue))

    def evidence(self, rgb: Tensor, tissue: Tensor) -> Tensor:
        """What windows are painted by: refined maps where there is a refinement network, else the classifier's."""
        on = self.absent.device
        with torch.inference_mode(), autocast(on):
            maps_of = self.localised if self.refiner is None else self.refined
            return maps_of(rgb.to(on), tissue.to(on))

    def denials(self, rgb: Tensor) -> Tensor:
        """Maps of what denies all classes, windows uint8 [B, 3, s, s] -> float [B, 1, n, n]."""
        return self._fused([excluded(self._resized(self(x).float())) for x in self._sizes(rgb)])

    def _sizes(self, rgb: Tensor) -> list[Tensor]:
        """The normalised windows in every size, rounded to a multiple of 8 px."""
        x = rgb.float() / 255
        sides = [max(8, round(rgb.shape[-1] * s / 8) * 8) for s in self.params.scales]
        return [normalise(x if side == rgb.shape[-1] else _sized(x, side)) for side in sides]

    def _resized(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=(self.cells, self.cells), mode="bilinear", align_corners=False)

    def _fused(self, maps: list[Tensor]) -> Tensor:
        every = torch.stack(maps)
        return every.amax(0) if self.params.fusion == "max" else every.mean(0)

    def tissue_cells(self, tissue: Tensor) -> Tensor:
        """T: whether a cell holds any tissue (its glass is painted by pixels): bool [B, s, s] -> 0, 1 [B, 1, n, n]."""
        return F.adaptive_max_pool2d(tissue[:, None].float(), self.cells)


def _sized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def scaled(maps: Tensor) -> Tensor:
    """Step 3: every map divided by its maximum, float [B, K, h, w] >= 0 -> the same shape in 0..1."""
    return maps / (maps.amax((2, 3), keepdim=True) + EPSILON)


def excluded(maps: Tensor) -> Tensor:
    """min_c ReLU(-f_c): float [B, K, h, w] -> [B, 1, h, w]."""
    return (-maps.amax(1, keepdim=True)).relu()


def on_glass(evidence: Tensor, tissue: Tensor) -> Tensor:
    """P_0 >= 1 - T, and no class where there is no tissue: float [B, 1 + K, n, n], tissue 0, 1 [B, 1, n, n]."""
    return torch.cat([torch.maximum(evidence[:, :1], 1 - tissue), evidence[:, 1:] * tissue], 1)


def lattice(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / cells px; the classifier sees windows of patch_px."""
    return params.lattice(patch_px)


def build(classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Params) -> nn.Module:
    """The classifier with suppression and, if wanted, the refinement network, both started from `encoder`."""
    how = Suppression(params.suppression, params.delta, params.suppress_from)
    refiner = None
    if params.refiner:
        refiner = _network(copy.deepcopy(encoder), len(classes) + params.absence, params)
        head = cast(nn.Sequential, refiner[1])
        start(head if params.network == "vgg16" else head[-1], std=0.01)
    classifier = suppressed(_network(encoder, len(classes), params), how)
    return Drs((classifier, refiner), len(classes), lattice.seen_px // lattice.instance_px, params)


def _network(encoder: nn.Module, channels: int, params: Params) -> nn.Sequential:
    """Trunk and head: normalised images [B, 3, H, W] -> maps [B, channels, h, w]."""
    if params.network == "encoder":
        trunk = EncoderTrunk(encoder, params.stride)
        with torch.inference_mode():
            width = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        return nn.Sequential(trunk, map_head(width, channels))
    vgg = vgg16_trunk()
    if take_convolutions(vgg, encoder):
        expect(vgg, statistics_of(encoder))
    return nn.Sequential(vgg, map_head(WIDTH, channels))


def fit(bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    """Train the classifier on windows, take its maps of them, held to the labels of their bags, and learn these."""
    model = cast(Drs, seeded_init(lambda: _built(lattice, params, run), run.compute.seed))
    if not any(isinstance(m, Suppressor) for m in cast(nn.Sequential, model.classifier)[0].modules()):
        log.warning("drs: only its head suppresses, as --encoder has no ReLU; a ResNet, RegNet, DenseNet or VGG has")
    windows = draw_windows(bags, lattice, params.windows, params.max_windows, run.compute.seed)
    train_windows(Pooled(model.classifier), windows, params.training, run.compute)
    model.to(run.compute.device).eval()
    if params.absence:
        model.absent.copy_(absent_level(model, windows))
    if model.refiner is not None:
        maps = window_maps(model, windows)[:, 0 if params.absence else 1 :]
        if params.refiner_from == "classifier":
            take_weights(model.refiner, model.classifier)
        learning = RefinerTraining(params.refiner_steps, params.refiner_lr, params.refiner_batch, params.stain_jitter)
        train_refiner(model.refiner, windows.rgb, maps, learning, run.compute, params.absence)
    return model


def _built(lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    encoder = run.encoder()
    if params.network == "vgg16" and not take_convolutions(vgg16_trunk(), encoder):
        log.warning(
            "drs.network vgg16 starts untrained, as the encoder is %s: see --encoder vgg16", type(encoder).__name__
        )
    return build(run.classes, encoder, lattice, params)


def absent_level(model: Drs, windows: Windows) -> Tensor:
    """`a`: mean of the maps of `excluded` over the tissue of windows that hold no class; infinite without any."""
    of = np.flatnonzero((windows.labels == 0).all(1).numpy())
    if not len(of):
        log.info("drs.absence: no bag is without any class, so nothing tells what their absence looks like")
        return torch.tensor(torch.inf)
    on = model.absent.device
    total, cells = torch.zeros((), device=on), torch.zeros((), device=on)
    with torch.inference_mode(), autocast(on):
        for i in range(0, len(of), TOGETHER):
            rgb, tissue = (torch.from_numpy(a[of[i : i + TOGETHER]]).to(on) for a in (windows.rgb, windows.tissue))
            known = model.tissue_cells(tissue)
            total, cells = total + (model.denials(rgb) * known).sum(), cells + known.sum()
    return total / cells + EPSILON


def take_weights(refiner: nn.Module, classifier: nn.Module) -> None:
    """Copy the weights of a classifier into a refinement network, all but those of the last layer, the maps."""
    *_, last = (name for name, m in refiner.named_modules() if isinstance(m, nn.Conv2d))
    own = refiner.state_dict()
    for name, values in classifier.state_dict().items():
        if name in own and not name.startswith(f"{last}."):
            own[name].copy_(values)


def window_maps(model: Drs, windows: Windows) -> NDArray[np.uint8]:
    """What the refinement network is to give: maps of training windows in 8 bits, uint8 [M, 1 + K, n, n]."""
    on = model.absent.device
    parts = []
    with torch.inference_mode(), autocast(on):
        for i in range(0, len(windows.rgb), TOGETHER):
            rgb, tissue = (torch.from_numpy(a[i : i + TOGETHER]).to(on) for a in (windows.rgb, windows.tissue))
            parts.append(as_bytes(model.localised(rgb, tissue, windows.labels[i : i + TOGETHER].to(on))))
    return np.concatenate(parts)


def score(
    model: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    params: Params,
    on: torch.device,
    excluded: NDArray[np.bool_] | None = None,
) -> ScoreMap:
    """Maps of the classes and P_0 for the whole slide, averaged over windows that overlap by half."""
    assert isinstance(model, Drs)
    model.to(on).eval()
    maps = slide_maps(store, lattice, params.min_tissue, 1 + model.classes, model.evidence)
    return ScoreMap(maps[1:], maps[0], lattice.instance_px)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """Step 5: the argmax of P_0, P_1, ..; 255 where too many are certain, or nothing reaches alpha, or not scored."""
    maps, none = (np.nan_to_num(v, nan=0.0) for v in (scores.values, scores.none))
    found: NDArray[np.uint8] = (
        np.concatenate([none[None], np.where(maps >= params.alpha, maps, 0)]).argmax(0).astype(np.uint8)
    )
    certain = (np.concatenate([none[None], maps]) > params.conflict_level).sum(0)
    found[(found > 0) & (certain > params.conflict)] = IGNORE
    if params.unexplained == "ignore":
        found[(found == 0) & (none < params.alpha)] = IGNORE
    found[~scores.known] = IGNORE
    return found
