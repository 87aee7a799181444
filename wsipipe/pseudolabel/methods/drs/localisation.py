"""Steps 3 and 4: localisation maps of windows from the classifier, and the maps of the refinement network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.methods.drs.params import Params
from wsipipe.pseudolabel.methods.drs.vgg import pooled
from wsipipe.pseudolabel.shared.resize import resize
from wsipipe.runtime.device import autocast

EPSILON = 1e-5
"""Added to the maximum that a map is divided by."""


class Pooled(nn.Module):
    """A network of maps as a classifier: normalised windows [B, 3, s, s] -> logits [B, K], the means of the maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of independent classes."""
        return pooled(self.network(x))


class Drs(nn.Module):
    """Classifier with suppression, and refinement network (None: without).

    map_size: side n of the maps of a window, in cells. absent: float [], the `a` of the method's text; infinite if no
    window was known to hold no class, so that absence is never seen.
    """

    absent: Tensor

    def __init__(
        self, networks: tuple[nn.Module, nn.Module | None], classes: int, map_size: int, params: Params
    ) -> None:
        super().__init__()
        self.classifier, self.refiner = networks
        self.classes, self.map_size, self.params = classes, map_size, params
        self.register_buffer("absent", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised windows float [B, 3, s, s] -> maps f_c of the classifier, float [B, K, h, w]."""
        out: Tensor = self.classifier(x)
        return out

    def localisation_maps(self, rgb: Tensor, tissue: Tensor, labels: Tensor | None = None) -> Tensor:
        """Steps 2 and 3: P_0 and the maps M_c of windows, float [B, 1 + K, n, n] in 0..1.

        rgb: uint8 [B, 3, s, s]. tissue: bool [B, s, s]. labels: [B, K] of 1, 0 or nan; default: unknown.
        """
        raw = [self(x).float() for x in self._sizes(rgb)]
        weight = torch.stack([pooled(f) for f in raw]).mean(0).sigmoid()
        if not self.params.weigh:
            weight = torch.ones_like(weight)
        if labels is not None:
            weight = weight * (labels != 0)
        sized = [self._at_map_size(f) for f in raw]
        maps = scaled(self._fused([scaled(f.relu()) for f in sized])) * weight[:, :, None, None]
        background = torch.zeros_like(maps[:, :1])
        if self.params.absence:
            w = weight.amax(1)[:, None, None, None]
            background = (1 - w) + w * (self._fused([absence(f) for f in sized]) / self.absent).clamp(max=1)
        return on_glass(torch.cat([background, maps], 1), self.tissue_cells(tissue))

    def refined_maps(self, rgb: Tensor, tissue: Tensor) -> Tensor:
        """Step 4: the maps of windows by the refinement network; arguments and result as in `localisation_maps`."""
        assert self.refiner is not None
        maps = self._fused([self._at_map_size(self.refiner(x).float()) for x in self._sizes(rgb)]).clamp(0, 1)
        if not self.params.absence:
            maps = F.pad(maps, (0, 0, 0, 0, 1, 0))
        return on_glass(maps, self.tissue_cells(tissue))

    def maps(self, rgb: Tensor, tissue: Tensor) -> Tensor:
        """The maps that are painted: refined maps if there is a refinement network, else those of the classifier."""
        device = self.absent.device
        with torch.inference_mode(), autocast(device):
            maps_of = self.localisation_maps if self.refiner is None else self.refined_maps
            return maps_of(rgb.to(device), tissue.to(device))

    def absence_maps(self, rgb: Tensor) -> Tensor:
        """Evidence against all classes before its division by `a`: windows uint8 [B, 3, s, s] -> [B, 1, n, n]."""
        return self._fused([absence(self._at_map_size(self(x).float())) for x in self._sizes(rgb)])

    def tissue_cells(self, tissue: Tensor) -> Tensor:
        """T: whether a cell holds any tissue: bool [B, s, s] -> 0 or 1, float [B, 1, n, n]; paint handles its glass."""
        return F.adaptive_max_pool2d(tissue[:, None].float(), self.map_size)

    def _sizes(self, rgb: Tensor) -> list[Tensor]:
        """The normalised windows in every size, rounded to a multiple of 8 px."""
        x = rgb.float() / 255
        sides = [max(8, round(rgb.shape[-1] * s / 8) * 8) for s in self.params.scales]
        return [normalise(x if side == rgb.shape[-1] else resize(x, (side, side), antialias=True)) for side in sides]

    def _at_map_size(self, maps: Tensor) -> Tensor:
        return resize(maps, (self.map_size, self.map_size))

    def _fused(self, maps: list[Tensor]) -> Tensor:
        every = torch.stack(maps)
        return every.amax(0) if self.params.fusion == "max" else every.mean(0)


def scaled(maps: Tensor) -> Tensor:
    """Step 3: every map divided by its maximum, float [B, K, h, w] >= 0 -> the same shape in 0..1."""
    return maps / (maps.amax((2, 3), keepdim=True) + EPSILON)


def absence(maps: Tensor) -> Tensor:
    """min_c ReLU(-f_c): float [B, K, h, w] -> [B, 1, h, w]."""
    return (-maps.amax(1, keepdim=True)).relu()


def on_glass(maps: Tensor, tissue: Tensor) -> Tensor:
    """P_0 >= 1 - T, and no class on glass: float [B, 1 + K, n, n], tissue 0 or 1 [B, 1, n, n] -> [B, 1 + K, n, n]."""
    return torch.cat([torch.maximum(maps[:, :1], 1 - tissue), maps[:, 1:] * tissue], 1)
