"""Tell tissue from glass, pen, black borders and out-of-focus regions on an overview of a slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsipipe.annotations.geojson import SUFFIXES as GEOJSON_SUFFIXES
from wsipipe.annotations.geojson import read_geojson
from wsipipe.annotations.mask_image import read_mask
from wsipipe.annotations.polygons import rasterise
from wsipipe.errors import check
from wsipipe.geometry import Grid
from wsipipe.tissue.overview import (
    BLACK,
    BLUR,
    GLASS,
    OD_UNITS,
    PEN,
    TISSUE,
    Bytes,
    Frame,
    View,
    histogram,
    quantile,
    strips,
    survey,
)

TISSUE_OD = (0.06, 0.12)
"""Range of the threshold on the mean optical density over RGB: below it glass is uneven, above it stroma is stained."""

DARK_SLIDE = 60
"""Median brightness (0..255) below which the slide is not bright-field: fluorescence on black."""

LEAST_PEN_UM2 = 20_000
"""A stroke is at least this large (140 um square); scattered pixels of ink colour are pigment or dirt."""

MUCH_PEN, MOST_PEN = 0.3, 0.8
"""Shares of the stained pixels in colours of ink: above the first a person should look, above the second it is a stain
(trichrome, Alcian blue) and kept. Thick strokes around a biopsy reach a half."""

SHARP_RATIO = 0.125
"""Squared contrast over NEAR_UM as a share of that over 4 times as far: 0.22 to 0.7 in sharp H&E, 1/16 in a slope.

A Gaussian blur of 4 um brings sharp tissue to 0.09..0.15, one of 6 um below 0.12.
"""

LEAST_CONTRAST = 54.0
"""Mean squared difference of R + G + B (0..765) under which a block is too even to be called sharp or blurred."""

_WINDOWS = 4096
"""Windows looked at together: each needs some 20 numbers while its share of tissue is counted."""

MOST_BLUR = 0.9
"""A slide more of whose tissue looks out of focus is kept: it would be empty, and a smooth scan looks the same."""


@dataclass(frozen=True)
class TissueRules:
    """How tissue is looked for: overview at about `mpp` um/px, smallest piece and hole, pen and blur left out if `qc`.

    Ink and special stains share colours: on trichrome or Alcian blue slides `qc` may take stain for pen.
    """

    mpp: float = 8.0
    min_area_um2: float = 10_000
    qc: bool = True

    def __post_init__(self) -> None:
        check(0 < self.mpp < float("inf"), f"tissue mpp {self.mpp:g}: a resolution above 0 um/px is needed, e.g. 8")
        check(self.min_area_um2 >= 0, f"smallest area {self.min_area_um2:g} um2: 0 or more is needed, e.g. 10000")


@dataclass(frozen=True)
class TissueMask:
    """What the overview shows: `kind` uint8 [h, w] (GLASS .. BLACK), one pixel for `step_px` x `step_px` working px.

    `note` says why there is no tissue, or what a person should look at; empty if there is nothing to say.
    """

    kind: Bytes
    step_px: int
    note: str = ""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where there is tissue: bool [h, w], made anew at each call."""
        return np.asarray(self.kind == TISSUE)

    def shares(self) -> dict[str, float]:
        """Shares 0..1 of what is neither glass nor black that pen and blur took away."""
        counts = histogram(self.kind)
        matter = max(1, int(counts[[TISSUE, PEN, BLUR]].sum()))
        return {"pen": int(counts[PEN]) / matter, "blur": int(counts[BLUR]) / matter}

    def fractions(self, yx_px: NDArray[np.int64], size_px: tuple[int, int]) -> NDArray[np.float32]:
        """Tissue share of many windows of one (height, width): yx_px int [N, 2] -> float32 [N] 0..1.

        Pixels cut by a border count in part; outside the slide counts as glass.
        """
        if len(yx_px) > _WINDOWS:
            parts = (yx_px[i : i + _WINDOWS] for i in range(0, len(yx_px), _WINDOWS))
            return np.concatenate([self.fractions(part, size_px) for part in parts])
        height, width = self.kind.shape
        y = np.clip(np.stack([yx_px[:, 0], yx_px[:, 0] + size_px[0]]) / self.step_px, 0, height)
        x = np.clip(np.stack([yx_px[:, 1], yx_px[:, 1] + size_px[1]]) / self.step_px, 0, width)
        above = y.astype(np.intp)
        lines = np.unique([above, np.minimum(above + 1, height)])  # the rows of the integral image that are needed
        integral = np.zeros((len(lines), width + 1), np.int32)
        for i, (first, last) in enumerate(pairwise([0, *lines.tolist()])):
            integral[i, 1:] = (self.kind[first:last] == TISSUE).sum(0, dtype=np.int32).cumsum()
        np.cumsum(integral, axis=0, out=integral)
        y += np.searchsorted(lines, above) - above
        corners = ((1, 1, 1), (0, 0, 1), (0, 1, -1), (1, 0, -1))
        area = sum(s * ndimage.map_coordinates(integral, [y[i], x[j]], np.float64, order=1) for i, j, s in corners)
        return np.asarray(np.clip(area * self.step_px**2 / (size_px[0] * size_px[1]), 0, 1), np.float32)


