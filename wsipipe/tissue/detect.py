"""Detect tissue on the overview of a slide, and exclude glass, pen, black borders and out-of-focus regions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsipipe.errors import check
from wsipipe.geometry import Grid
from wsipipe.tissue.overview import (
    OD_UNITS,
    OverviewFrame,
    OverviewKind,
    ReadWindow,
    Uint8Array,
    histogram,
    quantile,
    read_overview,
    strips,
)

TISSUE_OD = (0.06, 0.12)
"""Range of the threshold on mean optical density: lower values are uneven glass, higher values are stained stroma."""

DARK_SLIDE = 60
"""Median brightness (0..255) below which a slide is not bright-field, but fluorescence on black."""

MIN_PEN_UM2 = 20_000
"""Smallest pen stroke (140 um square); smaller areas of ink colour are pigment or dirt."""

WARN_PEN_SHARE, MAX_PEN_SHARE = 0.3, 0.8
"""Shares of the stained pixels that have the colour of ink. Above the first, a note asks for a look; above the second,
the colour is a stain (trichrome, Alcian blue) and kept. Thick strokes around a biopsy reach 0.5."""

SHARP_RATIO = 0.125
"""Ratio of the squared contrast over NEAR_UM to that over 4 times the distance, below which a block is out of focus.

Sharp H&E has 0.22 to 0.7, a linear gradient 1/16. A Gaussian blur of 4 um reduces sharp tissue to 0.09..0.15, one of
6 um to less than 0.12.
"""

MIN_CONTRAST = 54.0
"""Mean squared difference of R + G + B (0..765) below which a block is too uniform to be judged sharp or blurred."""

MAX_BLUR_SHARE = 0.9
"""If more of the tissue looks out of focus, it is kept: the slide may be smooth, and would be empty without it."""

_MAX_WINDOWS = 4096
"""Windows processed at once: each needs about 20 numbers while its tissue fraction is computed."""


@dataclass(frozen=True)
class TissueRules:
    """Options of tissue detection.

    mpp: resolution of the overview in um/px. min_area_um2: smallest piece of tissue and smallest hole. qc: exclude pen
    and out-of-focus tissue; it may mistake special stains such as trichrome or Alcian blue for pen.
    """

    mpp: float = 8.0
    min_area_um2: float = 10_000
    qc: bool = True

    def __post_init__(self) -> None:
        check(0 < self.mpp < float("inf"), f"tissue mpp {self.mpp:g}: expected a resolution above 0 um/px, e.g. 8")
        check(self.min_area_um2 >= 0, f"smallest tissue area {self.min_area_um2:g} um2: expected 0 or more, e.g. 10000")


@dataclass(frozen=True)
class TissueMask:
    """The kind of every overview pixel: uint8 [h, w] of OverviewKind, one per `step_px` x `step_px` working px.

    `note`: why there is no tissue, or what a person should check; otherwise empty.
    """

    kind: Uint8Array
    step_px: int
    note: str = ""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Tissue pixels: bool [h, w], computed at each call."""
        return np.asarray(self.kind == OverviewKind.TISSUE)

    def shares(self) -> dict[str, float]:
        """Shares (0..1) of pen and blur in all pixels that are neither glass nor black."""
        counts = histogram(self.kind)
        total = max(1, int(counts[[OverviewKind.TISSUE, OverviewKind.PEN, OverviewKind.BLUR]].sum()))
        return {"pen": int(counts[OverviewKind.PEN]) / total, "blur": int(counts[OverviewKind.BLUR]) / total}

    def fractions(self, yx_px: NDArray[np.int64], size_px: tuple[int, int]) -> NDArray[np.float32]:
        """Tissue fraction of windows of one (height, width) in working px: yx_px int64 [N, 2] -> float32 [N] 0..1.

        Overview pixels on the border of a window count by the part inside; outside the slide is glass.
        """
        if len(yx_px) > _MAX_WINDOWS:
            parts = (yx_px[i : i + _MAX_WINDOWS] for i in range(0, len(yx_px), _MAX_WINDOWS))
            return np.concatenate([self.fractions(part, size_px) for part in parts])
        height, width = self.kind.shape
        y = np.clip(np.stack([yx_px[:, 0], yx_px[:, 0] + size_px[0]]) / self.step_px, 0, height)
        x = np.clip(np.stack([yx_px[:, 1], yx_px[:, 1] + size_px[1]]) / self.step_px, 0, width)
        above = y.astype(np.intp)
        lines = np.unique([above, np.minimum(above + 1, height)])  # only these rows of the integral image are needed
        integral = np.zeros((len(lines), width + 1), np.int32)
        for i, (first, last) in enumerate(pairwise([0, *lines.tolist()])):
            integral[i, 1:] = (self.kind[first:last] == OverviewKind.TISSUE).sum(0, dtype=np.int32).cumsum()
        np.cumsum(integral, axis=0, out=integral)
        y += np.searchsorted(lines, above) - above
        corners = ((1, 1, 1), (0, 0, 1), (0, 1, -1), (1, 0, -1))
        area = sum(s * ndimage.map_coordinates(integral, [y[i], x[j]], np.float64, order=1) for i, j, s in corners)
        return np.asarray(np.clip(area * self.step_px**2 / (size_px[0] * size_px[1]), 0, 1), np.float32)


