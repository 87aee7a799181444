"""The steps of CAMEL on a set of bags: selectors, instance set, retraining, cross-fitting and self-training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor, nn

from wsipipe.nn.encoders import width_of
from wsipipe.nn.train import Schedule, seeded_init
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext
from wsipipe.pseudolabel.methods.camel.cascade import coarse_grid, intermediate_crops, sub_bags
from wsipipe.pseudolabel.methods.camel.instances import confident_targets, instance_set, targets_from_picks
from wsipipe.pseudolabel.methods.camel.network import InstanceClassifier
from wsipipe.pseudolabel.methods.camel.params import Params
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, max_max, max_min, prevalence
from wsipipe.pseudolabel.methods.camel.selectors import (
    Pick,
    collect_picks,
    drop_vetoed,
    score_features,
    train_selector,
)
from wsipipe.pseudolabel.methods.camel.whole_bags import WholeBags
from wsipipe.pseudolabel.shared.classifier import ClassifierTraining, train_classifier
from wsipipe.pseudolabel.shared.instances import apply_to_bags

RULES = (max_max, max_min)
"""The rules of the two selectors on patch bags."""


class CamelSteps:
    """The steps of CAMEL on given bags; each step takes the indices of the bags that it may learn from.

    The seeds of trainings differ by a fixed number each, so that none repeats the draws of another.
    """

    def __init__(self, bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> None:
        self.bags, self.instance_grid, self.params, self.context = bags, instance_grid, params, context
        self.labels = torch.tensor([b.label for b in bags])
        self.seed = context.compute.seed
        rule_of_regions = partial(prevalence, ratio=params.prevalence)
        self.rules: list[list[SelectionRule]] = [[rule if b.patch else rule_of_regions for b in bags] for rule in RULES]

    def learn(self, of: list[int]) -> InstanceClassifier:
        """Steps 2 to 5 of the paper: a classifier retrained on the instance set of the selectors."""
        warm = self._warm_up(of)
        features = cache(lambda: self._features(of, warm))
        both = self._pick_instances(of, warm, features) + self._pick_by_cascade(of, warm, features)
        picks = [p._replace(bag=of[p.bag]) for p in both]
        model = self._new_classifier(0, warm)
        constraint = self._whole_bags(of, self.rules) if self.params.constraint else None
        targets = targets_from_picks(picks, self.bags)
        self._train(model, targets, "retrain", self.params.retrain_steps, self.params.lr, 0, constraint)
        return model

    def self_train(self, model: InstanceClassifier, teacher: Sequence[Tensor]) -> None:
        """Train `model` on confident predictions of `teacher`, logits float [M, K] per bag."""
        targets = confident_targets(teacher, self.labels, self.params.confident)
        self._train(model, targets, "self-train", self.params.self_train_steps, self.params.lr / 2, 1)

    def cross_fit(self, folds: Sequence[list[int]]) -> tuple[InstanceClassifier, list[Tensor], list[Tensor]]:
        """Fit a classifier for each fold on the other folds (a single fold: on itself).

        Returns the last classifier, and logits float [M, K] of every bag: by the classifier that did not learn from the
        bag, and as the mean over all classifiers.
        """
        held_out: dict[int, Tensor] = {}
        every: list[list[Tensor]] = []
        for fold in folds:
            model = self.learn(sorted(b for other in folds if other is not fold for b in other) or fold)
            every.append(self.predict(model))
            held_out |= {b: every[-1][b] for b in fold}
        mean = [torch.stack(z).mean(0) for z in zip(*every, strict=True)]
        return model, [held_out[b] for b in range(len(self.bags))], mean

    def predict(self, model: nn.Module, of: Sequence[int] | None = None) -> list[Tensor]:
        """Logits float [M, K] of the bags `of` (default: all)."""
        bags = self.bags if of is None else [self.bags[b] for b in of]
        return apply_to_bags(model, bags, self.instance_grid, self.params.views, self.context.compute, "predict")

    def _warm_up(self, of: list[int]) -> nn.Module | None:
        """An encoder trained on all instances of the bags `of` with the labels of their bags; None without warm-up."""
        if not self.params.warm_steps:
            return None
        model = self._new_classifier(0)
        labels = torch.full(self.labels.shape, torch.nan)
        labels[of] = self.labels[of].float()
        targets = [label.expand(len(b.xy_px), -1) for label, b in zip(labels, self.bags, strict=True)]
        self._train(model, targets, "warm up", self.params.warm_steps, self.params.lr, 6)
        return model.encoder

    def _embed(self, bags: Sequence[Bag], instance_grid: InstanceGrid, warm: nn.Module | None) -> list[Tensor]:
        """Features float [M, D] per bag, by the warmed-up encoder or (None) by the starting encoder."""
        if warm is None:
            return self.context.embed(bags, instance_grid)
        return apply_to_bags(warm, bags, instance_grid, 1, self.context.compute, "embed")

    @cached_property
    def _frozen_features(self) -> list[Tensor]:
        return self._embed(self.bags, self.instance_grid, None)

    def _features(self, of: list[int], warm: nn.Module | None) -> list[Tensor]:
        """Features float [M, D] of the bags `of`; without warm-up those of all bags are computed once."""
        if warm is None:
            return [self._frozen_features[b] for b in of]
        return self._embed([self.bags[b] for b in of], self.instance_grid, warm)

    def _pick_instances(
        self, of: list[int], warm: nn.Module | None, features: Callable[[], list[Tensor]]
    ) -> list[Pick]:
        """Steps 2 and 3 on instances; picks count bags within `of`."""
        rules = [[term[b] for b in of] for term in self.rules]
        if self.params.selectors == "networks":
            networks = (self._selector_network(of, s, warm) for s in range(2))
            return self._picks([self.predict(n, of) for n in networks], self.labels[of], rules)
        return self._cmil(features(), self.labels[of], rules, 0)

    def _pick_by_cascade(
        self, of: list[int], warm: nn.Module | None, features: Callable[[], list[Tensor]]
    ) -> list[Pick]:
        """Step 3, the cascade: cMIL on N1 x N1 crops of patch bags, then inside the crops that it labelled."""
        n1 = self.params.cascade
        parents = [j for j, b in enumerate(of) if self.bags[b].patch] if n1 else []
        if not parents:
            return []
        n2 = self.params.lattice // n1
        crops = [intermediate_crops(self.bags[of[j]], self.instance_grid, n2) for j in parents]
        coarse = self._embed([c.bag for c in crops], coarse_grid(self.instance_grid, n2), warm)
        labels = self.labels[of]
        picked = self._cmil(coarse, labels[parents], [[rule] * len(parents) for rule in RULES], 2)
        inside = sub_bags(crops, parents, picked, labels)
        if not inside.where:
            return []
        own = inside.of(features())
        return inside.back(self._cmil(own, inside.labels, [[rule] * len(own) for rule in RULES], 4))

    def _cmil(
        self, features: Sequence[Tensor], labels: Tensor, rules: Sequence[Sequence[SelectionRule]], number: int
    ) -> list[Pick]:
        """Steps 2 and 3 with heads on features float [M, D] per bag; `number` sets the seeds of a pair of selectors."""
        p = self.params
        schedule = Schedule(p.selector_steps, p.selector_lr, weight_decay=1e-2)
        logits = []
        for s, own in enumerate(rules):
            compute = replace(self.context.compute, seed=self.seed + number + s)
            logits.append(score_features(train_selector(features, labels, own, schedule, compute), features))
        return self._picks(logits, labels, rules)

    def _picks(
        self, logits: Sequence[Sequence[Tensor]], labels: Tensor, rules: Sequence[Sequence[SelectionRule]]
    ) -> list[Pick]:
        """Step 3: what each selector selects by its own rule and agrees with, from logits of Max-Max and Max-Min."""
        first, second = (collect_picks(z, labels, own) for z, own in zip(logits, rules, strict=True))
        return first + (drop_vetoed(second, logits[0]) if self.params.veto else second)

    def _selector_network(self, of: list[int], number: int, warm: nn.Module | None) -> InstanceClassifier:
        """Step 2 with a selector that is a whole network, trained on whole bags."""
        whole = replace(self._whole_bags(of, [self.rules[number]]), seed=self.seed + number)
        model, compute = self._new_classifier(number, warm), self.context.compute
        loss = partial(whole.loss, model, device=compute.device)
        train(model, whole.draw, loss, Schedule(self.params.selector_steps, self.params.lr), "select", compute)
        return model

    def _whole_bags(self, of: list[int], rules: Sequence[Sequence[SelectionRule]]) -> WholeBags:
        p, bags, labels = self.params, [self.bags[b] for b in of], self.labels[of].float()
        own = [[term[b] for b in of] for term in rules]
        return WholeBags(bags, labels, own, self.instance_grid, self.seed, p.stain_jitter, p.max_zoom)

    def _new_classifier(self, number: int, warm: nn.Module | None = None) -> InstanceClassifier:
        """A classifier whose encoder is a copy of `warm` or (None) the starting encoder."""
        make = self.context.encoder if warm is None else partial(deepcopy, warm)
        return seeded_init(
            lambda: new_classifier(make(), self.instance_grid, len(self.context.classes)), self.seed + number
        )

    def _train(
        self,
        model: InstanceClassifier,
        targets: Sequence[Tensor],
        task: str,
        steps: int,
        lr: float,
        number: int,
        constraint: WholeBags | None = None,
    ) -> None:
        """Train on the instances with targets float [M, K] of 1, 0 or nan per bag; `number` sets the seed."""
        p = self.params
        crops, set_targets = instance_set(self.bags, self.instance_grid, targets, p.max_instances, self.seed)
        training = ClassifierTraining(p.batch, p.stain_jitter, p.max_zoom, constraint, (p.constraint, 1.0))
        compute = replace(self.context.compute, seed=self.seed + number)
        train_classifier(model, crops, set_targets, Schedule(steps, lr), training, task, compute)


def new_classifier(encoder: nn.Module, instance_grid: InstanceGrid, classes: int) -> InstanceClassifier:
    """The untrained instance classifier on an encoder."""
    return InstanceClassifier(encoder, width_of(encoder, instance_grid.input_px), classes)