def find_tissue(view: View, grid: Grid, rules: TissueRules) -> TissueMask:
    """The tissue of a slide.

    Threshold: half of Otsu's on mean optical density, within TISSUE_OD, over glass as it is on this slide.
    Pen: ink that no mixture of haematoxylin, eosin and DAB can look like (see `_ink`).
    Blur: where two points NEAR_UM apart differ too little beside two points 4 times as far apart. It sees a defocus of
    about 6 um (Gaussian) and more, not the few micrometres that already cost nuclei their texture, and nothing in
    regions without contrast; on overviews coarser than 8 um/px, only proportionally stronger blur.
    """
    frame = Frame.plan(grid, rules.mpp)
    od, kind, brightness, focus = survey(view, grid, frame, rules.qc)
    if quantile(brightness, 0.5) < DARK_SLIDE:
        return TissueMask(np.zeros_like(kind), frame.step_px, "dark background: not a bright-field slide")
    notes = _settle_marks(kind, od, LEAST_PEN_UM2 / frame.mpp**2)
    od = _smoothed(_beyond_glass(od, kind))
    tissue = od > _threshold(histogram(od))
    del od
    if not tissue.any():
        return TissueMask(kind, frame.step_px, "nothing darker than glass")
    min_area_px = rules.min_area_um2 / frame.mpp**2
    _drop_small(tissue, min_area_px)
    if not tissue.any():
        return TissueMask(kind, frame.step_px, f"no piece of tissue as large as {min_area_px:.0f} px of the overview")
    np.logical_not(tissue, out=tissue)
    _drop_small(tissue, min_area_px)  # holes
    kind[(kind == GLASS) & ~tissue] = TISSUE
    if rules.qc:
        notes += _mark_blur(kind, focus, frame.block)
    return TissueMask(kind, frame.step_px, "; ".join(notes))


def tissue_from_mask(path: Path, grid: Grid, mpp: float, shown_from_px0: tuple[int, int] | None = None) -> TissueMask:
    """The user's own mask, seen at about `mpp` um/px: PNG or TIFF (not 0 is tissue), or polygons of QuPath (GeoJSON).

    QuPath counts from `shown_from_px0`, the corner of the scanner's bounds; by default that of the frame. Raises
    SlideError where the file is not such a mask, or not one of this slide.
    """
    frame = Frame.plan(grid, mpp)
    coarse = replace(grid, mpp=(grid.mpp[0] * frame.step_px, grid.mpp[1] * frame.step_px), scale=frame.scale)
    if path.suffix.lower() in GEOJSON_SUFFIXES:
        inside = rasterise(
            read_geojson(path, shown_from_px0 or grid.origin_px0), frame.shape, frame.scale, grid.origin_px0
        )
    else:
        inside = read_mask(path, coarse) != 0
        # pixels that reach over the border of the slide take after their neighbours
        inside = np.pad(inside, [(0, n - m) for n, m in zip(frame.shape, inside.shape, strict=True)], mode="edge")
    kind = np.where(inside, np.uint8(TISSUE), np.uint8(GLASS))
    return TissueMask(kind, frame.step_px, "" if inside.any() else f"no tissue in the mask {path.name}")


