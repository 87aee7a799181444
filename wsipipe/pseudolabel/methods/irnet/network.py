"""The networks of IRNet together: a classifier of windows, and a boundary network that its maps walk by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE, BoundaryNet
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.resize import resize
from wsipipe.pseudolabel.shared.walk import Walk, random_walk
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL, Windows

EPS = 1e-5
"""Added to what maps are divided by."""


class IrNet(nn.Module):
    """The classifier of windows, the boundary network, and top, float [K], which class maps are divided by."""

    top: Tensor

    def __init__(self, classifier: CamClassifier, boundary: BoundaryNet, scales: Sequence[float]) -> None:
        super().__init__()
        self.classifier, self.boundary, self.scales = classifier, boundary, tuple(scales)
        self.register_buffer("top", torch.ones(classifier.linear.out_features))

    def class_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps float32 [B, K, s / 4, s / 4] >= 0, summed over scales and mirror images, and mean logits float [B, K].

        x: windows (normalised) float [B, 3, s, s].
        """
        size = [n // STRIDE for n in x.shape[-2:]]
        total, logits = torch.zeros((), device=x.device), []
        for scale in self.scales:
            sized = x if scale == 1 else resize(x, [round(n * scale) for n in x.shape[-2:]])
            plain, mirrored = (self.classifier.maps(v).float() for v in (sized, sized.flip(-1)))
            total = total + resize(plain.relu() + mirrored.flip(-1).relu(), size)
            logits += [self.classifier.evidence(m) for m in (plain, mirrored)]
        return total, torch.stack(logits).mean(0)

    def walked(self, maps: Tensor, x: Tensor, tissue: Tensor, walk: Walk) -> Tensor:
        """M*: maps float32 [B, K, h, w] of windows x after the walk over tissue, bool [B, h, w]; 0 elsewhere."""
        boundary = torch.where(tissue, self.boundary.boundary(x), 1)
        return random_walk(maps, boundary, walk)


def tissue_cells(tissue: Tensor) -> Tensor:
    """Whether at least half of a cell of 4 px is tissue: bool [B, s, s] -> bool [B, s / 4, s / 4]."""
    return F.avg_pool2d(tissue.float(), STRIDE) >= 0.5


def window_batches(model: IrNet, windows: Windows) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Indices int64 [B], windows (normalised) float [B, 3, s, s], and tissue by cells of 4 px, bool [B, h, w]."""
    device = model.top.device
    for i in range(0, len(windows.rgb), WINDOWS_PER_CALL):
        rows = np.arange(i, min(i + WINDOWS_PER_CALL, len(windows.rgb)))
        x = normalise(torch.from_numpy(windows.rgb[rows]).to(device))
        yield rows, x, tissue_cells(torch.from_numpy(windows.tissue[rows]).to(device))
