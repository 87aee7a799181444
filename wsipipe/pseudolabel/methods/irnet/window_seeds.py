"""What IRNet takes from its class maps of training windows: seeds for boundaries, and the scale of each class."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE
from wsipipe.pseudolabel.methods.irnet.network import EPS, IrNet, window_batches
from wsipipe.pseudolabel.methods.irnet.params import Params
from wsipipe.pseudolabel.methods.irnet.seeds import published_seeds, tissue_seeds
from wsipipe.pseudolabel.shared.resize import resize
from wsipipe.pseudolabel.shared.windows import Windows
from wsipipe.runtime.device import autocast

log = logging.getLogger(__name__)


def window_seeds(model: IrNet, windows: Windows, params: Params) -> Tensor:
    """Seeds of training windows, from the maps of their classes divided by their maxima: uint8 [M, h, w]."""
    seeds = []
    for rows, x, tissue in window_batches(model, windows):
        with torch.inference_mode(), autocast(x.device):
            maps, logits = model.class_maps(x)
            maps = maps * may_hold(windows, rows, logits, params)[:, :, None, None]
        maps = maps / (maps.amax((2, 3), keepdim=True) + EPS)
        if params.as_published:
            rgb = torch.from_numpy(windows.rgb[rows]).to(x.device)
            fine = resize(maps, x.shape[-2:])
            full = [published_seeds(m, p, params.seed_fg, params.seed_bg) for m, p in zip(fine, rgb, strict=True)]
            seeds.append(torch.stack(full)[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].cpu())
        else:
            seeds.append(tissue_seeds(maps, tissue, params.seed_fg, params.seed_bg).cpu())
    return torch.cat(seeds)


def may_hold(windows: Windows, rows: NDArray[np.int64], logits: Tensor, params: Params) -> Tensor:
    """Whether the windows `rows`, int64 [B], may hold a class: by label and classifier, bool [B, K].

    The label of a patch is about the window itself and needs no support; as published no label does.
    """
    labelled = windows.labels[rows].to(logits.device) == 1
    certain = torch.from_numpy(windows.patch[rows]).to(logits.device)[:, None]
    return labelled & (certain | (logits >= 0) | params.as_published)


def mean_maxima(model: IrNet, windows: Windows, params: Params) -> Tensor:
    """Per class, the mean maximum of its walked maps over its training windows: float [K].

    Infinite, so that it is never painted, for a class that the classifier finds in none of them.
    """
    total, count = torch.zeros_like(model.top), torch.zeros_like(model.top)
    for rows, x, tissue in window_batches(model, windows):
        with torch.inference_mode(), autocast(x.device):
            maps, logits = model.class_maps(x)
            of_class = (windows.labels[rows].to(x.device) == 1) & (logits >= 0)
            maxima = model.walked(maps, x, tissue, params.walk).amax((2, 3))
        total += (maxima * of_class).sum(0)
        count += of_class.sum(0)
    for k in torch.nonzero(count == 0).ravel().tolist():
        log.warning("irnet: the classifier finds class %d in none of its training windows; it is not painted", k + 1)
    return torch.where(count > 0, total / count.clamp_min(1) + EPS, torch.inf)
