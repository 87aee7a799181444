"""The instance classifier: unknown targets are not scored, views are averaged, classes are drawn in equal numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsipipe.nn.augment import dihedral
from wsipipe.nn.encoders import create_encoder, normalise
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.methods.camel.network import InstanceClassifier
from wsipipe.pseudolabel.shared import classifier
from wsipipe.pseudolabel.shared.classifier import (
    ClassifierTraining,
    apply_in_batches,
    masked_bce,
    train_classifier,
)
from wsipipe.runtime.device import ComputeContext

CPU = torch.device("cpu")
NAN = float("nan")


class Corner(nn.Module):
    """The red value of the top left pixel: changes under the symmetries of the square."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :1]


def random_crops(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)


def test_masked_cross_entropy_is_the_mean_over_known_entries():
    logits = [[2.0, -1.0], [0.5, 3.0], [-2.0, 0.0]]
    targets = [[1.0, NAN], [0.0, 1.0], [NAN, NAN]]
    total, count = 0.0, 0
    for row, wanted in zip(logits, targets, strict=True):
        for z, y in zip(row, wanted, strict=True):
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-z))
                total -= math.log(p) if y else math.log(1 - p)
                count += 1
    assert float(masked_bce(torch.tensor(logits), torch.tensor(targets))) == pytest.approx(total / count)


def test_unknown_targets_carry_no_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).backward()
    assert (logits.grad != 0).tolist() == [[True, False], [False, True]]


def test_applying_in_batches_equals_applying_at_once(monkeypatch: pytest.MonkeyPatch):
    crops = random_crops(300)
    got = apply_in_batches(Corner(), crops, CPU)
    torch.testing.assert_close(got, Corner()(normalise(torch.from_numpy(crops))), atol=1e-6, rtol=0)


@pytest.mark.parametrize("views", [1, 3, 8])
def test_views_are_the_mean_over_the_first_symmetries(views: int):
    crops = random_crops(5)
    x = normalise(torch.from_numpy(crops))
    wanted = torch.stack([Corner()(dihedral(x, torch.full((5,), v))) for v in range(views)]).mean(0)
    torch.testing.assert_close(apply_in_batches(Corner(), crops, CPU, views), wanted, atol=1e-6, rtol=0)


def test_eight_views_do_not_know_which_way_up_a_crop_is():
    crops = random_crops(4)
    turned = np.rot90(crops, axes=(2, 3)).copy()
    a, b = (apply_in_batches(Corner(), c, CPU, 8) for c in (crops, turned))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_no_crop_gives_no_answer():
    assert len(apply_in_batches(Corner(), random_crops(0), CPU)) == 0


def toy(targets: list[list[float]]) -> tuple[np.ndarray, Tensor]:
    """Crops as grey as their index, so that a batch tells which were drawn."""
    crops = np.empty((len(targets), 3, 8, 8), np.uint8)
    crops[:] = (np.arange(len(targets)) * 8 + 8)[:, None, None, None]
    return crops, torch.tensor(targets)


class Recorder(nn.Module):
    """One logit a class from nothing but weights; remembers what it saw."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().mean((1, 2, 3)))
        return self.bias.expand(len(x), -1)


def test_positives_and_negatives_of_each_class_are_drawn_in_equal_numbers(monkeypatch: pytest.MonkeyPatch):
    rare = [[1.0, NAN]] + [[0.0, 0.0]] * 25 + [[NAN, 1.0]]
    crops, targets = toy(rare)
    drawn: list[Tensor] = []
    monkeypatch.setattr(classifier, "masked_bce", lambda z, y: (drawn.append(y), masked_bce(z, y))[1])
    compute = ComputeContext(CPU)
    train_classifier(Recorder(2), crops, targets, Schedule(20, 0.0), ClassifierTraining(32), "toy", compute)
    y = torch.cat(drawn)
    assert len(y) == 20 * 32
    assert int((y[:, 0] == 1).sum()) == 20 * 8
    assert int((y[:, 1] == 1).sum()) == 20 * 8


def test_training_tells_two_textures_apart_and_depends_on_the_seed_alone():
    rng = np.random.default_rng(0)
    flat = np.full((20, 3, 32, 32), 128, np.uint8)
    rough = rng.integers(60, 196, (20, 3, 32, 32)).astype(np.uint8)
    crops, targets = np.concatenate([flat, rough]), torch.tensor([[0.0]] * 20 + [[1.0]] * 20)

    def trained(seed: int) -> tuple[InstanceClassifier, list[float]]:
        torch.manual_seed(0)
        model = InstanceClassifier(create_encoder("resnet18_quarter"), 128, 1)
        losses = train_classifier(
            model, crops, targets, Schedule(25, 2e-3), ClassifierTraining(16), "toy", ComputeContext(CPU, seed)
        )
        return model, losses

    model, losses = trained(1)
    p = apply_in_batches(model, crops, CPU).sigmoid()
    assert float(((p > 0.5) == (targets > 0.5)).float().mean()) > 0.95
    assert losses == trained(1)[1]
    assert losses != trained(2)[1]
