"""HistoSegNet: class maps of a classifier of windows, adjusted by rule (Chan et al., ICCV 2019).

1. A network learns the weak labels of windows. s_c = sigmoid(z_c) is its score of a class.
2. A class is present in a window where s_c >= theta_c: sensitivity equals specificity there, and theta_c >= 1/3.
3. Grad-CAM: G_c = s_c max(0, sum_k a_ck A_k) / its maximum over the window where c is present, else 0. The weights a_ck
   are the same for all images, so that no backward pass is needed (see `nn.shallow`, and `parts.activation`).
4. Background: glass; what is as bright as glass but tissue (`exempt` classes) is taken out of it.
5. Other: u (1 - max_c G_c), or the strongest of the `other` classes, which are seen but not painted.
6. Only the strongest keeps something, its margin: S_c = max(0, G_c - max over d != c of G_d); S_other = G_other.
7. Maps are averaged over overlapping windows. 8. A dense CRF follows (see `refine.crf`).

Two classes, or one and none: then nothing but u holds a class back. As published, u = 0.05, a place is painted from
2u / (1 + 2u) = 0.09 of a window's maximum on, and the CRF has to find the border. The default u = 0.2 puts it at 0.29:
a map that is blurred by the field of view of its cells crosses the edge of a class at about half of its height, less
where the class looks different in places. `none: absence` is the other way: evidence for none is that against the
class that is least surely absent, a rival like any class, and made of the Grad-CAM of -z:
    N = min_c n_c,   n_c = s_c max(0, -sum_k a_ck A_k) / max |sum_k a_ck A_k| where c is present, else 1 - s_c.
Squares of a texture, from patch labels, before any refinement, were found with an IoU of 0.76 by u = 0.2, 0.44 as
published and 0.25 by absence (a ResNet averaged), and of 0.64, 0.61 and 0.59 by x1.7: beside a class its evidence,
blurred, exceeds that of its absence.

Adaptations to tissue, with the parameters that give back what is published: the encoder of the package, averaged, in
place of X1.7 (`network: x1.7`); the tissue mask in place of brightness (`background: brightness`), whose threshold is
that of the slide's own glass (`glass: 240`); only the best windows of a positive slide keep its label (`prevalence:
0`); u (`other_share: 0.05`; 0 for morphological types, which have no other); the default windows are patches of 128
px at 1 um/px, so that a patch label is of one window (published: 224 at 1.2, patches of 448 px with shrink 2).

Deviations without a parameter: AdamW on a cosine with classes drawn evenly (published: SGD in steps, weighted
classes); X1.7 starts untrained, and its batch norms get their statistics from the training windows at the end; thetas
are of the training windows; averages are over all windows that cover a place, where the released code leaves out those
that deny the class, so that one window of four decides; windows overlap by half (published: a quarter) and count less
towards their edges, so that none ends in a step; maps are stored at the size of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
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
from wsipipe.pseudolabel.methods.histosegnet.activation import RULES, cam, class_maps
from wsipipe.pseudolabel.methods.histosegnet.background import (
    brightness_background,
    glass_centre,
    other_map,
    subtracted,
    tissue_background,
    without_exempt,
)
from wsipipe.pseudolabel.methods.histosegnet.x17 import X17
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.classifier import apply_in_batches
from wsipipe.pseudolabel.shared.windows import (
    TOGETHER,
    WindowParams,
    draw_windows,
    likeliest,
    slide_maps,
    train_windows,
)
from wsipipe.runtime.device import autocast
from wsipipe.store import SlideStore

REFINEMENT = "crf"

LEAST_THETA = 1 / 3
"""A class with a lower score is never present."""

UNSEEN_THETA = 0.5
"""Theta of a class without positives."""

EPSILON = 1e-7
"""Least value that a map is divided by."""


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of HistoSegNet."""

    network: str = option("encoder", "encoder: maps of --encoder; x1.7: as published, untrained (wants a GPU)")
    width: int = option(64, "channels of the first block of x1.7; 64 as published")
    activation: str = option(
        "gradcam", "how maps are made: gradcam as published, cam, gradcam++ or layercam", fit=False
    )
    background: str = option(
        "tissue", "what glass is: tissue (the mask says it), or brightness as published", fit=False
    )
    glass: float = option(
        0.0, "brightness (0..255) from which on pixels are glass; 240 as published, 0: told slide by slide", fit=False
    )
    blur_um: float = option(
        2.4, "deviation of the blur of the background in um; 2 px of 1.2 um as published", fit=False
    )
    exempt: tuple[str, ...] = option(
        (), "classes as bright as glass (fat, lumina), taken out of the background", fit=False
    )
    other: tuple[str, ...] = option((), "classes that count as none: learnt and seen, but never painted", fit=False)
    none: str = option(
        "other", "evidence against all classes: other as published, or absence (Grad-CAM of -z)", fit=False
    )
    other_share: float = option(0.2, "evidence for none where no class is seen; 0.05 as published", fit=False)
    legacy_inplace: bool = option(False, "subtract classes one after the other, as the released code does", fit=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("network", ("encoder", "x1.7")),
            ("activation", ("cam", *RULES)),
            ("background", ("tissue", "brightness")),
            ("none", ("other", "absence")),
        ):
            value = getattr(self, name)
            check(value in known, f"histosegnet.{name}: {value!r} is not one of {', '.join(known)}")
        self.check("width", self.width >= 1, "is below 1")
        self.check("other_share", 0 <= self.other_share <= 1, "is not a share")
        check(0 <= self.glass <= 255, f"histosegnet.glass: {self.glass} is outside 0..255")
        check(0 <= self.blur_um <= 100, f"histosegnet.blur_um: {self.blur_um} um is outside 0..100")


