"""Step 3, class activation maps: CAM, Grad-CAM, Grad-CAM++ and LayerCAM from a layer's output and class scores.

With A_k(x, y) the output maps of a layer, z_c the score of a class before any sigmoid, and g = dz_c / dA_k(x, y):

    CAM         sum_k w_ck A_k(x, y)                      w: weights after the layer; Zhou et al., CVPR 2016, eq. 2
    Grad-CAM    sum_k a_ck A_k(x, y), a = mean_xy g       Selvaraju et al., ICCV 2017, eq. 1 and 2
    Grad-CAM++  sum_k a_ck A_k(x, y), a = sum_xy alpha max(g, 0),
                alpha = g^2 / (2 g^2 + g^3 sum_xy A_k)    Chattopadhay et al., WACV 2018, eq. 5, 7 and 19
    LayerCAM    sum_k max(g, 0) A_k(x, y)                 Jiang et al., IEEE TIP 2021, eq. 4 and 5

All maps come without the last step of their papers, max(., 0) and a normalisation: published methods resize, rectify
and normalise in different orders, and negative values of a map tell where a class is not. Grad-CAM++ is that of
exp(z_c); the factor exp(z_c) of the whole map is left out, since it overflows. Where alpha is 0 / 0, or its denominator
is not above 0, it is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MapRule = Callable[[Tensor, Tensor], Tensor]
"""Activations float [B, D, h, w] and gradients of one class, of the same shape -> map float [B, h, w]."""


def layer_and_scores(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One pass of `model` on x: the output A of `layer`, float [B, D, h, w], and the scores float [B, K].

    A is detached, so that a backward pass from the scores ends there. The layer must be called once.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().clone().requires_grad_())
        return outputs[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            scores = model(x.clone())  # an inference tensor cannot have gradients
    finally:
        handle.remove()
    (activations,) = outputs
    return activations, scores


def class_maps(rule: MapRule, activations: Tensor, scores: Tensor, sign: float = 1.0) -> Tensor:
    """Maps of all classes: activations float [B, D, h, w] and their scores float [B, K] -> float [B, K, h, w].

    One backward pass per class, for all images together. The score of an image must not depend on other images
    (evaluation mode). sign -1: the maps of -z_c, against the class.
    """
    maps = []
    for c in range(scores.shape[1]):
        with torch.inference_mode(False), torch.enable_grad():
            (g,) = torch.autograd.grad(scores[:, c].sum() * sign, activations, retain_graph=True)
        maps.append(rule(activations.detach(), g))
    return torch.stack(maps, 1)


def cam(activations: Tensor, weights: Tensor) -> Tensor:
    """CAM: activations float [B, D, h, w], weights float [K, D] -> float [B, K, h, w]."""
    return torch.einsum("kd,bdyx->bkyx", weights, activations)


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM of one class: float [B, D, h, w] both -> float [B, h, w]."""
    return torch.einsum("bd,bdyx->byx", gradients.mean((2, 3)), activations)


def grad_cam_pp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ of one class: float [B, D, h, w] both -> float [B, h, w]."""
    below = 2 * gradients**2 + gradients**3 * activations.sum((2, 3), keepdim=True)
    alpha = torch.where(below > 0, gradients**2 / torch.where(below > 0, below, 1), 0)
    return torch.einsum("bd,bdyx->byx", (alpha * gradients.clamp(min=0)).sum((2, 3)), activations)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM of one class: float [B, D, h, w] both -> float [B, h, w]."""
    return (gradients.clamp(min=0) * activations).sum(1)


MAP_RULES: dict[str, MapRule] = {"gradcam": grad_cam, "gradcam++": grad_cam_pp, "layercam": layer_cam}
"""The maps that need gradients, by name."""
