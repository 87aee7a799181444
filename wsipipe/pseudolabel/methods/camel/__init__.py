"""CAMEL: multiple-instance learning with two selectors, then retraining (Xu et al., ICCV 2019), and CAMEL2's rule.

1. A patch is split into an N x N lattice of instances.
2. Two selectors, Max-Max and Max-Min, each train on the instance that its own rule selects (see `selectors`, `rules`).
3. The instances that they select and agree with are picked; the cascade adds more of them (see `cascade`).
4. The picks are the instance set (see `instances`).
5. A new classifier, retrained on it, scores every instance of every slide.
Slide and region bags follow CAMEL2's prevalence rule (Xu et al., Advanced Intelligent Systems 2024).

Deviations, with their reason. On by default:
* `selectors: heads`: the selectors are linear heads on features of a frozen encoder, so that they see all instances of
  a bag at every step at no cost; `networks` trains two whole networks as published, with fixed normalisation
  statistics.
* `warm_steps`: before any selection the encoder learns bag labels, and every instance has the label of its bag. That is
  wrong for many instances of positive bags but for none of negative bags, so the highest instances are right. On
  features that know nothing of the tissue, selectors select any instance. 0 as published.
* `veto`: anything that varies satisfies Max-Min, so its pick of a positive bag may be any instance; the pick is dropped
  if Max-Max calls it negative.
* `context`: the classifier sees beyond its instance, since a small square alone shows little; 1.0 as published.
* Classes get independent sigmoids; rules are applied, and picks are collected, class by class.
* `calibrate`: a threshold of 0.5, as published, means little for scores learned from a few instances of positive bags
  and many of negative bags. Two networks, each fitted on half of the patients (or slides), score the other half; the
  threshold is where these scores and the bag labels alone promise the best Dice (see `calibrate`).
* Self-training: the classifier trains further on confident predictions of these two networks together, where they agree
  with the bag labels. Its threshold is then set so that as many instances of positive bags exceed it as exceed that of
  the two networks on held-out bags.
* `overlap`: scores are averaged over overlapping instances; 1 as published.
Off by default, on as published: the image-level constraint (`constraint: 1.0`) and the cascade (`cascade: N1`). Crops
of the cascade are seen without context, and its second pair of selectors sees as much of an instance as the first. The
optimiser, schedules and encoder are those of the package (published: Adam at 1e-4, ResNet-50).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsipipe.labels import IGNORE, Classes
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap, argmax_mask
from wsipipe.pseudolabel.methods.camel.calibrate import matching_shifts, threshold_shifts, two_folds
from wsipipe.pseudolabel.methods.camel.network import InstanceClassifier
from wsipipe.pseudolabel.methods.camel.params import Params
from wsipipe.pseudolabel.methods.camel.steps import CamelSteps, new_classifier
from wsipipe.pseudolabel.shared.classifier import apply_in_batches

__all__ = ["REFINEMENT", "Params", "build", "fit", "instance_grid", "mask", "score"]

REFINEMENT = "none"

INSTANCES_PER_READ = 4096
"""Instances of a slide whose crops are in memory at once."""


def instance_grid(patch_px: int, params: Params) -> InstanceGrid:
    """Instances of patch_px / N px, seen with their context."""
    m = patch_px // params.lattice
    params.check("lattice", m * params.lattice == patch_px, f"does not divide a patch of {patch_px} px")
    grid = InstanceGrid(m, round(m * params.context), params.shrink)
    steps = m % (params.overlap * params.shrink) == 0
    params.check(
        "overlap", steps, f"does not divide instances of {m} px into steps of {params.shrink} px (camel.shrink)"
    )
    return grid


def build(classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Params) -> nn.Module:
    """The instance classifier."""
    return new_classifier(encoder, instance_grid, len(classes))


def fit(bags: Sequence[Bag], instance_grid: InstanceGrid, params: Params, context: FitContext) -> nn.Module:
    """Selectors, instance set, retraining; then the thresholds of the classes and one round of self-training."""
    steps = CamelSteps(bags, instance_grid, params, context)
    everything = list(range(len(bags)))
    if not (params.calibrate or context.self_train):
        return steps.learn(everything)
    folds = two_folds(bags, steps.labels, context.compute.seed) if params.calibrate else []
    model, held_out, mean = steps.cross_fit(folds or [everything])
    shift = torch.zeros(len(context.classes))
    if params.calibrate:
        shift = threshold_shifts(held_out, steps.labels, params.prevalence)
    if context.self_train:
        steps.self_train(model, [z + shift for z in mean])
        if params.calibrate:
            shift = matching_shifts(steps.predict(model), [z + shift for z in held_out], steps.labels)
    elif len(folds) > 1:
        model = steps.learn(everything)
    model.shift.copy_(shift)
    return model


def score(model: nn.Module, context: ScoreContext, params: Params) -> ScoreMap:
    """The mean score of the instances that cover each cell; instances start every 1/`overlap` of their side."""
    assert isinstance(model, InstanceClassifier)
    store, grid, k = context.store, context.instance_grid, params.overlap
    step = grid.instance_px // k
    at = grid.overlapping(store, params.min_tissue, k)
    rows, cols = store.grid.cells(step)
    total = np.zeros((model.head.linear.out_features, rows + k, cols + k), np.float32)
    count = np.zeros((rows + k, cols + k), np.float32)
    for i in range(0, len(at), INSTANCES_PER_READ):
        part = at[i : i + INSTANCES_PER_READ]
        crops = read_crops(store, (part[:, ::-1] * step).astype(np.int32), grid, store.grid.frame)
        p = apply_in_batches(model, crops, context.device, params.views).sigmoid().numpy()
        for dy, dx in np.ndindex(k, k):
            r, c = part[:, 0] + dy, part[:, 1] + dx
            total[:, r, c] += p.T
            count[r, c] += 1
    with np.errstate(invalid="ignore"):
        values = (total / np.where(count, count, np.float32(np.nan)))[:, :rows, :cols].astype(np.float32, order="C")
    return ScoreMap.of_probabilities(values, step)


def mask(scores: ScoreMap, params: Params) -> NDArray[np.uint8]:
    """The likeliest class where it exceeds the background, else 0; 255 where they are almost equal.

    The background is one minus the highest score, so the threshold is a score of 0.5.
    """
    margin = np.nan_to_num(scores.values, nan=0.0).max(0) - scores.background
    found = argmax_mask(scores)
    found[np.abs(margin) < 2 * params.uncertain] = IGNORE
    return found
