"""CAMEL: multiple-instance learning with two selectors, then retraining (Xu et al., ICCV 2019), and CAMEL2's rule.

Patch bags are split into an N x N lattice; two classifiers, Max-Max and Max-Min, each trained on the instance that its
own rule picks, agree on an instance set; a fresh classifier retrained on it scores every instance of every slide.
Slide and region bags follow CAMEL2's prevalence rule (Xu et al., Advanced Intelligent Systems 2024).

Deviations, with their reason. By default:
* the selectors are linear heads on features of a frozen encoder, so that they see every instance of a bag at every
  step at no cost; `selectors: networks` trains two whole networks as published, normalisation statistics fixed.
* `warm_steps`: before anything is selected the encoder learns the bags' labels, every instance taking that of its bag.
  That is wrong of many instances of positive bags but of none of negative ones, so what it ranks first is right; by
  features that know nothing of the tissue selectors pick any instance. 0 as published.
* `veto`: anything that varies satisfies Max-Min, so what it picks of a positive bag may be any instance; such a pick is
  dropped where Max-Max takes it for negative.
* `context` lets the classifier see beyond its instance, of which alone a small square tells little; 1.0 as published.
* several classes get independent sigmoids; the rules are applied, and the instance set is collected, class by class.
* `calibrate`: the published threshold of 0.5 means little on scores learned from a few instances of positive bags
  against many of negative ones. Two networks, each fitted on half of the patients (or slides), score the other half;
  the border is put where these scores, with the bags' labels alone, promise the best Dice (see `parts.calibrate`).
* self-training: the classifier learns on from the confident answers, held to the bags' labels, that these two networks
  give together; its border is moved so that it takes as much of the positive bags as they take of held-out ones.
* scores are averaged over overlapping instances (`overlap`); 1 as published.
Off by default, as published where on: the image-level constraint (`constraint: 1.0`) and the cascade (`cascade: N1`).
The cascade's crops are seen without context, and its second pair of selectors sees no more of an instance than the
first did. The optimiser, schedules and the encoder are those of the package (published: Adam at 1e-4, ResNet-50).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.augment import STAIN_STRENGTH
from wsipipe.nn.encoders import width_of
from wsipipe.nn.train import Schedule, seeded_init
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import FitContext, ScoreMap, strongest
from wsipipe.pseudolabel.methods.camel.calibrate import halves, same_share, shifts
from wsipipe.pseudolabel.methods.camel.cascade import coarse_lattice, intermediate, sub_bags
from wsipipe.pseudolabel.methods.camel.instances import confident_answers, instance_set, targets_from_picks
from wsipipe.pseudolabel.methods.camel.selectors import Pick, collect, score_features, train_selector, vetoed
from wsipipe.pseudolabel.methods.camel.whole_bags import WholeBags
from wsipipe.pseudolabel.shared.classifier import InstanceClassifier, Retraining, apply_in_batches, train_classifier
from wsipipe.pseudolabel.shared.instances import apply_to_bags
from wsipipe.pseudolabel.shared.mil import Rule, max_max, max_min, prevalence
from wsipipe.store import SlideStore

REFINEMENT = "none"

RULES = (max_max, max_min)


@dataclass(frozen=True)
class Params:
    """Parameters of CAMEL."""

    lattice: int = option(4, "N: a patch is split into N x N instances")
    context: float = option(2.0, "side of the square that the classifier sees, in instances; 1.0 as published")
    shrink: int = option(2, "working pixels per input pixel of the classifier; 2 at 0.5 um/px is 1 um/px")
    prevalence: float = option(0.1, "share of instances of a positive slide or region that are surely positive")
    min_tissue: float = option(0.5, "least share of tissue in an instance (the tissue gate)")
    warm_steps: int = option(300, "training steps in which the encoder first learns the labels of bags; 0 as published")
    selectors: str = option("heads", "heads on features of that encoder, or networks of their own as published (slow)")
    selector_steps: int = option(400, "training steps of each selector")
    selector_lr: float = option(3e-3, "learning rate of selectors that are heads")
    veto: bool = option(True, "drop positives of Max-Min that Max-Max takes for negative; false as published")
    cascade: int = option(0, "N1: also pick among N1 x N1 crops of a patch first, then inside these; 0: do not")
    constraint: float = option(0.0, "weight of the image-level constraint beside retraining; 1.0 as published, 0: off")
    retrain_steps: int = option(300, "training steps of the instance classifier")
    calibrate: bool = option(True, "shift scores so that 0.5 promises the best Dice, by weak labels of held-out slides")
    self_train_steps: int = option(300, "training steps of the self-training round")
    lr: float = option(5e-4, "highest learning rate of networks")
    batch: int = option(64, "instances in a step")
    stain_jitter: float = option(STAIN_STRENGTH, "strength of the stain jitter in training; 0: none")
    max_zoom: float = option(1.0, "largest random enlargement in training; 1.2 as published, 1.0: none")
    max_instances: int = option(40_000, "most instances held in memory for retraining")
    confident: float = option(0.9, "score beyond which (and 1 - it below which) self-training believes an answer")
    uncertain: float = option(0.1, "scores nearer than this to 0.5 are painted 255", fit=False)
    overlap: int = option(
        2, "instances that cover a place along each side, averaged when scoring; 1 as published", fit=False
    )
    views: int = option(4, "symmetric views averaged when scoring, 1..8")

    def __post_init__(self) -> None:
        check(self.lattice >= 1, f"camel.lattice: {self.lattice} is below 1")
        check(0 < self.prevalence <= 1, f"camel.prevalence: {self.prevalence} is not a share above 0")
        check(0.5 < self.confident < 1, f"camel.confident: {self.confident} is outside 0.5..1")
        check(0 <= self.uncertain < 0.5, f"camel.uncertain: {self.uncertain} is outside 0..0.5")
        check(1 <= self.views <= 8, f"camel.views: {self.views} is outside 1..8")
        check(self.context >= 1, f"camel.context: {self.context} is below 1")
        for name in ("shrink", "overlap", "selector_steps", "retrain_steps", "self_train_steps"):
            check(getattr(self, name) >= 1, f"camel.{name}: {getattr(self, name)} is below 1")
        check(self.batch >= 2, f"camel.batch: {self.batch} is below 2")
        check(self.max_instances >= 2, f"camel.max_instances: {self.max_instances} is below 2")
        check(0 < self.min_tissue <= 1, f"camel.min_tissue: {self.min_tissue} is not a share above 0")
        check(self.selectors in ("heads", "networks"), f"camel.selectors: {self.selectors!r} is not heads or networks")
        divides = self.cascade == 0 or (1 < self.cascade < self.lattice and self.lattice % self.cascade == 0)
        check(divides, f"camel.cascade: {self.cascade} is not 0 or a divisor of the lattice {self.lattice} within it")
        check(self.warm_steps >= 0, f"camel.warm_steps: {self.warm_steps} is negative")
        check(self.constraint >= 0, f"camel.constraint: {self.constraint} is negative")
        check(0 <= self.stain_jitter <= 1, f"camel.stain_jitter: {self.stain_jitter} is outside 0..1")
        check(1 <= self.max_zoom <= 2, f"camel.max_zoom: {self.max_zoom} is outside 1..2")


def lattice(patch_px: int, params: Params) -> InstanceGrid:
    """Instances of patch_px / N px, seen with their context."""
    m = patch_px // params.lattice
    check(
        m * params.lattice == patch_px, f"camel.lattice: a patch of {patch_px} px does not split into {params.lattice}"
    )
    instances = InstanceGrid(m, round(m * params.context), params.shrink)
    check(
        m % (params.overlap * params.shrink) == 0,
        f"camel.overlap: instances of {m} px do not shift by 1/{params.overlap} in steps of {params.shrink} px "
        "(camel.shrink)",
    )
    return instances


def build(classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Params) -> nn.Module:
    """The instance classifier."""
    return InstanceClassifier(encoder, width_of(encoder, lattice.input_px), len(classes))


def fit(bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> nn.Module:
    """Selectors, instance set, retraining; the border of the classes; and one round of self-training."""
    camel = _Camel(bags, lattice, params, run)
    everything = list(range(len(bags)))
    if not (params.calibrate or run.self_train):
        return camel.learned(everything)
    parts = halves(bags, camel.labels, run.compute.seed) if params.calibrate else []
    model, held_out, everyone = camel.cross_fitted(parts or [everything])
    shift = torch.zeros(len(run.classes))
    if params.calibrate:
        shift = shifts(held_out, camel.labels, params.prevalence)
    if run.self_train:
        camel.self_train(model, [z + shift for z in everyone])
        if params.calibrate:
            shift = same_share(camel.answers(model), [z + shift for z in held_out], camel.labels)
    elif len(parts) > 1:
        model = camel.learned(everything)
    model.shift.copy_(shift)
    return model


class _Camel:
    """The steps of CAMEL on given bags; each step takes the indices of the bags that it may learn from."""

    def __init__(self, bags: Sequence[Bag], lattice: InstanceGrid, params: Params, run: FitContext) -> None:
        self.bags, self.lattice, self.params, self.run = bags, lattice, params, run
        self.labels = torch.tensor([b.label for b in bags])
        self.seed = run.compute.seed
        wide = partial(prevalence, ratio=params.prevalence)
        self.rules: list[list[Rule]] = [[rule if b.patch else wide for b in bags] for rule in RULES]

    def learned(self, of: list[int]) -> InstanceClassifier:
        """Steps 2 to 5 of the paper: a classifier retrained on the instance set of the selectors."""
        warm = self._warmed(of)
        features = cache(lambda: self._features(of, warm))
        both = self._route_a(of, warm, features) + self._route_b(of, warm, features)
        picks = [p._replace(bag=of[p.bag]) for p in both]
        model = self._fresh(0, warm)
        constraint = self._whole_bags(of, self.rules) if self.params.constraint else None
        answers = targets_from_picks(picks, self.bags)
        self._train(model, answers, "retrain", self.params.retrain_steps, self.params.lr, 0, constraint)
        return model

    def self_train(self, model: InstanceClassifier, teacher: Sequence[Tensor]) -> None:
        """Let `model` learn on from the confident answers float [M, K] given for each bag, at half the rate."""
        answers = confident_answers(teacher, self.labels, self.params.confident)
        self._train(model, answers, "self-train", self.params.self_train_steps, self.params.lr / 2, 1)

    def cross_fitted(self, parts: Sequence[list[int]]) -> tuple[InstanceClassifier, list[Tensor], list[Tensor]]:
        """For each part a classifier that learned from the other parts alone (where there is but one: from itself).

        Returns the last of them, and logits float [M, K] of every bag: by the one that did not learn from it, and as
        the mean over all.
        """
        own: dict[int, Tensor] = {}
        every: list[list[Tensor]] = []
        for part in parts:
            model = self.learned(sorted(b for other in parts if other is not part for b in other) or part)
            every.append(self.answers(model))
            own |= {b: every[-1][b] for b in part}
        return (
            model,
            [own[b] for b in range(len(self.bags))],
            [torch.stack(z).mean(0) for z in zip(*every, strict=True)],
        )

    def answers(self, model: nn.Module, of: Sequence[int] | None = None) -> list[Tensor]:
        """Logits float [M, K] of the bags `of` (default: all)."""
        bags = self.bags if of is None else [self.bags[b] for b in of]
        return apply_to_bags(model, bags, self.lattice, self.params.views, self.run.compute, "believe")

    def _warmed(self, of: list[int]) -> nn.Module | None:
        """An encoder that has learned the labels of the bags `of` from all of their instances; None without warm-up."""
        if not self.params.warm_steps:
            return None
        model = self._fresh(0)
        labels = torch.full(self.labels.shape, torch.nan)
        labels[of] = self.labels[of].float()
        answers = [label.expand(len(b.xy_px), -1) for label, b in zip(labels, self.bags, strict=True)]
        self._train(model, answers, "warm up", self.params.warm_steps, self.params.lr, 6)
        return model.encoder

    def _embedded(self, bags: Sequence[Bag], lattice: InstanceGrid, warm: nn.Module | None) -> list[Tensor]:
        """Features float [M, D] of each bag, by the warmed-up encoder or (None) by that which the run is given."""
        if warm is None:
            return self.run.embed(bags, lattice)
        return apply_to_bags(warm, bags, lattice, 1, self.run.compute, "embed")

    @cached_property
    def _frozen(self) -> list[Tensor]:
        return self._embedded(self.bags, self.lattice, None)

    def _features(self, of: list[int], warm: nn.Module | None) -> list[Tensor]:
        """Features float [M, D] of the instances of the bags `of`; without warm-up those of all bags are made once."""
        if warm is None:
            return [self._frozen[b] for b in of]
        return self._embedded([self.bags[b] for b in of], self.lattice, warm)

    def _route_a(self, of: list[int], warm: nn.Module | None, features: Callable[[], list[Tensor]]) -> list[Pick]:
        """Steps 2 and 3 at the size of instances; picks count bags within `of`."""
        rules = [[term[b] for b in of] for term in self.rules]
        if self.params.selectors == "networks":
            networks = (self._network(of, s, warm) for s in range(2))
            return self._picks([self.answers(n, of) for n in networks], self.labels[of], rules)
        return self._cmil(features(), self.labels[of], rules, 0)

    def _route_b(self, of: list[int], warm: nn.Module | None, features: Callable[[], list[Tensor]]) -> list[Pick]:
        """Step 4, the cascade: cMIL on N1 x N1 crops of patch bags, then inside the crops that it labelled."""
        n1 = self.params.cascade
        parents = [j for j, b in enumerate(of) if self.bags[b].patch] if n1 else []
        if not parents:
            return []
        n2 = self.params.lattice // n1
        crops = [intermediate(self.bags[of[j]], self.lattice, n2) for j in parents]
        coarse = self._embedded([c.bag for c in crops], coarse_lattice(self.lattice, n2), warm)
        labels = self.labels[of]
        picked = self._cmil(coarse, labels[parents], [[rule] * len(parents) for rule in RULES], 2)
        inside = sub_bags(crops, parents, picked, labels)
        if not inside.where:
            return []
        own = inside.of(features())
        return inside.back(self._cmil(own, inside.labels, [[rule] * len(own) for rule in RULES], 4))

    def _cmil(
        self, features: Sequence[Tensor], labels: Tensor, rules: Sequence[Sequence[Rule]], number: int
    ) -> list[Pick]:
        """Steps 2 and 3 with heads on features float [M, D] of each bag; `number` tells the seeds of pairs apart."""
        p = self.params
        schedule = Schedule(p.selector_steps, p.selector_lr, weight_decay=1e-2)
        scores = []
        for s, own in enumerate(rules):
            compute = replace(self.run.compute, seed=self.seed + number + s)
            scores.append(score_features(train_selector(features, labels, own, schedule, compute), features))
        return self._picks(scores, labels, rules)

    def _picks(self, scores: Sequence[Sequence[Tensor]], labels: Tensor, rules: Sequence[Sequence[Rule]]) -> list[Pick]:
        """Step 3: what each selector picks by its own rule and agrees with, from the logits of Max-Max and Max-Min."""
        first, second = (collect(z, labels, own) for z, own in zip(scores, rules, strict=True))
        return first + (vetoed(second, scores[0]) if self.params.veto else second)

    def _network(self, of: list[int], number: int, warm: nn.Module | None) -> InstanceClassifier:
        """Step 2 with a selector that has an encoder of its own, trained on whole bags."""
        whole = replace(self._whole_bags(of, [self.rules[number]]), seed=self.seed + number)
        model = self._fresh(number, warm)
        loss = partial(whole.loss, model, on=self.run.compute.device)
        train(model, whole.draw, loss, Schedule(self.params.selector_steps, self.params.lr), "select", self.run.compute)
        return model

    def _whole_bags(self, of: list[int], rules: Sequence[Sequence[Rule]]) -> WholeBags:
        bags, labels = [self.bags[b] for b in of], self.labels[of].float()
        own = [[term[b] for b in of] for term in rules]
        return WholeBags(bags, labels, own, self.lattice, self.seed, self.params.stain_jitter, self.params.max_zoom)

    def _fresh(self, number: int, warm: nn.Module | None = None) -> InstanceClassifier:
        """A new classifier, its encoder a copy of `warm` or (None) as the run gives it."""
        encoder = self.run.encoder if warm is None else partial(deepcopy, warm)
        model = seeded_init(lambda: build(self.run.classes, encoder(), self.lattice, self.params), self.seed + number)
        assert isinstance(model, InstanceClassifier)
        return model

    def _train(
        self,
        model: InstanceClassifier,
        answers: Sequence[Tensor],
        task: str,
        steps: int,
        lr: float,
        number: int,
        constraint: WholeBags | None = None,
    ) -> None:
        p = self.params
        crops, targets = instance_set(self.bags, self.lattice, answers, p.max_instances, self.seed)
        how = Retraining(p.stain_jitter, p.max_zoom, constraint, (p.constraint, 1.0))
        compute = replace(self.run.compute, seed=self.seed + number)
        train_classifier(model, crops, targets, Schedule(steps, lr), task, compute, p.batch, how)


def score(
    model: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    params: Params,
    on: torch.device,
    excluded: NDArray[np.bool_] | None = None,
) -> ScoreMap:
    """Mean score of the instances that cover each place; they begin every 1/`overlap` of an instance."""
    k = params.overlap
    step = lattice.instance_px // k
    at = lattice.overlapping(store, params.min_tissue, k)
    rows, cols = store.grid.cells(step)
    assert isinstance(model, InstanceClassifier)
    total = np.zeros((model.head.linear.out_features, rows + k, cols + k), np.float32)
    count = np.zeros((rows + k, cols + k), np.float32)
    for i in range(0, len(at), 4096):
        part = at[i : i + 4096]
        crops = read_crops(store, (part[:, ::-1] * step).astype(np.int32), lattice, store.grid.frame)
        p = apply_in_batches(model, crops, on, params.views).sigmoid().numpy()
        for dy, dx in np.ndindex(k, k):
            r, c = part[:, 0] + dy, part[:, 1] + dx
            total[:, r, c] += p.T
            count[r, c] += 1
    with np.errstate(invalid="ignore"):
        values = (total / np.where(count, count, np.float32(np.nan)))[:, :rows, :cols].astype(np.float32, order="C")
    return ScoreMap.of_probabilities(values, step)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The likeliest class where its evidence exceeds that for none, 0 where none does, 255 where they are about equal.

    The evidence for none is one minus the highest score, so the border lies at a score of 0.5.
    """
    margin = np.nan_to_num(scores.values, nan=0.0).max(0) - scores.none
    painted = strongest(scores)
    painted[np.abs(margin) < 2 * params.uncertain] = IGNORE
    return painted
