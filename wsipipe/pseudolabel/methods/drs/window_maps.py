"""What DRS measures on training windows: the level of absence, and the maps that the refinement network regresses."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from wsipipe.pseudolabel.methods.drs.localisation import EPSILON, Drs
from wsipipe.pseudolabel.methods.drs.refiner import to_bytes
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL, Windows
from wsipipe.runtime.device import autocast

log = logging.getLogger(__name__)


def absence_level(model: Drs, windows: Windows) -> torch.Tensor:
    """`a`: mean of the absence maps over the tissue of windows without any class; infinite if there are none."""
    of = np.flatnonzero((windows.labels == 0).all(1).numpy())
    if not len(of):
        log.info("drs.absence: every bag holds a class, so the absence of all classes cannot be measured")
        return torch.tensor(torch.inf)
    device = model.absent.device
    total, cells = torch.zeros((), device=device), torch.zeros((), device=device)
    with torch.inference_mode(), autocast(device):
        for i in range(0, len(of), WINDOWS_PER_CALL):
            some = of[i : i + WINDOWS_PER_CALL]
            rgb, tissue = (torch.from_numpy(a[some]).to(device) for a in (windows.rgb, windows.tissue))
            known = model.tissue_cells(tissue)
            total, cells = total + (model.absence_maps(rgb) * known).sum(), cells + known.sum()
    return total / cells + EPSILON


def window_maps(model: Drs, windows: Windows) -> NDArray[np.uint8]:
    """The localisation maps of training windows in 8 bits (255 = 1.0): uint8 [M, 1 + K, n, n]."""
    device = model.absent.device
    parts = []
    with torch.inference_mode(), autocast(device):
        for i in range(0, len(windows.rgb), WINDOWS_PER_CALL):
            some = slice(i, i + WINDOWS_PER_CALL)
            rgb, tissue = (torch.from_numpy(a[some]).to(device) for a in (windows.rgb, windows.tissue))
            parts.append(to_bytes(model.localisation_maps(rgb, tissue, windows.labels[some].to(device))))
    return np.concatenate(parts)
