"""Discriminative region suppression: ReLUs that also cap every channel at a share of its own maximum.

Kim, Han, Kim, "Discriminative Region Suppression for Weakly-Supervised Semantic Segmentation", AAAI 2021. With X >= 0 a
feature map after its ReLU, k a channel and i, j a place,

    m_k = max_ij X_kij,      Y_kij = min(X_kij, m_k d_k),

so that what tells most of a class exceeds what merely supports it by less. The share d_k is a constant (`fixed`), or
d = sigmoid(W GAP(X)) with a square W without bias (`learnable`). The maximum is part of the graph: what is capped sends
its gradient, times d_k, to where the maximum lies, and to W.

Deviations: the mode is named, where the released code takes a share of 0 for `learnable`. Only ReLUs over a map are
replaced: of a single place, as inside squeeze-and-excitation, capping leaves nothing but a factor. A ReLU that a
network uses at several places gets one W for each width that it meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.errors import ConfigError, check

FIXED, LEARNABLE = "fixed", "learnable"
MODES = (FIXED, LEARNABLE)

PROBE_PX = 128
"""Side of the image that shows which ReLUs of a network see maps, and of what stride: all but strides above 64."""


@dataclass(frozen=True)
class Suppression:
    """mode: `fixed` or `learnable`. delta: the share that every channel is capped at in mode `fixed`, unused otherwise.

    least_stride: input px that a cell of a map stands for at least if its ReLU is to be replaced; 1: all, as published.
    """

    mode: str = FIXED
    delta: float = 0.55
    least_stride: int = 1

    def __post_init__(self) -> None:
        check(self.mode in MODES, f"suppression {self.mode!r} is not one of {', '.join(MODES)}")
        check(self.delta >= 0, f"a share of {self.delta} of the maximum is negative (or no number); 0.4 to 1 is usual")
        check(self.least_stride >= 1, f"a least stride of {self.least_stride} is below 1")


class Suppressor(nn.Module):
    """Stands in the place of a ReLU: float [B, C, h, w] -> the same shape, in 0 .. share x maximum of the channel."""

    def __init__(self, how: Suppression, widths: Iterable[int] = ()) -> None:
        """widths: the C that may come, which mode `learnable` has to know; W ~ N(0, 0.01^2), so that d is about 0.5."""
        super().__init__()
        self.delta = how.delta
        self.learnable = how.mode == LEARNABLE
        wanted = sorted(set(widths)) if self.learnable else []
        self.controllers = nn.ModuleDict({str(c): nn.Linear(c, c, bias=False) for c in wanted})
        for weight in self.controllers.parameters():
            nn.init.normal_(weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Y = min(X, m d), with X the rectified input."""
        x = F.relu(x)
        highest = x.amax((2, 3), keepdim=True)
        share = self.shares(x)[:, :, None, None] if self.learnable else self.delta
        return torch.minimum(x, highest * share)

    def shares(self, x: Tensor) -> Tensor:
        """Shares d = sigmoid(W GAP(X)) of mode `learnable`: rectified maps float [B, C, h, w] -> [B, C] in 0..1."""
        pooled: Tensor = self.controllers[str(x.shape[1])](x.mean((2, 3)))
        return pooled.sigmoid().to(x.dtype)


def suppressed(network: nn.Module, how: Suppression) -> nn.Module:
    """Put a `Suppressor` in the place of every ReLU over a map that a forward pass of `network` meets.

    network: takes images float [B, 3, H, W]. It is changed, and returned. ConfigError if it has no such ReLU, as those
    have none that use other activations.
    """
    new = {
        relu: Suppressor(how, [s[1] for s in shapes])
        for relu, shapes in _shapes_of_relus(network).items()
        if max(s[2] * s[3] for s in shapes) > 1 and PROBE_PX / max(s[2] for s in shapes) >= how.least_stride
    }
    if not new:
        raise ConfigError(
            f"{type(network).__name__} has no ReLU over maps of a stride of {how.least_stride} or more, so there is "
            "nothing to suppress in; choose another --encoder (a ResNet, RegNet, DenseNet or VGG)"
        )
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    return network


def _shapes_of_relus(network: nn.Module) -> dict[nn.Module, list[torch.Size]]:
    """The shapes [B, C, h, w] that every ReLU of `network` gives for an image of `PROBE_PX`, in the order of calls."""
    shapes: dict[nn.Module, list[torch.Size]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        if result.ndim == 4:
            shapes.setdefault(module, []).append(result.shape)

    relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    if not relus:
        return {}  # such a network may take no image of this size
    hooks = [m.register_forward_hook(note) for m in relus]
    try:
        on = next(network.parameters()).device
        with evaluated(network), torch.no_grad():
            network(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=on))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode while the block runs; every module is then in the mode that it was in."""
    training = [m for m in network.modules() if m.training]
    network.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
