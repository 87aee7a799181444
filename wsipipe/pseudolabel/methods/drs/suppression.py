"""Step 1, discriminative region suppression: ReLUs that also cap every channel at a fraction of its own maximum.

Kim, Han, Kim, "Discriminative Region Suppression for Weakly-Supervised Semantic Segmentation", AAAI 2021. With X >= 0 a
feature map after its ReLU, k a channel and i, j a position,

    m_k = max_ij X_kij,      Y_kij = min(X_kij, m_k d_k),

so that discriminative regions exceed supporting ones by less. The fraction d_k is a constant (`fixed`), or
d = sigmoid(W GAP(X)) with a square W without bias (`learnable`). The maximum is part of the graph: a capped position
sends its gradient, times d_k, to the position of the maximum, and to W.

Deviations: the mode has a name (the released code takes a fraction of 0 for `learnable`). Only ReLUs over maps are
replaced: for a single position, as in squeeze-and-excitation, capping is nothing but a factor. A ReLU that a network
uses several times gets one W per width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.errors import ConfigError, check
from wsipipe.pseudolabel.shared.evaluation_mode import evaluation_mode

FIXED, LEARNABLE = "fixed", "learnable"
MODES = (FIXED, LEARNABLE)

PROBE_PX = 128
"""Side of the image that finds the ReLUs over maps and their strides, up to 64."""


@dataclass(frozen=True)
class Suppression:
    """mode: `fixed` or `learnable`. delta: fraction of the maximum that channels are capped at in mode `fixed`.

    least_stride: least stride, in input px per cell, of a map whose ReLU is replaced; 1: all, as published.
    """

    mode: str = FIXED
    delta: float = 0.55
    least_stride: int = 1

    def __post_init__(self) -> None:
        check(self.mode in MODES, f"suppression {self.mode!r} is not one of {', '.join(MODES)}")
        check(self.delta >= 0, f"suppression: delta {self.delta} is negative or no number; 0.4 to 1 is usual")
        check(self.least_stride >= 1, f"suppression: a least stride of {self.least_stride} is below 1")


class Suppressor(nn.Module):
    """Replaces a ReLU: float [B, C, h, w] -> the same shape, in 0 .. fraction x maximum of the channel."""

    def __init__(self, suppression: Suppression, widths: Iterable[int] = ()) -> None:
        """widths: the values of C to expect in mode `learnable`. W ~ N(0, 0.01^2), so that d is about 0.5."""
        super().__init__()
        self.delta = suppression.delta
        self.learnable = suppression.mode == LEARNABLE
        wanted = sorted(set(widths)) if self.learnable else []
        self.controllers = nn.ModuleDict({str(c): nn.Linear(c, c, bias=False) for c in wanted})
        for weight in self.controllers.parameters():
            nn.init.normal_(weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Y = min(X, m d), with X the rectified input."""
        x = F.relu(x)
        highest = x.amax((2, 3), keepdim=True)
        fraction = self.fractions(x)[:, :, None, None] if self.learnable else self.delta
        return torch.minimum(x, highest * fraction)

    def fractions(self, x: Tensor) -> Tensor:
        """Fractions d = sigmoid(W GAP(X)) of mode `learnable`: rectified maps float [B, C, h, w] -> [B, C] in 0..1."""
        pooled: Tensor = self.controllers[str(x.shape[1])](x.mean((2, 3)))
        return pooled.sigmoid().to(x.dtype)


def suppress(network: nn.Module, suppression: Suppression) -> nn.Module:
    """Replace every ReLU over a map in a network, images float [B, 3, H, W] -> any, by a `Suppressor`; returns it.

    ConfigError if there is no such ReLU, as in networks with other activations.
    """
    new = {
        relu: Suppressor(suppression, [s[1] for s in shapes])
        for relu, shapes in _shapes_of_relus(network).items()
        if max(s[2] * s[3] for s in shapes) > 1 and PROBE_PX / max(s[2] for s in shapes) >= suppression.least_stride
    }
    if not new:
        raise ConfigError(
            f"{type(network).__name__} has no ReLU over maps of a stride of at least {suppression.least_stride}, so "
            "nothing can be suppressed; choose another --encoder (a ResNet, RegNet, DenseNet or VGG)"
        )
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    return network


def _shapes_of_relus(network: nn.Module) -> dict[nn.Module, list[torch.Size]]:
    """The output shapes [B, C, h, w] of every ReLU of `network` for an image of `PROBE_PX`, in the order of calls."""
    shapes: dict[nn.Module, list[torch.Size]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        if result.ndim == 4:
            shapes.setdefault(module, []).append(result.shape)

    relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    if not relus:
        return {}  # such a network may take no image of this size
    hooks = [m.register_forward_hook(note) for m in relus]
    try:
        device = next(network.parameters()).device
        with evaluation_mode(network), torch.no_grad():
            network(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
