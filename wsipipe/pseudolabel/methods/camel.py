"""CAMEL: multiple-instance learning with two selectors, then retraining (Xu et al., ICCV 2019), and CAMEL2's rule.

Patch bags are split into an N x N lattice; two classifiers, Max-Max and Max-Min, each trained on the instance that its
own rule picks, agree on an instance set; a fresh classifier retrained on it scores every instance of every slide.
Slide and region bags follow CAMEL2's prevalence rule (Xu et al., Advanced Intelligent Systems 2024).

Deviations, with their reason: the selectors are linear heads on the frozen (pretrained) encoder, so that they see every
instance of a bag at every step at no cost; `context` lets the classifier see beyond its instance; several classes get
independent sigmoids; one round of self-training follows the retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config import check, option
from wsipipe.errors import ConfigError
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.train import Schedule, generator
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.lattice import Lattice, read_crops
from wsipipe.pseudolabel.method import Fitting, ScoreMap
from wsipipe.pseudolabel.parts.classifier import (
    Head,
    InstanceClassifier,
    apply_in_batches,
    train_classifier,
    width_of,
)
from wsipipe.pseudolabel.parts.mil import Rule, max_max, max_min, prevalence
from wsipipe.runtime import Compute
from wsipipe.store import SlideStore

TOGETHER = 1024
"""Instances of small bags that go through a network in one call."""


@dataclass(frozen=True)
class Params:
    """Parameters of CAMEL."""

    lattice: int = option(4, "N: a patch is split into N x N instances")
    context: float = option(2.0, "side of the square that the classifier sees, in instances; 1.0 as published")
    shrink: int = option(2, "working pixels per input pixel of the classifier; 2 at 0.5 um/px is 1 um/px")
    prevalence: float = option(0.1, "share of instances of a positive slide or region that are surely positive")
    min_tissue: float = option(0.5, "least share of tissue in an instance (the tissue gate)")
    selector_steps: int = option(400, "training steps of each selector")
    selector_lr: float = option(3e-3, "learning rate of the selectors")
    retrain_steps: int = option(300, "training steps of the instance classifier")
    self_train_steps: int = option(300, "training steps of the self-training round")
    lr: float = option(5e-4, "highest learning rate of the instance classifier")
    batch: int = option(64, "instances in a step")
    max_instances: int = option(40_000, "most instances held in memory for retraining")
    confident: float = option(0.9, "score beyond which (and 1 - it below which) self-training believes an answer")
    uncertain: float = option(0.1, "scores nearer than this to 0.5 are painted 255")
    views: int = option(4, "symmetric views averaged when scoring, 1..8")

    def __post_init__(self) -> None:
        check(self.lattice >= 1, f"camel.lattice: {self.lattice} is below 1")
        check(0 < self.prevalence <= 1, f"camel.prevalence: {self.prevalence} is not a share above 0")
        check(0.5 < self.confident < 1, f"camel.confident: {self.confident} is outside 0.5..1")
        check(0 <= self.uncertain < 0.5, f"camel.uncertain: {self.uncertain} is outside 0..0.5")
        check(1 <= self.views <= 8, f"camel.views: {self.views} is outside 1..8")
        check(self.context >= 1, f"camel.context: {self.context} is below 1")
        for name in ("shrink", "selector_steps", "retrain_steps", "self_train_steps"):
            check(getattr(self, name) >= 1, f"camel.{name}: {getattr(self, name)} is below 1")
        check(self.batch >= 2, f"camel.batch: {self.batch} is below 2")
        check(self.max_instances >= 2, f"camel.max_instances: {self.max_instances} is below 2")
        check(0 < self.min_tissue <= 1, f"camel.min_tissue: {self.min_tissue} is not a share above 0")


def lattice(patch_px: int, params: Params) -> Lattice:
    """Instances of patch_px / N px, seen with their context."""
    m = patch_px // params.lattice
    check(
        m * params.lattice == patch_px, f"camel.lattice: a patch of {patch_px} px does not split into {params.lattice}"
    )
    return Lattice(m, round(m * params.context), params.shrink)


def build(classes: Classes, encoder: nn.Module, lattice: Lattice) -> nn.Module:
    """The instance classifier."""
    return InstanceClassifier(encoder, width_of(encoder, lattice.input_px), len(classes))


def fit(bags: Sequence[Bag], lattice: Lattice, params: Params, run: Fitting) -> nn.Module:
    """Selectors, instance set, retraining, and one round of self-training."""
    encoder = run.encoder()
    features = _apply_to_bags(encoder, bags, lattice, 1, run.compute, "embed")
    labels = torch.tensor([b.label for b in bags])
    chosen: list[tuple[int, int, int, int]] = []
    for s, patch_rule in enumerate((max_max, max_min)):
        rules = [patch_rule if b.patch else partial(prevalence, ratio=params.prevalence) for b in bags]
        head = _train_selector(features, labels, rules, params, run, seed=run.compute.seed + s)
        chosen += _collect(head, features, labels, rules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.compute.seed)
        model = build(run.classes, encoder, lattice)
    crops, targets = _instance_set(bags, lattice, chosen, params.max_instances, run.compute.seed)
    schedule = Schedule(params.retrain_steps, params.lr)
    train_classifier(model, crops, targets, schedule, "retrain", run.compute, params.batch)
    if run.self_train:
        crops, targets = _own_answers(model, bags, lattice, params, run)
        schedule = Schedule(params.self_train_steps, params.lr / 2)
        train_classifier(
            model, crops, targets, schedule, "self-train", replace(run.compute, seed=run.compute.seed + 1), params.batch
        )
    return model


def _apply_to_bags(
    model: nn.Module, bags: Sequence[Bag], lattice: Lattice, views: int, compute: Compute, task: str
) -> list[Tensor]:
    """model(instances) of every bag: float32 [M, ..] each; small bags go through the network together."""
    out: list[Tensor] = []
    first = 0
    while first < len(bags):
        last = first + 1
        while last < len(bags) and sum(len(b.xy_px) for b in bags[first : last + 1]) <= TOGETHER:
            last += 1
        crops = [read_crops(b.store, b.xy_px, lattice, b.bounds) for b in bags[first:last]]
        values = apply_in_batches(model, np.concatenate(crops), compute.device, views)
        ends = np.cumsum([len(c) for c in crops]).tolist()
        out += [values[end - len(c) : end] for end, c in zip(ends, crops, strict=True)]
        first = last
        compute.progress(task, first, len(bags))
    return out


def _train_selector(
    features: Sequence[Tensor], labels: Tensor, rules: Sequence[Rule], params: Params, run: Fitting, seed: int
) -> Head:
    """cMIL: a head trained on what its own rule selects; positive and negative bags of each class in equal numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(features[0].shape[1], labels.shape[1])
    head.standardise(torch.cat(list(features)))
    pools = [p for k in range(labels.shape[1]) for v in (1, 0) if len(p := torch.nonzero(labels[:, k] == v).ravel())]
    share = 16 if len(features) > 64 else 4

    def draw(step: int) -> list[int]:
        g = generator(seed, 3, step)
        return [int(p[i]) for p in pools for i in torch.randint(0, len(p), (share,), generator=g)]

    def loss(bag_ids: list[int]) -> Tensor:
        return torch.stack([bag_loss(head(features[b]), labels[b], rules[b]) for b in bag_ids]).mean()

    schedule = Schedule(params.selector_steps, params.selector_lr, weight_decay=1e-2)
    train(head, draw, loss, schedule, "select", replace(run.compute, device=torch.device("cpu")))
    return head


