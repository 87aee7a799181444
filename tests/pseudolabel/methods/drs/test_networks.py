"""DRS: its networks, which of their ReLUs suppress, and the weights that they start from."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from wsipipe.errors import ConfigError
from wsipipe.labels import Classes
from wsipipe.nn.encoders import create_encoder
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods import drs
from wsipipe.pseudolabel.methods.drs import Params
from wsipipe.pseudolabel.methods.drs.localisation import Drs
from wsipipe.pseudolabel.methods.drs.network import copy_weights, feature_level
from wsipipe.pseudolabel.methods.drs.suppression import Suppressor
from wsipipe.runtime.device import ComputeContext

GRID = InstanceGrid(8, 64, 2)
PUBLISHED: dict[str, Any] = {"absence": False, "suppress_from": 1, "refiner_from": "encoder"}
"""As published, in what is about networks."""


def test_the_feature_map_is_the_one_of_the_nearest_stride():
    def level(strides: tuple[int, ...], wanted: int = 8) -> int:
        encoder = SimpleNamespace(feature_info=[{"reduction": s} for s in strides], forward_intermediates=None)
        return feature_level(encoder, wanted)

    assert level((2, 4, 8, 16, 32)) == 2
    assert level((1, 2, 4, 8, 8, 16)) == 4, "of equals the deepest"
    assert level((2, 4, 16)) == 2
    assert level((4, 32)) == 0
    assert level((2, 4, 8, 16, 32), 16) == 3


@pytest.mark.parametrize("info", [None, [{"reduction": 8}]])
def test_an_encoder_without_feature_maps_is_refused(info: object):
    encoder = nn.Linear(3, 3)
    encoder.feature_info = info
    with pytest.raises(ConfigError, match="Linear gives no feature maps; choose another --encoder"):
        feature_level(encoder, 8)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in network.modules())


def test_the_classifier_suppresses_and_the_refinement_network_does_not():
    model = drs.build(Classes(("a", "b")), create_encoder("resnet18_quarter"), GRID, Params())
    assert isinstance(model, Drs)
    assert count(model.classifier, Suppressor) == 7, "of the stage of stride 8, and of the head"
    assert {m.delta for m in model.modules() if isinstance(m, Suppressor)} == {0.55}
    assert model.refiner is not None
    assert count(model.refiner, Suppressor) == 0
    x = torch.zeros(2, 3, 64, 64)
    with torch.inference_mode():
        assert model(x).shape == (2, 2, 8, 8)
        assert model.refiner(x).shape == (2, 3, 8, 8), "the background is a channel of its own"
    own, other = (next(n.parameters()) for n in (model.classifier, model.refiner))
    assert torch.equal(own, other), "both start from the encoder"
    assert own is not other
    assert float(model.refiner[1][-1].weight.detach().std()) == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("suppression", ["fixed", "learnable"])
def test_the_refinement_network_starts_from_the_classifier_except_for_the_last_layer(suppression: str):
    params = Params(suppression=suppression, absence=False)
    model = drs.build(Classes(("a", "b")), create_encoder("resnet18_quarter"), GRID, params)
    assert isinstance(model, Drs)
    for p in model.classifier.parameters():
        nn.init.constant_(p, 0.5)
    copy_weights(model.refiner, model.classifier)
    taken = {name: bool((p == 0.5).all()) for name, p in model.refiner.named_parameters()}
    assert [name for name, whole in taken.items() if not whole] == ["1.6.weight", "1.6.bias"]


@pytest.mark.parametrize(
    ("values", "suppressors", "controllers", "channels"),
    [
        ({}, 9, 0, 4),
        ({"suppress_from": 1}, 16, 0, 4),
        (PUBLISHED, 16, 0, 3),
        (PUBLISHED | {"suppression": "learnable"}, 16, 2_596_864, 3),
        (PUBLISHED | {"refiner": False}, 16, 0, 0),
    ],
)
def test_the_published_network_has_16_suppressors(
    values: dict[str, Any], suppressors: int, controllers: int, channels: int
):
    with torch.device("meta"):
        model = drs.build(Classes(("a", "b", "c")), nn.Identity(), GRID, Params(network="vgg16", **values))
    assert isinstance(model, Drs)
    found = [m for m in model.classifier.modules() if isinstance(m, Suppressor)]
    assert len(found) == suppressors
    assert sum(p.numel() for m in found for p in m.parameters()) == controllers
    assert model(torch.zeros(1, 3, 320, 320, device="meta")).shape == (1, 3, 40, 40)
    assert (model.refiner is None) == (channels == 0)
    if model.refiner is not None:
        assert model.refiner(torch.zeros(1, 3, 320, 320, device="meta")).shape == (1, channels, 40, 40)


def test_the_published_network_starts_from_the_convolutions_of_its_encoder():
    import timm

    with torch.device("meta"):
        encoder = timm.create_model("vgg16", num_classes=0)
        encoder.pre_logits = nn.Identity()
    encoder.to_empty(device="cpu")
    for p in encoder.parameters():
        nn.init.constant_(p, 0.125)
    model = drs.build(Classes(("a",)), encoder, GRID, Params(network="vgg16"))
    assert isinstance(model, Drs)
    for network in (model.classifier, model.refiner):
        assert all((m.weight == 0.125).all() for m in network[0] if isinstance(m, nn.Conv2d))
    assert float(model.refiner[1][0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("encoder", "said"), [("convnext_atto", 1), ("resnet18_quarter", 0)])
def test_an_encoder_that_cannot_suppress_gives_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, encoder: str, said: int
):
    class Enough(Exception):
        pass

    def stop(*given: object) -> None:
        raise Enough

    monkeypatch.setattr(drs, "draw_windows", stop)
    run = SimpleNamespace(
        classes=Classes(("a",)), encoder=lambda: create_encoder(encoder), compute=ComputeContext(torch.device("cpu"), 0)
    )
    with caplog.at_level(logging.WARNING), pytest.raises(Enough):
        drs.fit([], GRID, Params(), run)
    assert sum("only the head suppresses" in m for m in caplog.messages) == said


def test_a_published_network_without_weights_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drs, "build", lambda *_: nn.Identity())
    run = SimpleNamespace(classes=Classes(("a",)), encoder=nn.Identity)
    with caplog.at_level(logging.WARNING):
        drs._starting_model(GRID, Params(), run)
        assert not caplog.messages
        drs._starting_model(GRID, Params(network="vgg16"), run)
    assert caplog.messages == [
        "drs.network: vgg16 starts with random weights, since the encoder is Identity; use --encoder vgg16"
    ]
