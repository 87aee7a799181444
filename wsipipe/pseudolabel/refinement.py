"""Refinement of a slide's score map by what its pixels look like: a module of `refine/`, applied window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import LEVEL_FACTOR, Window
from wsipipe.pseudolabel.instance_grid import shrunk
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.store import SlideStore

CORE = 192
"""Cells along the side of what one window refines."""

MARGIN = 32
"""Cells around it that take part, so that no seam shows where windows meet."""


class Refinement(Protocol):
    """The contract of a module of `refine/`; lengths among its parameters are in um."""

    Params: type[Any]

    def refine(self, evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Any) -> Tensor:
        """Evidence float32 [C, h, w] >= 0 in the light of the colours of its cells, rgb uint8 [3, h, w].

        Channel 0 is none of the classes, then the classes. Cells that are not `known`, bool [h, w], take no part and
        come back as they were; a channel that is zero everywhere stays so. Returns float32 [C, h, w] on the device of
        `evidence`.
        """
        ...


@dataclass(frozen=True)
class Step:
    """A refinement with its parameters, and the working px of the cells that it works on (at most)."""

    name: str
    module: Refinement
    params: Any
    stride_px: int


def refined(scores: ScoreMap, store: SlideStore, step: Step, on: torch.device) -> ScoreMap:
    """The score map after a refinement, its cells no larger than `step.stride_px`.

    ConfigError if cells of the scores do not divide into those.
    """
    scores = within(enlarged(scores, step.stride_px), store)
    out = np.concatenate([scores.none[None], scores.values])
    known = scores.known
    cell_um = store.grid.mean_mpp * scores.stride_px
    evidence = np.nan_to_num(out, nan=0.0)
    for y, x, core in _windows(known):
        colours = np.moveaxis(read_cells(store, y, x, scores.stride_px), -1, 0)
        part, rgb, there = (torch.from_numpy(a.copy()).to(on) for a in (evidence[:, y, x], colours, known[y, x]))
        result = step.module.refine(part, rgb, there, cell_um, step.params).cpu().numpy()
        inner = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(core, (y, x), strict=True))
        out[:, *core] = np.where(known[core], result[:, *inner], np.nan)
    return ScoreMap(out[1:], out[0], scores.stride_px)


def enlarged(scores: ScoreMap, stride_px: int) -> ScoreMap:
    """The score map with cells of at most `stride_px`, interpolated bilinearly between the centres of known cells."""
    if scores.stride_px <= stride_px:
        return scores
    factor = scores.stride_px // stride_px
    if factor * stride_px != scores.stride_px:
        raise ConfigError(
            f"scores every {scores.stride_px} px do not divide into cells of {stride_px} px; choose another "
            "pseudolabel.refine_stride_px"
        )
    every = np.concatenate([scores.none[None], scores.values])
    weight = _bilinear(scores.known[None].astype(np.float32), factor)
    total = _bilinear(np.nan_to_num(every, nan=0.0), factor)
    known = scores.known.repeat(factor, 0).repeat(factor, 1)
    fine = np.where(known, total / np.where(known, weight, 1), np.nan).astype(np.float32)
    return ScoreMap(fine[1:], fine[0], stride_px, scores.complement)


def within(scores: ScoreMap, store: SlideStore) -> ScoreMap:
    """The score map without cells that lie wholly beyond the slide's right or lower edge."""
    rows, cols = store.grid.cells(scores.stride_px)
    return replace(scores, values=scores.values[:, :rows, :cols], none=scores.none[:rows, :cols])


def _bilinear(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """float32 [C, h, w] -> [C, h * factor, w * factor]."""
    large = F.interpolate(torch.from_numpy(values)[None], scale_factor=factor, mode="bilinear", align_corners=False)
    return np.asarray(large[0].numpy())


def _windows(known: NDArray[np.bool_]) -> Iterator[tuple[slice, slice, tuple[slice, slice]]]:
    """Rows and columns of every window with known cells, and those of the core that it answers for."""
    rows, cols = known.shape
    for top in range(0, rows, CORE):
        for left in range(0, cols, CORE):
            core = (slice(top, min(top + CORE, rows)), slice(left, min(left + CORE, cols)))
            if known[core].any():
                y = slice(max(0, top - MARGIN), min(core[0].stop + MARGIN, rows))
                x = slice(max(0, left - MARGIN), min(core[1].stop + MARGIN, cols))
                yield y, x, core


def read_cells(store: SlideStore, rows: slice, cols: slice, stride_px: int) -> NDArray[np.uint8]:
    """Mean colour of cells of `stride_px` working px, of the coarsest level that divides them: uint8 [h, w, 3]."""
    level = max(k for k in range(store.grid.levels) if stride_px % LEVEL_FACTOR**k == 0)
    n = stride_px // LEVEL_FACTOR**level
    window = Window(cols.start * n, rows.start * n, (cols.stop - cols.start) * n, (rows.stop - rows.start) * n)
    return shrunk(store.read(window, level), n)
