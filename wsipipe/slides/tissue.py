"""Tell tissue from glass on a coarse view: Otsu's threshold on optical density, small pieces and holes removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from wsipipe.geometry import Grid, Window
from wsipipe.slides.base import Slide
from wsipipe.slides.resample import read_window

TISSUE_OD = (0.06, 0.12)
"""Range of the threshold on the mean optical density over RGB: below it glass is uneven, above it stroma is stained."""

DARK_SLIDE = 60
"""Median brightness (0..255) below which the slide is not bright-field: fluorescence on black."""


@dataclass(frozen=True)
class TissueMask:
    """bool [h, w], one pixel per `step_px` working pixels; `note` says why it is empty, if it is."""

    mask: NDArray[np.bool_]
    step_px: float
    note: str = ""

    def fraction(self, window: Window) -> float:
        """Share of `window` (working px) that is tissue, 0..1; outside the slide counts as glass."""
        cells = self.fractions(np.array([[window.y_px, window.x_px]]), (window.height_px, window.width_px))
        return float(cells[0])

    def fractions(self, yx_px: NDArray[np.int64], size_px: tuple[int, int]) -> NDArray[np.float32]:
        """Tissue share of many windows of one (height, width): yx_px int [N, 2] -> float32 [N]."""
        integral = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        np.cumsum(np.cumsum(self.mask, axis=0), axis=1, out=integral[1:, 1:])
        y = np.clip(np.stack([yx_px[:, 0], yx_px[:, 0] + size_px[0]]) / self.step_px, 0, self.mask.shape[0])
        x = np.clip(np.stack([yx_px[:, 1], yx_px[:, 1] + size_px[1]]) / self.step_px, 0, self.mask.shape[1])
        at = [[ndimage.map_coordinates(integral, [y[i], x[j]], order=1) for j in (0, 1)] for i in (0, 1)]
        area = at[1][1] - at[0][1] - at[1][0] + at[0][0]
        share = np.clip(area * self.step_px**2 / (size_px[0] * size_px[1]), 0, 1)
        return np.asarray(share, np.float32)

    def pixels(self, window: Window) -> NDArray[np.uint8]:
        """1 tissue, 0 glass for each working pixel of `window`: uint8 [h, w] (nearest mask pixel)."""
        y = ((window.y_px + np.arange(window.height_px) + 0.5) / self.step_px).astype(np.intp)
        x = ((window.x_px + np.arange(window.width_px) + 0.5) / self.step_px).astype(np.intp)
        y, x = (np.clip(v, 0, n - 1) for v, n in zip((y, x), self.mask.shape, strict=True))
        return self.mask[np.ix_(y, x)].astype(np.uint8)


def find_tissue(slide: Slide, grid: Grid, mpp: float, min_area_um2: float) -> TissueMask:
    """The tissue of a slide, seen at about `mpp` um/px (a whole multiple of the working mpp)."""
    step_px = max(1, round(grid.px_of_um(mpp)))
    width, height = (-(-n // step_px) for n in grid.size_px)
    rgb = np.concatenate(
        [
            read_window(slide, grid, Window(0, y, width, min(512, height - y)), factor=step_px)
            for y in range(0, height, 512)
        ]
    )
    mask, note = tissue_of(rgb, min_area_px=min_area_um2 / (step_px * sum(grid.mpp) / 2) ** 2)
    return TissueMask(mask, step_px, note)


def tissue_of(rgb: NDArray[np.uint8], min_area_px: float) -> tuple[NDArray[np.bool_], str]:
    """Tissue of a coarse view: uint8 [h, w, 3] -> bool [h, w], and a note where there is none."""
    if np.median(rgb) < DARK_SLIDE:
        return np.zeros(rgb.shape[:2], bool), "dark background: not a bright-field slide"
    od = -np.log((rgb.astype(np.float32) + 1) / 256).mean(-1)
    black = rgb.max(-1) < 30
    seen = ~black & (rgb.min(-1) < 255)  # pure white was never scanned
    # glass as grey as 220 is met: what the clearest twentieth has beyond white glass's 0.05 is not tissue's
    od -= np.clip(np.quantile(od[seen], 0.05) - 0.05, 0, 0.1) if seen.any() else 0
    od[ndimage.binary_dilation(black)] = 0  # black borders and scanner frames, with their rim, are not tissue
    od = ndimage.gaussian_filter(od, 1)
    if od.max() <= TISSUE_OD[0]:
        return np.zeros(od.shape, bool), "nothing darker than glass"
    # Otsu's threshold lies midway between glass and the common stain; half of it keeps pale stroma
    threshold = float(np.clip(threshold_otsu(np.minimum(od, 1.0)) / 2, *TISSUE_OD))
    mask = _drop_small(od > threshold, min_area_px)
    if mask.any():
        mask = ~_drop_small(~mask, min_area_px)
    return mask, "" if mask.any() else f"no piece of tissue as large as {min_area_px:.0f} px of the overview"


def _drop_small(mask: NDArray[np.bool_], min_area_px: float) -> NDArray[np.bool_]:
    """Connected pieces of at least `min_area_px` pixels."""
    pieces, n = ndimage.label(mask)
    keep = np.bincount(pieces.ravel(), minlength=n + 1) >= min_area_px
    keep[0] = False
    return np.asarray(keep[pieces])
