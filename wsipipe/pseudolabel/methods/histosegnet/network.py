"""Steps 1 and 3: the classifier of windows, its class thresholds, and its class activation maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsipipe.errors import check
from wsipipe.labels import Classes
from wsipipe.pseudolabel.methods.histosegnet.activation import MAP_RULES, cam, class_maps
from wsipipe.pseudolabel.methods.histosegnet.params import Params
from wsipipe.pseudolabel.methods.histosegnet.thresholds import UNSEEN_THETA
from wsipipe.pseudolabel.methods.histosegnet.x17 import X17
from wsipipe.pseudolabel.shared.cam import CamClassifier


class HistoSegNet(nn.Module):
    """A network with an activation layer A, and the threshold theta of every class: float32 [K]."""

    theta: Tensor

    def __init__(self, network: X17 | CamClassifier, classes: Classes, params: Params) -> None:
        super().__init__()
        self.network = network
        self.activation = params.activation
        self.exempt, self.other = (_indices(n, getattr(params, n), classes) for n in ("exempt", "other"))
        check(len(self.other) < len(classes), "histosegnet.other: names all classes; leave at least one to be painted")
        self.register_buffer("theta", torch.full((len(classes),), UNSEEN_THETA))

    def features(self, x: Tensor) -> Tensor:
        """A: windows (normalised) float [B, 3, s, s] -> float [B, D, h, w]."""
        return self.network.features(x)

    def scores(self, activations: Tensor) -> Tensor:
        """The logits z of A: float [B, D, h, w] -> float [B, K]."""
        if isinstance(self.network, X17):
            return self.network.scores(activations)
        return self.network.evidence(cam(activations, self.network.linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Windows (normalised) float [B, 3, s, s] -> logits float [B, K] of independent classes."""
        return self.scores(self.features(x))

    def maps(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Step 3 before max(0, .): maps of A for the classes and against them, float [B, K, h, w] each."""
        net = self.network
        if self.activation in ("gradcam", "cam"):
            if isinstance(net, CamClassifier):
                maps = cam(activations, net.linear.weight)
            elif self.activation == "cam":
                maps = cam(net.norm(activations), net.linear.weight)
            else:
                maps = cam(activations, net.cam_weights())
            return maps, -maps
        with torch.enable_grad():
            a = activations.detach().requires_grad_()
            z = self.scores(a)
        own, against = (class_maps(MAP_RULES[self.activation], a, z, sign) for sign in (1.0, -1.0))
        return own, against


def _indices(field: str, names: Sequence[str], classes: Classes) -> list[int]:
    """Indices of the classes that a parameter names."""
    unknown = sorted(set(names) - set(classes.names))
    check(not unknown, f"histosegnet.{field}: {', '.join(unknown)} is no class; there are {', '.join(classes.names)}")
    return [classes.names.index(n) for n in names]
