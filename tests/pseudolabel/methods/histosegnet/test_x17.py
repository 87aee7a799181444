"""X1.7: the published counts, order and constants, and Grad-CAM weights that no image changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.methods.histosegnet.x17 import X17


def settled(classes: int = 3, width: int = 4) -> X17:
    """A small network whose batch norms have seen something, with gains of both signs."""
    torch.manual_seed(0)
    model = X17(classes, width)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    model.settle([2 * torch.randn(8, 3, 16, 16)])
    return model


def test_the_published_network_has_the_published_number_of_parameters():
    model = X17(51)
    trained = sum(p.numel() for p in model.parameters())
    running = sum(b.numel() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var")))
    assert trained == 1_750_899
    assert trained + running == 1_753_203


def test_the_cam_layer_is_a_quarter_of_the_image_and_rectified():
    a = settled(width=64)
    with torch.inference_mode():
        maps = a.features(torch.randn(1, 3, 224, 224))
    assert maps.shape == (1, 256, 56, 56)
    assert maps.min() == 0
    assert maps.max() > 0


def slow(model: X17, rgb: torch.Tensor) -> torch.Tensor:
    """Logits of uint8 [B, 3, H, W] from the description of the released network, layer by layer."""
    x = (rgb.float() - 193.09203) / 56.450138
    state = model.state_dict()
    convolutions = [n.removesuffix(".weight") for n, v in state.items() if v.ndim == 4]
    norms = [n.removesuffix(".running_mean") for n in state if n.endswith("running_mean")]
    for i, (conv, norm) in enumerate(zip(convolutions, norms, strict=True)):
        x = F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding="same").clamp(min=0)
        mean, var, gain, shift = (
            state[f"{norm}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-3) ** 0.5 * gain + shift
        if i in (1, 3, 6):
            x = F.max_pool2d(x, 2)
    return x.flatten(2).max(2).values @ state["linear.weight"].T + state["linear.bias"]


def test_the_logits_are_those_of_the_description_written_out():
    model = settled()
    rgb = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(normalise(rgb))
        torch.testing.assert_close(logits, slow(model, rgb), rtol=1e-4, atol=1e-4)
    assert logits.std(0).min() > 0.01, "the image matters"


def test_the_statistics_move_by_a_hundredth_in_training_and_dropout_is_between_the_layers_of_a_block():
    model = X17(1, 4)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    class_pools = [
        m.p if isinstance(m, nn.Dropout) else "pool" for m in model.layers if isinstance(m, (nn.Dropout, nn.MaxPool2d))
    ]
    assert class_pools == [0.3, "pool", 0.4, "pool", 0.4, 0.4]


def test_grad_cam_weights_of_every_image_are_the_closed_form():
    model = settled()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    a = model.features(x).detach().requires_grad_()
    z = model.scores(a)
    for c in range(3):
        (g,) = torch.autograd.grad(z[:, c].sum(), a, retain_graph=True)
        for image in g:
            torch.testing.assert_close(image.sum((1, 2)), model.cam_weights()[c].detach())
            assert (image != 0).sum() >= len(image), "at each map's largest or smallest value"


def test_settled_norms_have_the_statistics_of_what_the_layers_put_out():
    torch.manual_seed(0)
    model = X17(1, 4)
    x = 3 * torch.randn(8, 3, 16, 16)
    for _ in range(2):  # what was there before does not count
        model.settle([x])
    first = model.layers[1](model.layers[0](x * model.scale + model.offset))
    torch.testing.assert_close(model.layers[2].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(model.layers[2].running_var, first.var((0, 2, 3)))
    with torch.no_grad():
        last = model.norm(model.features(x))
    torch.testing.assert_close(last.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=0.05)
    torch.testing.assert_close(last.std((0, 2, 3)), torch.ones(16), rtol=0, atol=0.05)
    assert not any(m.training for m in model.modules())
    assert model.norm.momentum == 0.01


def test_settled_norms_average_over_batches():
    torch.manual_seed(0)
    model = X17(1, 4)
    a, b = torch.zeros(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    means = []
    for batches in ([a], [b], [a, b]):
        model.settle(batches)
        means.append(model.layers[2].running_mean.clone())
    torch.testing.assert_close(means[2], (means[0] + means[1]) / 2)
