"""Class activation maps: each rule against its formula written out, place by place and class by class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from wsipipe.pseudolabel.methods.histosegnet.activation import (
    MAP_RULES,
    cam,
    class_maps,
    grad_cam,
    layer_and_scores,
    layer_cam,
)


class Net(nn.Module):
    """Two convolutions with something curved behind the first, so that gradients differ from place to place."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 4, 3, stride=2)
        self.linear = nn.Linear(4, classes)

    def behind(self, a: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.second(torch.relu(a))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.first(x))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slopes(model: Net, a: Tensor) -> Tensor:
    """dz_c / dA of one image by central differences: a float64 [D, h, w] -> [K, D, h, w]."""
    out = torch.zeros(3, *a.shape, dtype=a.dtype)
    with torch.no_grad():
        for k, y, x in torch.cartesian_prod(*(torch.arange(n) for n in a.shape)).tolist():
            step = torch.zeros_like(a)
            step[k, y, x] = 1e-5
            out[:, k, y, x] = (model.behind((a + step)[None])[0] - model.behind((a - step)[None])[0]) / 2e-5
    return out


def slow_map(rule: str, a: Tensor, g: Tensor) -> Tensor:
    """One map [h, w] from activations and gradients [D, h, w], by the formulas in the module's docstring."""
    d, h, w = a.shape
    out = torch.zeros(h, w, dtype=a.dtype)
    for k in range(d):
        places = [(y, x) for y in range(h) for x in range(w)]
        total = sum(float(a[k, y, x]) for y, x in places)
        weight = 0.0
        for y, x in places:
            slope = float(g[k, y, x])
            if rule == "gradcam":
                weight += slope / (h * w)
            below = 2 * slope**2 + slope**3 * total
            if rule == "gradcam++" and below > 0:
                weight += slope**2 / below * max(slope, 0)
        for y, x in places:
            out[y, x] += (max(float(g[k, y, x]), 0) if rule == "layercam" else weight) * float(a[k, y, x])
    return out


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rule", sorted(MAP_RULES))
def test_each_rule_is_its_formula_with_gradients_by_differences(rule: str, sign: float):
    model = net()
    a, z = layer_and_scores(model, model.first, images())
    maps = class_maps(MAP_RULES[rule], a, z, sign)
    assert maps.shape == (2, 3, 5, 4)
    for b in range(2):
        for c, g in enumerate(slopes(model, a[b].detach())):
            expected = slow_map(rule, a[b].detach(), sign * g)
            assert expected.abs().max() > 1e-4
            torch.testing.assert_close(maps[b, c], expected, rtol=1e-4, atol=1e-7)


def test_cam_is_the_weighted_sum_of_the_maps():
    a, w = images(), torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for c in range(4):
        expected = sum(w[c, k] * a[:, k] for k in range(3))
        torch.testing.assert_close(cam(a, w)[:, c], expected)


@pytest.mark.parametrize("rule", ["gradcam", "gradcam++"])
def test_behind_an_average_and_a_linear_layer_the_gradient_rules_follow_cam(rule: str):
    """Grad-CAM is CAM over h w there; Grad-CAM++ too, where all weights have one sign and all maps one mean."""
    a = images().abs()
    a = (a / a.mean((2, 3), keepdim=True)).requires_grad_()
    w = torch.tensor([[0.4, 0.4, 0.4], [2.0, 2.0, 2.0]], dtype=torch.float64)
    maps = class_maps(MAP_RULES[rule], a, a.mean((2, 3)) @ w.T)
    factor = maps / cam(a.detach(), w)
    torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor))
    if rule == "gradcam":
        torch.testing.assert_close(factor, torch.full_like(factor, 1 / 20))


def test_a_pass_is_watched_without_changing_its_scores_and_the_gradient_ends_at_the_layer():
    model = net()
    a, z = layer_and_scores(model, model.first, images())
    torch.testing.assert_close(z, model(images()))
    torch.testing.assert_close(a, model.first(images()))
    z.sum().backward()
    assert a.grad is not None
    assert model.first.weight.grad is None
    assert not model.first._forward_hooks


def test_maps_can_be_had_where_gradients_are_off():
    model = net()
    expected = class_maps(grad_cam, *layer_and_scores(model, model.first, images()))
    with torch.inference_mode():
        torch.testing.assert_close(
            class_maps(grad_cam, *layer_and_scores(model, model.first, images().clone())), expected
        )


def test_one_backward_pass_a_class_serves_all_images():
    model = net()
    together = class_maps(layer_cam, *layer_and_scores(model, model.first, images(4)))
    alone = [class_maps(layer_cam, *layer_and_scores(model, model.first, image[None])) for image in images(4)]
    torch.testing.assert_close(together, torch.cat(alone))


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.sampled_from(sorted(MAP_RULES)))
def test_each_rule_is_its_formula_for_activations_and_gradients_of_any_sign_and_size(seed: int, size: float, rule: str):
    g = torch.Generator().manual_seed(seed)
    a, slopes = (size * torch.randn(1, 3, 2, 3, generator=g, dtype=torch.float64) for _ in range(2))
    assume((2 + slopes * a.sum((2, 3), keepdim=True)).abs().min() > 1e-6)  # Grad-CAM++ has a pole at 0
    torch.testing.assert_close(MAP_RULES[rule](a, slopes)[0], slow_map(rule, a[0], slopes[0]))


def test_where_no_score_depends_on_the_layer_the_maps_are_zero():
    a = torch.zeros(1, 2, 3, 3)
    for rule in MAP_RULES.values():
        assert (rule(a + 1, a) == 0).all()
        assert not math.isnan(float(rule(a, a).sum()))
