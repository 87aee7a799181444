"""Suppression against slow loops, its invariants, its gradient, and its place in the networks of timm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.examples import examples
from torch import nn

from wsipipe.errors import ConfigError
from wsipipe.nn.encoders import create_encoder, tokens
from wsipipe.pseudolabel.methods.drs.suppression import FIXED, LEARNABLE, Suppression, Suppressor, suppress

SHAPE = (2, 3, 4, 5)
maps = arrays(np.float32, SHAPE, elements=st.floats(-8, 8, width=32)).map(torch.from_numpy)
deltas = st.floats(0, 1.5)


def fixed(delta: float) -> Suppressor:
    return Suppressor(Suppression(FIXED, delta))


def learnable(width: int = SHAPE[1], std: float = 0.01) -> Suppressor:
    torch.manual_seed(0)
    layer = Suppressor(Suppression(LEARNABLE), [width])
    if std != 0.01:
        nn.init.normal_(layer.controllers[str(width)].weight, std=std)
    return layer


def slow(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The three formulas, place by place: x [B, C, h, w], delta [B, C]."""
    out = np.zeros_like(x)
    for b, c in np.ndindex(*x.shape[:2]):
        highest = max(max(0.0, float(v)) for v in x[b, c].ravel())
        for i, j in np.ndindex(*x.shape[2:]):
            out[b, c, i, j] = min(max(0.0, float(x[b, c, i, j])), highest * float(delta[b, c]))
    return out


def slow_shares(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sigmoid(W GAP(X)), sum by sum."""
    out = np.zeros(x.shape[:2])
    for b, k in np.ndindex(*out.shape):
        z = sum(float(weight[k, c]) * float(np.maximum(x[b, c], 0).mean()) for c in range(x.shape[1]))
        out[b, k] = 1 / (1 + math.exp(-z))
    return out


@examples(40)
@given(maps, deltas)
def test_a_fixed_share_equals_the_formula_written_out(x: torch.Tensor, delta: float):
    expected = slow(x.numpy(), np.full(SHAPE[:2], delta))
    np.testing.assert_allclose(fixed(delta)(x), expected, rtol=1e-6, atol=1e-37)


@examples(40)
@given(maps)
def test_a_learned_fraction_equals_the_formula_written_out(x: torch.Tensor):
    layer = learnable(std=0.3)
    share = slow_shares(x.numpy(), layer.controllers["3"].weight.detach().numpy())
    with torch.no_grad():
        np.testing.assert_allclose(layer(x), slow(x.numpy(), share), rtol=1e-4, atol=1e-6)


@examples(40)
@given(maps, st.floats(1, 4))
def test_a_share_of_one_and_more_is_a_relu_bit_for_bit(x: torch.Tensor, delta: float):
    assert torch.equal(fixed(1.0)(x), F.relu(x))
    assert torch.equal(fixed(delta)(x), F.relu(x))


@examples(40)
@given(maps)
def test_a_fixed_share_of_zero_leaves_nothing(x: torch.Tensor):
    assert not fixed(0.0)(x).any()


@examples(40)
@given(maps, deltas)
def test_the_maximum_falls_to_its_share_and_smaller_values_stay(x: torch.Tensor, delta: float):
    y, relu = fixed(delta)(x), F.relu(x)
    highest = relu.amax((2, 3), keepdim=True)
    torch.testing.assert_close(y.amax((2, 3), keepdim=True), min(1.0, delta) * highest)
    below = relu < delta * highest
    assert torch.equal(y[below], relu[below])


@examples(40)
@given(maps, deltas)
def test_order_is_kept_between_nothing_and_the_relu(x: torch.Tensor, delta: float):
    y, relu = fixed(delta)(x), F.relu(x)
    assert (y >= 0).all()
    assert (y <= relu).all()
    flat, low = x.flatten(2), y.flatten(2)
    order = flat.argsort(2)
    assert (low.gather(2, order).diff(dim=2) >= 0).all()


@examples(40)
@given(arrays(np.int8, SHAPE), st.floats(0.01, 1.5), st.sampled_from([0.25, 2.0, 16.0]))
def test_a_fixed_share_scales_with_its_input(values: np.ndarray, delta: float, factor: float):
    x = torch.from_numpy(values).float()
    assert torch.equal(fixed(delta)(factor * x), factor * fixed(delta)(x)), "powers of two do not round"


def test_suppressing_twice_suppresses_more():
    x = torch.tensor([0.0, 1.0, 2.0, 4.0]).view(1, 1, 2, 2)
    once = fixed(0.55)(x)
    torch.testing.assert_close(once.ravel(), torch.tensor([0, 1, 2, 2.2]))
    torch.testing.assert_close(fixed(0.55)(once).ravel(), torch.tensor([0, 1, 1.21, 1.21]))


@examples(40)
@given(maps, deltas)
def test_channels_and_images_do_not_know_each_other_under_a_fixed_share(x: torch.Tensor, delta: float):
    alone = [[fixed(delta)(x[b : b + 1, c : c + 1]) for c in range(SHAPE[1])] for b in range(SHAPE[0])]
    assert torch.equal(torch.cat([torch.cat(row, 1) for row in alone]), fixed(delta)(x))


@examples(40)
@given(maps, st.permutations(range(SHAPE[2] * SHAPE[3])), st.booleans())
def test_moving_places_moves_the_result(x: torch.Tensor, order: list[int], learns: bool):
    layer = learnable(std=0.3) if learns else fixed(0.55)

    def moved(t: torch.Tensor) -> torch.Tensor:
        return t.flatten(2)[:, :, order].view(SHAPE)

    with torch.no_grad():
        torch.testing.assert_close(layer(moved(x)), moved(layer(x)))


@examples(40)
@given(arrays(np.float32, (1, 2, 3, 3), elements=st.floats(-4, 4, width=32), unique=True), st.floats(0.1, 0.95))
def test_capped_places_send_their_gradient_to_the_maximum(values: np.ndarray, delta: float):
    highest = values.astype(float).max((2, 3), keepdims=True)
    assume(not (values == delta * highest).any())  # at the cap itself any split of the gradient is one
    x = torch.from_numpy(values).double().requires_grad_()
    upstream = torch.arange(1.0, 19.0, dtype=torch.float64).view(1, 2, 3, 3)
    fixed(delta)(x).backward(upstream)
    for c in range(2):
        v, g, own = values[0, c].ravel().astype(float), upstream[0, c].ravel(), x.grad[0, c].ravel()
        top = int(v.argmax())
        capped = v > delta * max(v[top], 0)
        if v[top] <= 0:
            assert not own.any()
            continue
        for i in range(9):
            wanted = (
                delta * float(g[torch.from_numpy(capped)].sum()) if i == top else 0 if capped[i] or v[i] <= 0 else g[i]
            )
            assert float(own[i]) == pytest.approx(float(wanted))


def test_capped_places_teach_the_controller():
    layer, x = learnable(), torch.rand(SHAPE)
    layer(x).sum().backward()
    assert layer.controllers["3"].weight.grad.abs().sum() > 0


def test_learned_fractions_begin_near_a_half_and_are_a_half_of_nothing():
    layer = learnable(64)
    assert float(layer.controllers["64"].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert layer.controllers["64"].bias is None
    zero = torch.zeros(2, 64, 4, 4)
    with torch.no_grad():
        assert torch.equal(layer.fractions(zero), torch.full((2, 64), 0.5))
        assert not layer(zero).any()
        assert (layer.fractions(torch.rand(2, 64, 4, 4)) - 0.5).abs().max() < 0.05


@examples(40)
@given(maps)
def test_learned_fractions_always_lower_the_maximum(x: torch.Tensor):
    layer = learnable(std=0.3)
    with torch.no_grad():
        share, highest = layer.fractions(F.relu(x)), F.relu(x).amax((2, 3))
        assert ((share > 0) & (share < 1)).all()
        falls = highest > 1e-30
        assert (layer(x).amax((2, 3))[falls] < highest[falls]).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mode": "learned"}, "suppression 'learned' is not one of fixed, learnable"),
        ({"delta": -0.1}, "delta -0.1 is negative"),
        ({"delta": float("nan")}, "delta nan is negative"),
        ({"least_stride": 0}, "a least stride of 0 is below 1"),
    ],
)
def test_a_suppression_that_cannot_be_is_refused(how: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        Suppression(**how)


def without_values(name: str) -> nn.Module:
    """A network of timm of which only shapes are known."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in network.modules())


@pytest.mark.parametrize(
    ("name", "over_maps", "over_one_place"),
    [("regnety_002", 40, 13), ("seresnet18", 17, 8)],
)
def test_every_relu_over_a_map_becomes_a_suppressor_and_those_of_squeeze_and_excitation_stay(
    name: str, over_maps: int, over_one_place: int
):
    network = without_values(name)
    assert count(network, nn.ReLU) == over_maps + over_one_place
    assert suppress(network, Suppression()) is network
    assert (count(network, Suppressor), count(network, nn.ReLU)) == (over_maps, over_one_place)


def test_looking_at_a_network_teaches_it_nothing():
    network = create_encoder("resnet18_quarter").train()
    network.layer1.eval()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    suppress(network, Suppression())
    assert not network.layer1[0].bn1.training
    assert network.layer2[0].bn1.training
    assert count(network, Suppressor) == 19
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in state.items())


