"""Refinement of score maps by the colours of the slide: a module of `refine/`, applied window by window."""

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
"""Side, in cells, of the core that one window refines."""

MARGIN = 32
"""Cells around the core that take part, so that no seam shows where cores meet."""


class Refinement(Protocol):
    """The contract of a module of `refine/`."""

    Params: type[Any]
    """A frozen dataclass of options, derived from `NamedParams`; lengths are in um."""

    def refine(self, evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Any) -> Tensor:
        """Refined evidence: float32 [C, h, w] on the device of `evidence`.

        evidence: float32 [C, h, w] >= 0, channel 0 the background, then the classes. rgb: mean colours of the cells,
        uint8 [3, h, w]. known: bool [h, w]; other cells have no influence and are returned unchanged. cell_um: side of
        a cell. A channel that is zero everywhere stays zero.
        """
        ...


@dataclass(frozen=True)
class RefinementStep:
    """A refinement, its parameters, and the largest side, in working px, of the cells that it works on."""

    name: str
    module: Refinement
    params: Any
    stride_px: int


def refine_scores(scores: ScoreMap, store: SlideStore, step: RefinementStep, device: torch.device) -> ScoreMap:
    """The refined score map, with cells of at most `step.stride_px`.

    ConfigError if the cells of `scores` do not divide into such cells.
    """
    scores = crop_to_slide(upsample_scores(scores, step.stride_px), store)
    out = np.concatenate([scores.background[None], scores.values])
    known = scores.known
    cell_um = store.grid.mean_mpp * scores.stride_px
    evidence = np.nan_to_num(out, nan=0.0)
    for y, x, core in _windows(known):
        colours = np.moveaxis(read_cell_colours(store, y, x, scores.stride_px), -1, 0)
        part, rgb, part_known = (
            torch.from_numpy(a.copy()).to(device) for a in (evidence[:, y, x], colours, known[y, x])
        )
        result = step.module.refine(part, rgb, part_known, cell_um, step.params).cpu().numpy()
        inner = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(core, (y, x), strict=True))
        out[:, *core] = np.where(known[core], result[:, *inner], np.nan)
    return ScoreMap(out[1:], out[0], scores.stride_px)


def upsample_scores(scores: ScoreMap, stride_px: int) -> ScoreMap:
    """The score map with cells of at most `stride_px`, interpolated bilinearly between centres of known cells."""
    if scores.stride_px <= stride_px:
        return scores
    factor = scores.stride_px // stride_px
    if factor * stride_px != scores.stride_px:
        raise ConfigError(
            f"scores with a stride of {scores.stride_px} px do not divide into cells of {stride_px} px; choose another "
            "pseudolabel.refine_stride_px"
        )
    evidence = np.concatenate([scores.background[None], scores.values])
    weight = _bilinear(scores.known[None].astype(np.float32), factor)
    total = _bilinear(np.nan_to_num(evidence, nan=0.0), factor)
    known = scores.known.repeat(factor, 0).repeat(factor, 1)
    fine = np.where(known, total / np.where(known, weight, 1), np.nan).astype(np.float32)
    return ScoreMap(fine[1:], fine[0], stride_px, scores.complement)


def crop_to_slide(scores: ScoreMap, store: SlideStore) -> ScoreMap:
    """The score map without cells that lie entirely beyond the right or lower edge of the slide."""
    rows, cols = store.grid.cells(scores.stride_px)
    return replace(scores, values=scores.values[:, :rows, :cols], background=scores.background[:rows, :cols])


def _bilinear(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """float32 [C, h, w] -> [C, h * factor, w * factor]."""
    large = F.interpolate(torch.from_numpy(values)[None], scale_factor=factor, mode="bilinear", align_corners=False)
    return np.asarray(large[0].numpy())


def _windows(known: NDArray[np.bool_]) -> Iterator[tuple[slice, slice, tuple[slice, slice]]]:
    """Rows and columns of every window that holds known cells, and those of its core."""
    rows, cols = known.shape
    for top in range(0, rows, CORE):
        for left in range(0, cols, CORE):
            core = (slice(top, min(top + CORE, rows)), slice(left, min(left + CORE, cols)))
            if known[core].any():
                y = slice(max(0, top - MARGIN), min(core[0].stop + MARGIN, rows))
                x = slice(max(0, left - MARGIN), min(core[1].stop + MARGIN, cols))
                yield y, x, core


def read_cell_colours(store: SlideStore, rows: slice, cols: slice, stride_px: int) -> NDArray[np.uint8]:
    """Mean colours of cells of `stride_px` working px, from the coarsest level that divides them: uint8 [h, w, 3]."""
    level = max(k for k in range(store.grid.levels) if stride_px % LEVEL_FACTOR**k == 0)
    n = stride_px // LEVEL_FACTOR**level
    window = Window(cols.start * n, rows.start * n, (cols.stop - cols.start) * n, (rows.stop - rows.start) * n)
    return shrunk(store.read(window, level), n)
