"""The boundary network: sizes, frozen backbone, taps of any encoder, the mirror image, and the mean taken out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.nn.encoders import MEAN, STD, Statistics, create_encoder, expect
from wsipipe.pseudolabel.methods.irnet.boundary import Backbone, BoundaryNet


def network(name: str = "resnet18_quarter", displacement: bool = True) -> BoundaryNet:
    torch.manual_seed(0)
    return BoundaryNet(create_encoder(name), displacement)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("side", "cells"), [(512, 128), (500, 125), (65, 17)])
@torch.inference_mode()
def test_both_maps_have_a_cell_for_every_four_pixels(side: int, cells: int):
    logits, displacement = network().eval()(pictures(1, 3, side, side))
    assert logits.shape == (1, cells, cells)
    assert displacement.shape == (1, 2, cells, cells)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "convnext_atto", "efficientnet_b0"]
)
@torch.inference_mode()
def test_any_encoder_may_be_the_backbone(name: str):
    model = network(name).eval()
    assert len(model.backbone.strides) == len(model.backbone.widths) <= 5
    assert model.backbone.levels[-1] == len(model.backbone.encoder.feature_info) - 1
    logits, displacement = model(pictures(2, 3, 100, 76))
    assert logits.shape == (2, 25, 19)
    assert displacement.shape == (2, 2, 25, 19)


def test_the_taps_of_a_resnet_are_its_five_maps():
    backbone = network().backbone
    assert backbone.strides == [2, 4, 8, 16, 32]
    assert [tuple(t.shape) for t in backbone(pictures(1, 3, 64, 96))] == [
        (1, w, 64 // s, 96 // s) for w, s in zip(backbone.widths, backbone.strides, strict=True)
    ]


def test_an_encoder_without_feature_maps_is_refused():
    with pytest.raises(ConfigError, match="Linear gives no feature maps; choose another --encoder"):
        Backbone(nn.Linear(3, 3))


def test_a_training_step_moves_the_branches_and_nothing_of_the_backbone():
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    logits, displacement = model(pictures(2, 3, 64, 64))
    (logits.square().mean() + displacement.square().mean()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for m in (model.boundary_branch, model.displacement_branch) for p in m.parameters())
    optimiser.step()
    for key, value in model.state_dict().items():
        frozen = key.startswith("backbone") or key.endswith("mean")
        assert torch.equal(value, before[key]) == frozen, key


def test_the_backbone_stays_in_evaluation_mode():
    model = network().train()
    assert model.boundary_branch.training
    assert not any(m.training for m in model.backbone.encoder.modules())


def test_the_stored_mean_is_taken_out_in_evaluation_only():
    model, x = network(), pictures(1, 3, 64, 64)
    with torch.no_grad():
        plain = model.train()(x)[1]
        model.displacement_branch.mean.copy_(torch.tensor([3.0, -2.0]))
        trained, evaluated = model.train()(x)[1], model.eval()(x)[1]
    torch.testing.assert_close(trained, plain)
    torch.testing.assert_close(evaluated, plain - torch.tensor([3.0, -2.0]).view(1, 2, 1, 1))


@torch.inference_mode()
def test_the_boundary_of_the_mirror_image_is_the_mirrored_boundary():
    model, x = network(displacement=False).eval(), pictures(2, 3, 64, 76)
    b = model.boundary(x)
    assert b.shape == (2, 16, 19)
    assert b.min() >= 0
    assert b.max() <= 1
    torch.testing.assert_close(model.boundary(x.flip(-1)).flip(-1), b)
    plain = torch.sigmoid(model(x)[0])
    assert not torch.allclose(plain, b, atol=1e-4), "the network itself tells left from right"


@torch.inference_mode()
def test_the_boundary_is_the_sigmoid_of_the_mean_logit_of_both_images():
    model, x = network(displacement=False).eval(), pictures(1, 3, 64, 64)
    logits, mirrored = model(x)[0], model(x.flip(-1))[0].flip(-1)
    torch.testing.assert_close(model.boundary(x), 1 / (1 + torch.exp(-(logits + mirrored) / 2)))
    assert model.boundary(pictures(1, 3, 30, 41)).shape == (1, 8, 11)


@torch.inference_mode()
def test_without_displacement_there_is_none():
    model = network(displacement=False).eval()
    assert model.displacement_branch is None
    assert model(pictures(1, 3, 32, 32))[1] is None


@torch.inference_mode()
def test_input_is_converted_for_an_encoder_that_asks_for_it():
    encoder, x = create_encoder("resnet18_quarter"), pictures(1, 3, 32, 32)
    plain = Backbone(encoder)(x)
    expect(encoder, Statistics(tuple(m - 5 * s for m, s in zip(MEAN, STD, strict=True)), STD))
    for a, b in zip(Backbone(encoder)(x - 5), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
