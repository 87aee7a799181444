"""The objectives: what has a gradient, how targets follow, and that each method learns."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support import pretrain_tissue
from torch import Tensor, nn

from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pretrain.losses import dino_loss, simclr_loss
from wsipipe.pretrain.objectives import Byol, Dino, objective
from wsipipe.pretrain.views import Views
from wsipipe.runtime.device import ComputeContext

METHODS = ("vicreg", "simclr", "byol", "dino")


def small() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def two_views(step: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(pretrain_tissue.patches(24)).float() / 255
    g = generator(step)
    views = Views(16)
    return normalise(views.draw(x, g)), normalise(views.draw(x, g))


@pytest.mark.parametrize("method", METHODS)
def test_the_encoder_that_was_given_gets_a_gradient_and_targets_get_none(method: str) -> None:
    encoder = small()
    model = objective(method, encoder, 8, 10).train()
    model(*two_views()).backward()
    assert float(encoder[0].weight.grad.abs().sum()) > 0
    targets = [p for k, p in model.named_parameters() if k.startswith("target")]
    assert all(p.grad is None and not p.requires_grad for p in targets)
    assert bool(targets) == (method in ("byol", "dino"))


@pytest.mark.parametrize("method", ["vicreg", "simclr", "byol"])
def test_training_lowers_the_loss_and_swapping_the_views_changes_nothing(method: str) -> None:
    model = objective(method, small(), 8, 60)
    held = two_views(999)
    before = float(model.eval()(*held).detach())
    assert float(model(*reversed(held)).detach()) == pytest.approx(before, rel=1e-4)
    cpu = ComputeContext(torch.device("cpu"))
    losses = fit(model, two_views, lambda v: model(*v), Schedule(60, 3e-3), method, cpu)
    assert sum(losses[-10:]) < sum(losses[:10]) * 0.98
    assert all(math.isfinite(x) for x in losses)


def test_dino_brings_the_views_of_a_patch_nearer_than_those_of_others() -> None:
    """Its loss need not fall: the teacher that it is measured against grows surer, or is centred anew."""

    def nearness(model: nn.Module) -> float:
        a, b = (nn.functional.normalize(model.eval().head(model.encoder(v)), dim=1) for v in two_views(999))
        own = (a @ b.T).diagonal().mean() - (a @ b.T).mean()
        return float(own.detach())

    model = objective("dino", small(), 8, 60)
    before = nearness(model)
    fit(model, two_views, lambda v: model(*v), Schedule(60, 3e-3), "dino", ComputeContext(torch.device("cpu")))
    assert nearness(model) > before + 0.05


@pytest.mark.parametrize(("kind", "momentum"), [(Byol, 0.99), (Dino, 0.996)])
def test_the_target_is_the_moving_average_of_the_network_with_a_momentum_that_rises_to_one(
    kind: Any, momentum: float
) -> None:
    torch.manual_seed(1)
    model = kind(small(), 8, 4)
    expected = [p.clone() for p in model.target.parameters()]
    for step in range(6):
        online = [*model.encoder.parameters(), *model.head.parameters()]
        with torch.no_grad():
            for p in online:
                p.add_(1.0 + step)
        model.follow()
        if step:
            m = 1 - (1 - momentum) * (math.cos(math.pi * min(1, step / 4)) + 1) / 2
            expected = [m * t + (1 - m) * q for t, q in zip(expected, online, strict=True)]
        for got, want in zip(model.target.parameters(), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_an_evaluation_moves_neither_target_nor_centre() -> None:
    for method in ("byol", "dino"):
        model = objective(method, small(), 8, 10)
        model.train()(*two_views(0))
        model.train()(*two_views(1))
        before = copy.deepcopy(model.state_dict())
        model.eval()(*two_views(2))
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key


def test_dino_centres_the_teacher_by_a_moving_average_of_its_logits() -> None:
    model = Dino(small(), 8, 10, prototypes=6).train()
    a, b = two_views()
    reference = copy.deepcopy(model)
    logits = reference.target(torch.cat([a, b]))
    loss = model(a, b)
    torch.testing.assert_close(model.centre, 0.1 * logits.mean(0))
    sa, sb = reference.head(reference.encoder(torch.cat([a, b]))).chunk(2)
    ta, tb = logits.chunk(2)
    none = torch.zeros(6)
    torch.testing.assert_close(loss, (dino_loss(sa, tb, none) + dino_loss(sb, ta, none)) / 2)


def test_simclr_is_nt_xent_of_the_projected_views() -> None:
    model = objective("simclr", small(), 8, 10).eval()
    a, b = two_views()
    torch.testing.assert_close(model(a, b), simclr_loss(model.head(model.encoder(a)), model.head(model.encoder(b))))