def _settle_marks(marks: Bytes, od: Bytes, least_pen_px: float) -> list[str]:
    """Grow black, then pen, by one pixel, over their rims, and drop pen that is none, in place; what to note."""
    marks[_grown(marks == BLACK)] = BLACK
    strokes = _grown(marks == PEN) & (marks != BLACK)
    marks[strokes] = GLASS
    if strokes.any():
        _drop_small(strokes, least_pen_px)
    marks[strokes] = PEN
    share = strokes.sum() / max(1, ((od > TISSUE_OD[1] * OD_UNITS) & (marks != BLACK)).sum())
    if share > MOST_PEN:
        marks[strokes] = GLASS
        return [f"{min(share, 1):.0%} of what is stained has colours of ink; taken for a stain and kept"]
    return [f"pen over {share:.0%} of what is stained; if that is a stain, --no-qc"] if share > MUCH_PEN else []


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask spread by one pixel to all sides: bool [h, w] both."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    out = rows.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


def _beyond_glass(od: Bytes, marks: Bytes) -> Bytes:
    """Optical density less what glass here absorbs beyond the 0.05 of white glass; 0 under marks. In place.

    Glass as grey as 220 is met; the clearest twentieth of what was scanned (pure white never was) is glass.
    """
    counts = histogram(od, marks == GLASS)
    counts[0] = 0
    excess = quantile(counts, 0.05) / OD_UNITS - 0.05 if counts.any() else 0.0
    level = np.uint8(round(min(max(excess, 0.0), 0.1) * OD_UNITS))
    np.subtract(od, np.minimum(od, level), out=od)
    od[marks != GLASS] = 0
    return od


def _smoothed(od: Bytes) -> Bytes:
    """Gaussian of 1 px, in strips: uint8 [h, w] both."""
    out, reach = np.empty_like(od), 4
    for rows in strips(od.shape[0]):
        first = max(0, rows.start - reach)
        part = ndimage.gaussian_filter(od[first : rows.stop + reach].astype(np.float32), 1)
        out[rows] = np.rint(part[rows.start - first : rows.stop - first])
    return out


def _threshold(counts: NDArray[np.int64]) -> int:
    """From int64 [256], the counts of optical densities in 1/255: tissue lies above.

    Otsu's threshold lies midway between glass and the common stain; half of it keeps pale stroma.
    """
    below, moment = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    spread = below * (below[-1] - below)
    between = np.square(moment[-1] / below[-1] * below - moment) / np.maximum(spread, 1)
    low, high = TISSUE_OD
    return int(np.clip(np.argmax(between) / 2, low * OD_UNITS, high * OD_UNITS))


def _drop_small(mask: NDArray[np.bool_], min_area_px: float) -> None:
    """Take connected pieces of less than `min_area_px` pixels out of bool [h, w], in place."""
    try:
        pieces = np.empty(mask.shape, np.uint16)
        n = ndimage.label(mask, output=pieces)
    except RuntimeError:  # more pieces than it can number
        pieces = np.empty(mask.shape, np.int32)
        n = ndimage.label(mask, output=pieces)
    area = np.zeros(n + 1, np.int64)
    for rows in strips(len(pieces)):
        area += np.bincount(pieces[rows].ravel(), minlength=n + 1)
    keep = area >= min_area_px
    keep[0] = False
    for rows in strips(len(pieces)):
        mask[rows] = keep[pieces[rows]]


def _mark_blur(kind: Bytes, focus: NDArray[np.float32], block: int) -> list[str]:
    """Turn TISSUE that is out of focus into BLUR, in place; what to note."""
    near, far = focus
    vote = np.where(near < SHARP_RATIO * far, 1, -1) * (far > LEAST_CONTRAST)
    blurred = ndimage.convolve(vote, np.ones((3, 3), np.int8), mode="nearest") > 0
    found = blurred.repeat(block, 0)[: kind.shape[0]].repeat(block, 1)[:, : kind.shape[1]]
    found &= kind == TISSUE
    share = found.sum() / max(1, (kind == TISSUE).sum())
    if share > MOST_BLUR:
        return [f"{share:.0%} of the tissue looks out of focus; kept, look at it"]
    kind[found] = BLUR
    return []