def find_tissue(read: ReadWindow, grid: Grid, rules: TissueRules) -> TissueMask:
    """Detect the tissue of a slide.

    Threshold: half of Otsu's threshold on mean optical density, within TISSUE_OD, relative to the glass of this slide.
    Pen: ink colours that no mixture of haematoxylin, eosin and DAB has (see `overview._is_ink`).
    Blur: points NEAR_UM apart differ too little compared with points 4 times as far apart. This detects a defocus
    (Gaussian) of about 6 um and more, but not the few micrometres that already remove the texture of nuclei, and
    nothing in regions without contrast; on overviews coarser than 8 um/px, only proportionally stronger blur.
    """
    frame = OverviewFrame.plan(grid, rules.mpp)
    overview = read_overview(read, grid, frame, rules.qc)
    kind = overview.kind
    if quantile(overview.brightness, 0.5) < DARK_SLIDE:
        return TissueMask(np.zeros_like(kind), frame.step_px, "dark background: not a bright-field slide")
    notes = _clean_marks(kind, overview.od, MIN_PEN_UM2 / frame.mpp**2)
    od = _smoothed(_subtract_glass(overview.od, kind))
    tissue = od > _threshold(histogram(od))
    del od
    if not tissue.any():
        return TissueMask(kind, frame.step_px, "nothing darker than glass")
    min_area_px = rules.min_area_um2 / frame.mpp**2
    _remove_small(tissue, min_area_px)
    if not tissue.any():
        return TissueMask(kind, frame.step_px, f"no piece of tissue of at least {min_area_px:.0f} overview px")
    np.logical_not(tissue, out=tissue)
    _remove_small(tissue, min_area_px)  # holes
    kind[(kind == OverviewKind.GLASS) & ~tissue] = OverviewKind.TISSUE
    if rules.qc:
        notes += _mark_blur(kind, overview.contrast, frame.block_px)
    return TissueMask(kind, frame.step_px, "; ".join(notes))


def _clean_marks(kind: Uint8Array, od: Uint8Array, min_pen_px: float) -> list[str]:
    """Dilate BLACK, then PEN, by one pixel, and turn small or implausible PEN into GLASS, in place; returns notes."""
    kind[_dilated(kind == OverviewKind.BLACK)] = OverviewKind.BLACK
    strokes = _dilated(kind == OverviewKind.PEN) & (kind != OverviewKind.BLACK)
    kind[strokes] = OverviewKind.GLASS
    if strokes.any():
        _remove_small(strokes, min_pen_px)
    kind[strokes] = OverviewKind.PEN
    stained = (od > TISSUE_OD[1] * OD_UNITS) & (kind != OverviewKind.BLACK)
    share = strokes.sum() / max(1, stained.sum())
    if share > MAX_PEN_SHARE:
        kind[strokes] = OverviewKind.GLASS
        return [f"{min(share, 1):.0%} of the stained area has the colour of ink; treated as a stain and kept"]
    return [f"pen on {share:.0%} of the stained area; use --no-qc if it is a stain"] if share > WARN_PEN_SHARE else []


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask dilated by one pixel in all 8 directions: bool [h, w] both."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    out = rows.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


