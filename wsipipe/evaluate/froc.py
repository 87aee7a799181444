"""Lesion detection by the rules of Camelyon16: which detections hit which lesion, and the FROC curve.

Rules (the organisers' evaluation code, Ehteshami Bejnordi et al. 2017): truth at about 7.8 um/px (level 5 of a 0.243
um/px slide); tumour dilated by 37.5 um, holes filled, components of 8 neighbours labelled; a component whose major axis
is below 275 um (isolated tumour cells) is neither a hit nor a false positive; the score of a lesion is its highest hit;
false positives are averaged over all slides; the FROC score is the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false
positives per slide.
Two deviations: a lesion without a hit is missed at every threshold (the organisers assign it probability 0 and drop the
lowest threshold, which is a real one when every lesion is hit), and detections where the truth is ignore are neither
hits nor false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops_table

from wsipipe.evaluate.confusion import Floats

LESION_MPP = 0.243 * 2**5
DILATION_UM = 37.5
ITC_UM = 275.0
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Detections:
    """Points of one class on one slide: `xy_px0` float64 [n, 2] in level-0 px, `p` float64 [n] their scores, 0..1."""

    xy_px0: Floats
    p: Floats

    @classmethod
    def none(cls) -> Detections:
        """No points."""
        return cls(np.zeros((0, 2)), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one class on one slide.

    component: int [h, w], 0 none, else the number of the component. axis_um: float64 [n] major axis of components 1..n.
    """

    component: NDArray[np.int32]
    axis_um: Floats

    @property
    def counted(self) -> Mask:
        """Which components are lesions, i.e. not isolated tumour cells: bool [n]."""
        return np.asarray(self.axis_um >= ITC_UM)


@dataclass(frozen=True, eq=False)
class Hits:
    """The matches of one slide.

    lesions: float64 [lesions], the highest p that hits each; nan without a hit. false: the p of false positives.
    itc: number of components too small to count.
    """

    lesions: Floats
    false: Floats
    itc: int


@dataclass(frozen=True, eq=False)
class Froc:
    """The curve by descending threshold: false positives per slide and sensitivity, float64 [thresholds + 1].

    interval: the 95 % interval of `score`, None with too few groups.
    """

    false_positives: Floats
    sensitivity: Floats
    lesions: int
    itc: int
    slides: int
    interval: tuple[float, float] | None = None

    @property
    def at(self) -> dict[float, float]:
        """Sensitivity at each of `FALSE_POSITIVES`, linearly interpolated; nan without lesions."""
        return {f: float(np.interp(f, self.false_positives, self.sensitivity)) for f in FALSE_POSITIVES}

    @property
    def score(self) -> float:
        """Mean sensitivity at `FALSE_POSITIVES`."""
        return float(np.mean(list(self.at.values())))


def find_lesions(mask: Mask, mpp: tuple[float, float]) -> Lesions:
    """The lesions of a truth mask bool [h, w] at `mpp` (x, y) um/px."""
    spacing = (mpp[1], mpp[0])
    if not mask.any():
        return Lesions(np.zeros(mask.shape, np.int32), np.zeros(0))
    near = ndimage.distance_transform_edt(~mask, sampling=spacing) < DILATION_UM
    component = label(ndimage.binary_fill_holes(near), connectivity=2).astype(np.int32)
    axis_um = regionprops_table(component, properties=("axis_major_length",), spacing=spacing)["axis_major_length"]
    return Lesions(component, np.asarray(axis_um, np.float64))


def match(lesions: Lesions, rows: NDArray[np.intp], cols: NDArray[np.intp], p: Floats, ignored: Mask) -> Hits:
    """Match detections at (rows, cols) of the lesions' frame; `ignored` bool [h, w]: where truth is ignore.

    Detections outside the frame are false positives.
    """
    height, width = lesions.component.shape
    within = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    at = np.where(within, rows, 0), np.where(within, cols, 0)
    component = np.where(within, lesions.component[at], 0)
    best = np.full(len(lesions.axis_um) + 1, -np.inf)
    np.maximum.at(best, component, p)
    best = best[1:][lesions.counted]
    false = p[(component == 0) & ~(within & ignored[at])]
    return Hits(np.where(np.isinf(best), np.nan, best), false, int((~lesions.counted).sum()))


def froc(hits: Sequence[Hits]) -> Froc:
    """The curve over all slides; sensitivity is nan where no slide has a lesion."""
    lesions, false = (np.concatenate([getattr(h, k) for h in hits]) for k in ("lesions", "false"))
    hit = lesions[~np.isnan(lesions)]
    thresholds = np.unique(np.concatenate([hit, false]))[::-1]
    fp, tp = (_at_least(values, thresholds) for values in (false, hit))
    with np.errstate(invalid="ignore"):
        sensitivity = np.concatenate([[0], tp]) / np.float64(len(lesions))
    return Froc(np.concatenate([[0], fp]) / len(hits), sensitivity, len(lesions), sum(h.itc for h in hits), len(hits))


def _at_least(values: Floats, thresholds: Floats) -> NDArray[np.intp]:
    """How many values reach each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