@torch.inference_mode()
def test_a_share_of_one_leaves_a_network_as_it_was():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    network = create_encoder("resnet18_quarter").eval()
    grids = [tokens(network, x, level) for level in (1, 2, -1)]
    suppress(network, Suppression(FIXED, 1.0))
    assert all(torch.equal(tokens(network, x, level), g) for level, g in zip((1, 2, -1), grids, strict=True))
    suppress(other := create_encoder("resnet18_quarter").eval(), Suppression(FIXED, 0.3))
    other.load_state_dict(network.state_dict())
    assert not torch.equal(tokens(other, x, 1), grids[0])


def test_suppression_may_begin_at_a_stride():
    strides = (2, 4, 8, 32)
    networks = [suppress(without_values("resnet18_quarter"), Suppression(least_stride=s)) for s in strides]
    assert [count(n, Suppressor) for n in networks] == [19, 16, 12, 4]


def test_a_relu_used_for_several_widths_gets_a_controller_for_each():
    with torch.device("meta"):
        network = suppress(without_values("res2net50_26w_4s"), Suppression(LEARNABLE))
    widths = [[int(c) for c in m.controllers] for m in network.modules() if isinstance(m, Suppressor)]
    assert widths[:2] == [[64], [26, 104, 256]]
    assert network(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 2048)


def test_only_what_the_forward_pass_meets_gets_a_controller():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = create_encoder("resnet18_quarter")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return tokens(self.encoder, x, 2)

    network = suppress(Cut(), Suppression(LEARNABLE))
    assert (count(network, Suppressor), count(network, nn.ReLU)) == (11, 8)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_050", "mixer_s32_224"])
def test_a_network_without_relus_is_refused(name: str):
    network = without_values(name)
    with pytest.raises(ConfigError, match="has no ReLU over maps of a stride of at least 1"):
        suppress(network, Suppression())