def _subtract_glass(od: Uint8Array, kind: Uint8Array) -> Uint8Array:
    """Subtract the optical density of this slide's glass in excess of 0.05 (white glass), in place; 0 on pen and black.

    The clearest twentieth of the scanned area is glass (pure white was not scanned); glass can be as grey as 220.
    """
    counts = histogram(od, kind == OverviewKind.GLASS)
    counts[0] = 0
    excess = quantile(counts, 0.05) / OD_UNITS - 0.05 if counts.any() else 0.0
    level = np.uint8(round(min(max(excess, 0.0), 0.1) * OD_UNITS))
    np.subtract(od, np.minimum(od, level), out=od)
    od[kind != OverviewKind.GLASS] = 0
    return od


def _smoothed(od: Uint8Array) -> Uint8Array:
    """Gaussian filter with sigma 1 px, in strips: uint8 [h, w] both."""
    out, reach = np.empty_like(od), 4
    for rows in strips(od.shape[0]):
        first = max(0, rows.start - reach)
        part = ndimage.gaussian_filter(od[first : rows.stop + reach].astype(np.float32), 1)
        out[rows] = np.rint(part[rows.start - first : rows.stop - first])
    return out


def _threshold(counts: NDArray[np.int64]) -> int:
    """The threshold on optical density in 1 / OD_UNITS from its histogram, int64 [256]; tissue lies above.

    Otsu's threshold lies midway between glass and the common stain; half of it keeps pale stroma.
    """
    below, moment = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    spread = below * (below[-1] - below)
    between = np.square(moment[-1] / below[-1] * below - moment) / np.maximum(spread, 1)
    low, high = TISSUE_OD
    return int(np.clip(np.argmax(between) / 2, low * OD_UNITS, high * OD_UNITS))


def _remove_small(mask: NDArray[np.bool_], min_area_px: float) -> None:
    """Remove connected components of fewer than `min_area_px` pixels from bool [h, w], in place."""
    try:
        pieces = np.empty(mask.shape, np.uint16)
        n = ndimage.label(mask, output=pieces)
    except RuntimeError:  # more components than uint16 can number
        pieces = np.empty(mask.shape, np.int32)
        n = ndimage.label(mask, output=pieces)
    area = np.zeros(n + 1, np.int64)
    for rows in strips(len(pieces)):
        area += np.bincount(pieces[rows].ravel(), minlength=n + 1)
    keep = area >= min_area_px
    keep[0] = False
    for rows in strips(len(pieces)):
        mask[rows] = keep[pieces[rows]]


def _mark_blur(kind: Uint8Array, contrast: NDArray[np.float32], block_px: int) -> list[str]:
    """Turn TISSUE that is out of focus into BLUR, in place; returns notes. Each block votes with its 8 neighbours."""
    near, far = contrast
    vote = np.where(near < SHARP_RATIO * far, 1, -1) * (far > MIN_CONTRAST)
    blurred = ndimage.convolve(vote, np.ones((3, 3), np.int8), mode="nearest") > 0
    found = blurred.repeat(block_px, 0)[: kind.shape[0]].repeat(block_px, 1)[:, : kind.shape[1]]
    tissue = kind == OverviewKind.TISSUE
    found &= tissue
    share = found.sum() / max(1, tissue.sum())
    if share > MAX_BLUR_SHARE:
        return [f"{share:.0%} of the tissue looks out of focus; kept, please check"]
    kind[found] = OverviewKind.BLUR
    return []