def bag_loss(logits: Tensor, label: Tensor, rule: Rule) -> Tensor:
    """Cross-entropy between a bag's label and its selected instances: logits [M, K], label int [K] -> scalar.

    The mean over classes of the mean over the instances that `rule` selects; all others carry no gradient.
    """
    losses = []
    for k, y in enumerate(label.tolist()):
        picked = logits[rule(logits[:, k].detach(), int(y)), k]
        losses.append(nn.functional.binary_cross_entropy_with_logits(picked, torch.full_like(picked, float(y))))
    return torch.stack(losses).mean()


def _collect(
    head: Head, features: Sequence[Tensor], labels: Tensor, rules: Sequence[Rule]
) -> list[tuple[int, int, int, int]]:
    """The instances that a selector picks by its own rule and agrees with: (bag, instance, class, target)."""
    chosen = []
    with torch.inference_mode():
        for b, f in enumerate(features):
            logits = head(f)
            for k, y in enumerate(labels[b].tolist()):
                for i in rules[b](logits[:, k], int(y)).tolist():
                    if (logits[i, k] > 0) == bool(y):
                        chosen.append((b, i, k, int(y)))
    return chosen


def _instance_set(
    bags: Sequence[Bag], lattice: Lattice, chosen: Sequence[tuple[int, int, int, int]], limit: int, seed: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Crops of the chosen instances with their targets: uint8 [M, 3, s, s], float [M, K] (nan: not known).

    A class that the bag does not hold is 0 for all of its instances; one that it holds is known only where selected.
    """
    if not chosen:
        raise ConfigError(
            "the selectors agree with no label: nothing to learn; check the labels or raise camel.selector_steps"
        )
    wanted: dict[tuple[int, int], dict[int, int]] = {}
    for b, i, k, y in chosen:
        wanted.setdefault((b, i), {})[k] = y
    keys = sorted(wanted)
    if len(keys) > limit:
        positive = [k for k in keys if any(wanted[k].values())]
        negative = [k for k in keys if not any(wanted[k].values())]
        rng = np.random.default_rng(seed)
        room = min(len(negative), max(limit - len(positive), limit // 2))
        some, keep = rng.permutation(len(positive))[: limit - room], rng.permutation(len(negative))[:room]
        keys = sorted([*(positive[i] for i in some), *(negative[i] for i in keep)])
    crops, targets = [], []
    for b in sorted({b for b, _ in keys}):
        of_bag = [i for bb, i in keys if bb == b]
        bag = bags[b]
        crops.append(read_crops(bag.store, bag.xy_px[of_bag], lattice, bag.bounds))
        for i in of_bag:
            known = wanted[(b, i)]
            targets.append(
                [float(known[k]) if k in known else (0.0 if not y else float("nan")) for k, y in enumerate(bag.label)]
            )
    return np.concatenate(crops), torch.tensor(targets)


def _own_answers(
    model: nn.Module, bags: Sequence[Bag], lattice: Lattice, params: Params, run: Fitting
) -> tuple[NDArray[np.uint8], Tensor]:
    """All instances with the classifier's own confident answers, held to the bags' labels; nan where it is unsure."""
    chosen: list[tuple[int, int, int, int]] = []
    answers = _apply_to_bags(model, bags, lattice, params.views, run.compute, "believe")
    for b, (bag, logits) in enumerate(zip(bags, answers, strict=True)):
        p = logits.sigmoid()
        for k, y in enumerate(bag.label):
            sure_one = (p[:, k] >= params.confident) & bool(y)
            sure_zero = (p[:, k] <= 1 - params.confident) | (not y)
            chosen += [(b, i, k, 1) for i in torch.nonzero(sure_one).ravel().tolist()]
            chosen += [(b, i, k, 0) for i in torch.nonzero(sure_zero & ~sure_one).ravel().tolist()]
    return _instance_set(bags, lattice, chosen, params.max_instances, run.compute.seed)


def score(model: nn.Module, store: SlideStore, lattice: Lattice, params: Params, on: torch.device) -> ScoreMap:
    """Scores of every instance with tissue, on the lattice that starts at the slide's top left."""
    cells = lattice.cells(store, params.min_tissue)
    m = lattice.instance_px
    rows, cols = (-(-n // m) for n in (store.grid.size_px[1], store.grid.size_px[0]))
    assert isinstance(model, InstanceClassifier)
    classes = model.head.linear.out_features
    values = np.full((classes, rows, cols), np.nan, np.float32)
    for i in range(0, len(cells), 4096):
        part = cells[i : i + 4096]
        crops = read_crops(store, (part[:, ::-1] * m).astype(np.int32), lattice)
        p = apply_in_batches(model, crops, on, params.views).sigmoid().numpy()
        values[:, part[:, 0], part[:, 1]] = p.T
    return ScoreMap(values, m)


def refine(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The likeliest class where its score is above 0.5, 0 where none is, 255 near 0.5 and where nothing was scored."""
    p = np.nan_to_num(scores.values, nan=0.0)
    best = p.argmax(0)
    top = p.max(0)
    mask = np.where(top >= 0.5, best + 1, 0).astype(np.uint8)
    unsure = np.abs(top - 0.5) < params.uncertain
    mask[unsure | np.isnan(scores.values).all(0)] = IGNORE
    return mask
