"""IRNet (Ahn, Cho & Kwak, CVPR 2019): class maps spread by a random walk up to boundaries that are learnt from them.

1. A classifier of windows gives class maps M_c: ReLU(CAM) of the image and its mirror image, summed over scales.
2. Cells that are sure of what they are become seeds (see `parts.seeds`).
3. A network on a frozen backbone (see `nn.boundary`) learns where boundaries B are: between seeds that differ, and not
   between those that agree (see `parts.affinity`); it sees pairs less than `pair_radius` cells apart.
4. Maps walk, M* = (M (1 - B)) T^t with t = 2^exp_times steps (see `parts.walk`), and the strongest class is painted
   where it exceeds a constant, `background`.
5. If asked for, the network learns displacements D to the centres of objects too, and what was painted is cut into
   objects by the centre that its cells point to (see `parts.centres`, also for what is not as published).

Adaptations to tissue, each with its reason; `as_published` takes back those marked *:
* glass is told by the tissue mask instead of by low class maps; it is background 0 of the seeds and no walk enters it;
* tissue that no class claims is a kind of seed of its own, K + 1, for it is not glass: without it the network would
  learn no boundary of a class against other tissue. There is one pass of thresholds, without a CRF;
* P+_fg counts by class, so that the commonest tissue does not own the loss;
* maps have one scale, the mean of their highest value over training windows of the class: of a window by itself
  (published: the highest of all classes in it) the faintest map would be as sure as any;
- the walk has 4 steps (published: exp_times 8, 256 steps), which smear mosaics of tissue less; maps come from one scale
  (published: 0.5, 1, 1.5, 2); seeds begin at 0.7, for those of a lower share reach over the edges of coarse maps and
  put boundaries outside of them (published: seed_fg 0.3); and only the best windows of a positive slide keep its label
  (published: prevalence 0, all do);
- at least half of the windows of a step hold seeds of two kinds, else the loss drives B to 0.

Deviations: AdamW with warm-up and cosine, on one rate for both branches, in place of SGD with polynomial decay and a
tenfold rate for displacement. (The released optimiser is given weight decay in the place of its momentum, so what was
published is SGD with momentum 1e-4, whose rate of 0.1 does not carry over to an SGD with momentum.) Training windows
are seen in their 8 symmetries with stain jitter, not rescaled, since um a pixel are known. The frozen backbone is that
of the classifier after its training; `backbone: start` takes the encoder as it came, as published. All layers of the
classifier learn (published: early stages and batch norms are frozen), it has a bias, and its map is the deepest at a
stride of 16 at most (published: a last stage that is made so); what it denies of a window has no map there.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.augment import TissueAugment
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, generator, seeded_init
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreMap, strongest
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE, BoundaryNet
from wsipipe.pseudolabel.methods.irnet.displacements import displacement_px as displacement_px
from wsipipe.pseudolabel.methods.irnet.displacements import slide_displacements
from wsipipe.pseudolabel.methods.irnet.seeds import published_seeds, tissue_seeds
from wsipipe.pseudolabel.shared.affinity import affinities, boundary_loss, displacement_losses, padded, pair_sets
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.mil import balanced_sample
from wsipipe.pseudolabel.shared.walk import BETA, RADIUS, Walk, random_walk
from wsipipe.pseudolabel.shared.windows import (
    TOGETHER,
    WindowParams,
    Windows,
    draw_windows,
    slide_maps,
    train_windows,
)
from wsipipe.runtime.device import ComputeContext, autocast
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)

REFINEMENT = "none"

EPS = 1e-5


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of IRNet."""

    scales: tuple[float, ...] = option(
        (1.0,), "sizes of the window that maps are summed over; published 1, 0.5, 1.5, 2"
    )
    seed_fg: float = option(0.7, "share of a map's maximum from which a cell is a seed of the class; 0.3 as published")
    seed_bg: float = option(0.05, "share below which, in all maps, a cell is a seed of none; 0.05 as published")
    backbone: str = option(
        "classifier", "frozen backbone of the boundary network: classifier, or start (the untouched encoder)"
    )
    boundary_steps: int = option(300, "training steps of the boundary network")
    boundary_lr: float = option(5e-3, "highest learning rate of the boundary network")
    boundary_batch: int = option(16, "windows in a step of the boundary network")
    pair_radius: int = option(10, "distance, in cells of 4 input px, below which cells are training pairs")
    displacement: bool = option(
        False, "learn displacements to object centres too, and cut masks into objects: labels/<name>-objects, a table"
    )
    exp_times: int = option(2, "the walk has 2 to the power of this steps; 8 as published")
    beta: float = option(BETA, "exponent of affinities in the walk")
    radius: int = option(RADIUS, "distance, in cells of 4 input px, below which cells are neighbours in the walk")
    background: float = option(0.25, "value that a class has to exceed to be painted", fit=False)
    as_published: bool = option(
        False, "seeds by two thresholds and a CRF, no tissue mask, maps scaled window by window, all pairs alike"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("boundary_steps", self.boundary_steps >= 1, "is below 1")
        for name in ("boundary_batch", "pair_radius", "radius"):
            check(getattr(self, name) >= 2, f"irnet.{name}: {getattr(self, name)} is below 2")
        for name in ("boundary_lr", "beta"):
            check(getattr(self, name) > 0, f"irnet.{name}: {getattr(self, name)} is not above 0")
        for name in ("seed_fg", "seed_bg", "background"):
            check(0 < getattr(self, name) < 1, f"irnet.{name}: {getattr(self, name)} is outside 0..1")
        check(self.seed_bg <= self.seed_fg, f"irnet.seed_bg: {self.seed_bg} is above seed_fg, {self.seed_fg}")
        steps = f"irnet.exp_times: {self.exp_times} is outside 0..12; the walk has 2 to the power of it steps"
        check(0 <= self.exp_times <= 12, steps)
        sizes = len(self.scales) > 0 and all(0.25 <= s <= 4 for s in self.scales)
        check(sizes, f"irnet.scales: {list(self.scales)} is not a list of sizes between 0.25 and 4")
        known = self.backbone in ("classifier", "start")
        check(known, f"irnet.backbone: {self.backbone!r} is not classifier or start")

    @property
    def walk(self) -> Walk:
        """How maps walk."""
        return Walk(2**self.exp_times, self.beta, self.radius)


class IrNet(nn.Module):
    """The classifier of windows, the boundary network, and what class maps are divided by: top, float [K]."""

    top: Tensor

    def __init__(self, classifier: CamClassifier, boundary: BoundaryNet, scales: Sequence[float]) -> None:
        super().__init__()
        self.classifier, self.boundary, self.scales = classifier, boundary, tuple(scales)
        self.register_buffer("top", torch.ones(classifier.linear.out_features))

    def class_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps float32 [B, K, s / 4, s / 4] >= 0, summed over scales and mirror images, and mean logits float [B, K].

        x: windows (normalised) float [B, 3, s, s].
        """
        size = [n // STRIDE for n in x.shape[-2:]]
        total, logits = torch.zeros((), device=x.device), []
        for scale in self.scales:
            sized = x if scale == 1 else _resized(x, [round(n * scale) for n in x.shape[-2:]])
            plain, mirrored = (self.classifier.maps(v).float() for v in (sized, sized.flip(-1)))
            total = total + _resized(plain.relu() + mirrored.flip(-1).relu(), size)
            logits += [self.classifier.evidence(m) for m in (plain, mirrored)]
        return total, torch.stack(logits).mean(0)

    def walked(self, maps: Tensor, x: Tensor, tissue: Tensor, how: Walk) -> Tensor:
        """M*: maps float32 [B, K, h, w] of windows x, walked over tissue bool [B, h, w] (elsewhere 0)."""
        boundary = torch.where(tissue, self.boundary.boundary(x), 1)
        return random_walk(maps, boundary, how)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def lattice(patch_px: int, params: Params) -> InstanceGrid:
    """Scores of patch_px / cells px; the networks see windows of patch_px."""
    found = params.lattice(patch_px)
    whole = found.input_px % STRIDE == 0
    check(whole, f"irnet.shrink: a patch is {found.input_px} px at 1/{params.shrink}, which {STRIDE} does not divide")
    return found


def build(classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Params) -> nn.Module:
    """The classifier and the boundary network, each on an encoder of its own."""
    boundary = BoundaryNet(copy.deepcopy(encoder), params.displacement)
    return IrNet(CamClassifier(encoder, lattice.input_px, len(classes)), boundary, params.scales)


def fit(bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    """Train the classifier, take seeds from its maps, learn boundaries from them, and measure the scale of the maps."""
    seed, on = run.compute.seed, run.compute.device
    model = cast(IrNet, seeded_init(lambda: build(run.classes, run.encoder(), lattice, params), seed))
    windows = draw_windows(bags, lattice, params.windows, params.max_windows, seed)
    train_windows(model.classifier, windows, params.training, run.compute)
    if params.backbone == "classifier":
        model.boundary.backbone.encoder.load_state_dict(model.classifier.encoder.state_dict())
    model.to(on).eval()
    train_boundary(model.boundary, windows.rgb, window_seeds(model, windows, params), params, run.compute)
    model.top.copy_(highest(model, windows, params))
    return model


def window_seeds(model: IrNet, windows: Windows, params: Params) -> Tensor:
    """Seeds of training windows from maps of the classes that their labels and the classifier grant: uint8 [M, h, w].

    As published every map is divided by its own maximum, and the label alone grants a class.
    """
    seeds = []
    for chosen, x, tissue in batches(model, windows):
        with torch.inference_mode(), autocast(x.device):
            maps, logits = model.class_maps(x)
            maps = maps * granted(windows, chosen, logits, params)[:, :, None, None]
        maps = maps / (maps.amax((2, 3), keepdim=True) + EPS)
        if params.as_published:
            rgb = torch.from_numpy(windows.rgb[chosen]).to(x.device)
            fine = _resized(maps, x.shape[-2:])
            full = [published_seeds(m, p, params.seed_fg, params.seed_bg) for m, p in zip(fine, rgb, strict=True)]
            seeds.append(torch.stack(full)[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].cpu())
        else:
            seeds.append(tissue_seeds(maps, tissue, params.seed_fg, params.seed_bg).cpu())
    return torch.cat(seeds)


def granted(windows: Windows, chosen: NDArray[np.int64], logits: Tensor, params: Params) -> Tensor:
    """Whether a window of `chosen` [B] may have a class: labelled so, and not denied; bool [B, K].

    The label of a patch is about the window and needs no support; as published no label does.
    """
    labelled = windows.labels[chosen].to(logits.device) == 1
    sure = torch.from_numpy(windows.patch[chosen]).to(logits.device)[:, None]
    return labelled & (sure | (logits >= 0) | params.as_published)


def batches(model: IrNet, windows: Windows) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Indices int [B], windows (normalised) float [B, 3, s, s], and tissue by cells of 4 px, bool [B, h, w]."""
    on = model.top.device
    for i in range(0, len(windows.rgb), TOGETHER):
        chosen = np.arange(i, min(i + TOGETHER, len(windows.rgb)))
        x = normalise(torch.from_numpy(windows.rgb[chosen]).to(on))
        yield chosen, x, tissue_cells(torch.from_numpy(windows.tissue[chosen]).to(on))


def tissue_cells(tissue: Tensor) -> Tensor:
    """Whether half of a cell of 4 px is tissue: bool [B, s, s] -> bool [B, s / 4, s / 4]."""
    return F.avg_pool2d(tissue.float(), STRIDE) >= 0.5


def train_boundary(
    net: BoundaryNet, rgb: NDArray[np.uint8], seeds: Tensor, params: Params, compute: ComputeContext
) -> list[float]:
    """Train the branches on windows uint8 [M, 3, s, s] with seeds uint8 [M, s / 4, s / 4]; the loss of every step.

    Half of a step's windows, where there are any, hold seeds of two kinds or more.
    """
    pools, radius = seed_pools(seeds), params.pair_radius

    def draw(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 3, step)
        chosen = balanced_sample(pools, -(-params.boundary_batch // len(pools)), g)
        x, labels = TissueAugment().with_maps(
            torch.from_numpy(rgb[chosen.numpy()]).float() / 255, seeds[chosen].unsqueeze(1), g
        )
        return x, labels.squeeze(1)

    def loss(item: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = (v.to(compute.device) for v in item)
        logits, displacement = net(normalise(x))
        pairs = pair_sets(padded(labels, radius, IGNORE), radius)
        a = affinities(padded(torch.sigmoid(logits.float()), radius, 1.0), radius)
        total = boundary_loss(a, pairs, by_class=not params.as_published)
        if displacement is not None:
            d = F.pad(displacement.float(), (radius - 1, radius - 1, 0, radius - 1))
            total = total + sum(displacement_losses(d, pairs, radius))
        return total / 2

    losses = train(net, draw, loss, Schedule(params.boundary_steps, params.boundary_lr), "boundaries", compute)
    if net.displacement_branch is not None:
        net.displacement_branch.mean.copy_(mean_displacement(net, rgb, compute.device))
    return losses


def seed_pools(seeds: Tensor) -> list[Tensor]:
    """Windows to draw from in equal numbers: those with seeds of two kinds or more, if any, and all; int64 [n] each."""
    class_pools = torch.stack(
        [(seeds == v).flatten(1).any(1) for v in torch.unique(seeds[seeds != IGNORE])] or [seeds[:, 0, 0] < 0]
    )
    mixed = torch.nonzero(class_pools.sum(0) >= 2).ravel()
    every = torch.arange(len(seeds))
    if not len(mixed):
        log.warning("irnet: no window holds seeds of two kinds, so no boundary can be learnt; lower irnet.seed_fg")
        return [every]
    return [mixed, every]


def mean_displacement(net: BoundaryNet, rgb: NDArray[np.uint8], on: torch.device) -> Tensor:
    """The common shift of displacements over windows uint8 [M, 3, s, s], before any mean is taken out: float [2]."""
    total = torch.zeros(2, device=on)
    for i in range(0, len(rgb), TOGETHER):
        some = torch.from_numpy(rgb[i : i + TOGETHER])
        with torch.inference_mode(), autocast(on):
            total += net(normalise(some.to(on)))[1].float().mean((2, 3)).sum(0)
    return total / len(rgb)


def highest(model: IrNet, windows: Windows, params: Params) -> Tensor:
    """Mean over the training windows of a class of the highest value of its walked map: float [K].

    Infinite, so that it is never painted, for a class that the classifier denies of all windows.
    """
    total, count = torch.zeros_like(model.top), torch.zeros_like(model.top)
    for chosen, x, tissue in batches(model, windows):
        with torch.inference_mode(), autocast(x.device):
            maps, logits = model.class_maps(x)
            of_class = (windows.labels[chosen].to(x.device) == 1) & (logits >= 0)
            tops = model.walked(maps, x, tissue, params.walk).amax((2, 3))
        total += (tops * of_class).sum(0)
        count += of_class.sum(0)
    for k in torch.nonzero(count == 0).ravel().tolist():
        log.warning("irnet: the classifier finds class %d in none of its training windows; it is not painted", k + 1)
    return torch.where(count > 0, total / count.clamp_min(1) + EPS, torch.inf)


def score(
    model: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    params: Params,
    on: torch.device,
    excluded: NDArray[np.bool_] | None = None,
) -> ScoreMap:
    """Walked maps of the whole slide, averaged over windows; `background` speaks against all classes."""
    assert isinstance(model, IrNet)
    model.to(on).eval()

    def maps_of(rgb: Tensor, tissue: Tensor) -> Tensor:
        """Walked maps of windows, 0 in those of which the classifier denies the class."""
        x, cells = normalise(rgb.to(on)), tissue_cells(tissue.to(on))
        with torch.inference_mode(), autocast(on):
            maps, logits = model.class_maps(x)
            maps = maps * (logits >= 0)[:, :, None, None]
            if params.as_published:
                walked = model.walked(maps, x, torch.ones_like(cells), params.walk)
                return walked / (walked.amax((1, 2, 3), keepdim=True) + EPS)
            return model.walked(maps, x, cells, params.walk) / model.top[:, None, None]

    values = np.minimum(slide_maps(store, lattice, params.min_tissue, len(model.top), maps_of), 1)
    none = np.where(np.isnan(values[0]), np.nan, np.float32(params.background)).astype(np.float32)
    return ScoreMap(values, none, lattice.instance_px)


def displacements(
    model: nn.Module, store: SlideStore, lattice: InstanceGrid, wanted: NDArray[np.bool_], on: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Step 8: where the cells of the slide say that their objects' centres are, as far as needed for `wanted` cells.

    Displacements (y, x) float32 [2, rows, cols] and where there are any, bool [rows, cols], as `wanted` in cells of 4
    input px.
    """
    assert isinstance(model, IrNet)
    net = model.to(on).eval().boundary

    def displacements_of(rgb: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(on):
            return cast(Tensor, net(normalise(rgb.to(on)))[1])

    return slide_displacements(store, lattice, wanted, displacements_of)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The strongest class where it exceeds the background, 0 where none does, 255 where nothing was scored."""
    return strongest(scores)