class HistoSegNet(nn.Module):
    """A network with an activation layer A, and the threshold theta of every class: float32 [K]."""

    theta: Tensor

    def __init__(self, network: X17 | CamClassifier, classes: Classes, params: Params) -> None:
        super().__init__()
        self.network = network
        self.activation = params.activation
        self.exempt, self.other = (_places(n, getattr(params, n), classes) for n in ("exempt", "other"))
        check(len(self.other) < len(classes), "histosegnet.other: all classes are named; one at least is to be painted")
        self.register_buffer("theta", torch.full((len(classes),), UNSEEN_THETA))

    def features(self, x: Tensor) -> Tensor:
        """A: windows (normalised) float [B, 3, s, s] -> float [B, D, h, w]."""
        return self.network.features(x)

    def scores(self, activations: Tensor) -> Tensor:
        """The logits z of A: float [B, D, h, w] -> float [B, K]."""
        if isinstance(self.network, X17):
            return self.network.scores(activations)
        return self.network.evidence(cam(activations, self.network.linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Windows (normalised) float [B, 3, s, s] -> logits float [B, K]: several, one or none may hold."""
        return self.scores(self.features(x))

    def maps(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Step 3 before max(0, .): maps of A for the classes and against them, float [B, K, h, w] each."""
        net = self.network
        if self.activation in ("gradcam", "cam"):
            if isinstance(net, CamClassifier):
                maps = cam(activations, net.linear.weight)
            elif self.activation == "cam":
                maps = cam(net.norm(activations), net.linear.weight)
            else:
                maps = cam(activations, net.cam_weights())
            return maps, -maps
        with torch.enable_grad():
            a = activations.detach().requires_grad_()
            z = self.scores(a)
        own, against = (class_maps(RULES[self.activation], a, z, sign) for sign in (1.0, -1.0))
        return own, against


def _places(field: str, names: Sequence[str], classes: Classes) -> list[int]:
    """Indices of the classes that a parameter names."""
    unknown = sorted(set(names) - set(classes.names))
    check(not unknown, f"histosegnet.{field}: {', '.join(unknown)} is no class; there are {', '.join(classes.names)}")
    return [classes.names.index(n) for n in names]


def lattice(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / cells px; the classifier sees windows of patch_px (x1.7: a multiple of 4 input px)."""
    found = params.lattice(patch_px)
    fits = params.network == "encoder" or found.input_px % 4 == 0
    check(fits, f"histosegnet.shrink: x1.7 wants windows of a multiple of 4 px, not of {found.input_px}")
    return found


def build(classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Params) -> nn.Module:
    """The classifier of windows; x1.7 leaves the encoder aside."""
    network: X17 | CamClassifier
    if params.network == "x1.7":
        network = X17(len(classes), params.width)
    else:
        network = CamClassifier(encoder, lattice.input_px, len(classes))
    return HistoSegNet(network, classes, params)


def fit(bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    """Train the classifier on windows with the labels of their bags; then the thresholds, by the same labels."""
    seed = run.compute.seed
    encoder = run.encoder() if params.network == "encoder" else nn.Identity()
    model = seeded_init(lambda: build(run.classes, encoder, lattice, params), seed)
    assert isinstance(model, HistoSegNet)
    windows = draw_windows(bags, lattice, params.windows, params.max_windows, seed)
    train_windows(model, windows, params.training, run.compute)
    if isinstance(model.network, X17):
        some = (torch.from_numpy(windows.rgb[i : i + TOGETHER]) for i in range(0, len(windows.rgb), TOGETHER))
        model.network.settle(normalise(rgb.to(run.compute.device)) for rgb in some)
    logits = apply_in_batches(model, windows.rgb, run.compute.device)
    targets_from_picks = likeliest(windows, logits, params.prevalence) if params.prevalence else windows.labels
    model.theta.copy_(thresholds(logits.sigmoid(), targets_from_picks))
    return model


def thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """Step 2: theta of every class from scores float [M, K] and labels of 1, 0 or nan, float [M, K] -> float [K].

    It lies half way between two scores. Of thresholds at which the two differ alike, the one where both are highest;
    without negatives the least.
    """
    thetas = []
    for s, y in zip(scores.double().T.numpy(), labels.T.numpy(), strict=True):
        positive, negative = np.sort(s[y == 1]), np.sort(s[y == 0])
        if not len(positive) or not len(negative):
            thetas.append(LEAST_THETA if len(positive) else UNSEEN_THETA)
            continue
        found = np.unique(np.concatenate([[0.0], positive, negative, [1.0]]))
        t = (found[1:] + found[:-1]) / 2
        # in units of 1 / (positives x negatives), which are whole: ties are ties
        sensitivity = (len(positive) - np.searchsorted(positive, t)) * len(negative)
        specificity = np.searchsorted(negative, t) * len(positive)
        best = np.lexsort((-sensitivity - specificity, np.abs(sensitivity - specificity)))[0]
        thetas.append(max(LEAST_THETA, float(t[best])))
    return torch.tensor(thetas)


def score(
    model: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    params: Params,
    on: torch.device,
    excluded: NDArray[np.bool_] | None = None,
) -> ScoreMap:
    """The adjusted maps of the whole slide; none is the stronger of background and other.

    A class that a label denies does not hold back those that the label leaves.
    """
    assert isinstance(model, HistoSegNet)
    model.to(on).eval()
    adjust = Adjustment(
        cells=lattice.seen_px // lattice.instance_px,
        sigma_px=store.grid.px_of_um(params.blur_um) / lattice.shrink,
        centre=(params.glass or glass_centre(store)) if params.background == "brightness" else None,
    )

    def maps_of(rgb: Tensor, tissue: Tensor, *excluded: Tensor) -> Tensor:
        return adjusted(model, rgb.to(on), tissue.to(on), adjust, params, *(d.to(on) for d in excluded))

    maps = slide_maps(store, lattice, params.min_tissue, 2 + len(model.theta), maps_of, excluded)
    return ScoreMap(maps[2:], maps[:2].max(0), lattice.instance_px)


@dataclass(frozen=True)
class Adjustment:
    """What a slide gives to steps 3 to 6: cells along a window, blur in input px, where glass begins (None: mask)."""

    cells: int
    sigma_px: float
    centre: float | None


@torch.no_grad()
def adjusted(
    model: HistoSegNet,
    rgb: Tensor,
    tissue: Tensor,
    adjust: Adjustment,
    params: Params,
    excluded: Tensor | None = None,
) -> Tensor:
    """Steps 1 to 6 for windows uint8 [B, 3, s, s], bool [B, s, s] -> float32 [B, 2 + K, n, n] in 0..1.

    Channels: background, other, then the classes. denied: bool [B, K, n, n], where the score of a class is 0 whatever
    the network says. Everything is on one device.
    """
    with autocast(rgb.device):
        features = model.features(normalise(rgb))
    g, none = class_evidence(model, features.float(), adjust.cells, excluded)
    if adjust.centre is None:
        background = tissue_background(tissue, adjust.sigma_px)
    else:
        background = brightness_background(rgb, adjust.centre, adjust.sigma_px)
    background = without_exempt(_resized(background[:, None], adjust.cells)[:, 0], g, model.exempt)
    unpainted = g[:, model.other]
    g[:, model.other] = 0
    seen = torch.cat([background[:, None], g], 1)
    if params.none == "absence":
        other = torch.cat([none[:, None], unpainted], 1).amax(1)
    else:
        other = other_map(seen, params.other_share, unpainted)
    maps = torch.cat([background[:, None], other[:, None], g], 1)
    return subtracted(maps, () if params.none == "absence" else (1,), params.legacy_inplace)


def class_evidence(
    model: HistoSegNet, activations: Tensor, cells: int, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """G of steps 2 and 3, float [B, K, n, n], and N, the evidence of absence, float [B, n, n]; A float [B, D, h, w]."""
    s = model.scores(activations).sigmoid()[:, :, None, None]
    if excluded is not None:
        s = s.expand(excluded.shape).masked_fill(excluded, 0)
    own, against = (_resized(m, cells).clamp(min=0) for m in model.maps(activations))
    most_own, most_against = (m.amax((2, 3), keepdim=True).clamp(min=EPSILON) for m in (own, against))
    present = s >= model.theta.view(1, -1, 1, 1)
    g = torch.where(present, s * own / most_own, 0)
    absence = torch.where(present, s * against / torch.maximum(most_own, most_against), 1 - s)
    return g, absence.amin(1)


def _resized(maps: Tensor, cells: int) -> Tensor:
    """Maps float [B, C, h, w] as float [B, C, n, n]: enlarged bilinearly, or means over the cells."""
    if maps.shape[-1] > cells:
        return F.adaptive_avg_pool2d(maps, cells)
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The strongest of none and the classes."""
    return strongest(scores)
