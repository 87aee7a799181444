"""One pooled confusion matrix, and every pixel score that is made from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.labels import IGNORE

_STRIP = 1 << 20
"""Pixels counted at a time: bounds the 64-bit copy that counting makes."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | Floats
"""Whole counts, or counts weighed by a resample."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixel counts of one answer over a whole set; `add` counts more pixels into it.

    names: the K named classes; with class 0 (none of them) there are C = K + 1. counts: int64 [C, C + 1], rows truth,
    columns prediction, the last column the pixels not predicted (255). Scores are float64 [C], nan where undefined;
    they take a pixel that is not predicted for class 0.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, names: tuple[str, ...]) -> Confusion:
        """Nothing counted yet."""
        return cls(names, np.zeros((len(names) + 1, len(names) + 2), np.int64))

    @classmethod
    def of(cls, names: tuple[str, ...], matrix: NDArray[np.int64]) -> Confusion:
        """From counts int64 [C, C] (truth, answer) of an answer that predicts every pixel."""
        return cls(names, np.concatenate([matrix, np.zeros((len(matrix), 1), np.int64)], 1))

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count pixels of two masks of one shape; truth 255 is not counted. ValueError for values beyond K."""
        size = len(self.names) + 1
        strange = (prediction >= size) & (prediction != IGNORE)
        if strange.any():
            found = ", ".join(map(str, np.unique(prediction[strange])))
            raise ValueError(f"the prediction holds the values {found}; expected 0..{size - 1} or 255")
        folded = np.where(prediction == IGNORE, np.uint8(size), prediction)
        self.counts[...] += count_pairs(truth, folded, (size, size + 1))

    def plus(self, other: Confusion) -> Confusion:
        """Both sets of pixels together."""
        if other.names != self.names:
            raise ValueError(f"classes {self.names} and {other.names} cannot be pooled")
        return Confusion(self.names, self.counts + other.counts)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """N[g, p], int64 [C, C]; pixels not predicted are in column 0."""
        matrix = self.counts[:, :-1].copy()
        matrix[:, 0] += self.counts[:, -1]
        return matrix

    @property
    def pixels(self) -> int:
        """Pixels counted."""
        return int(self.counts.sum())

    @property
    def unpredicted(self) -> int:
        """Pixels counted that the prediction says nothing of."""
        return int(self.counts[:, -1].sum())

    @property
    def truth_px(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth: int64 [C]."""
        return np.asarray(self.counts.sum(1))

    @property
    def iou(self) -> Floats:
        """Intersection over union, see `iou_of`."""
        return iou_of(self.matrix)

    @property
    def dice(self) -> Floats:
        """Dice, also called F1, see `dice_of`."""
        return dice_of(self.matrix)

    @property
    def precision(self) -> Floats:
        """Share of the predicted pixels that are right: N_cc / col_c."""
        hit, _, answer = _sums(self.matrix)
        return _ratio(hit, answer)

    @property
    def recall(self) -> Floats:
        """Share of the true pixels that are found (sensitivity): N_cc / row_c."""
        hit, truth, _ = _sums(self.matrix)
        return _ratio(hit, truth)

    @property
    def miou(self) -> float:
        """Mean IoU over all classes that occur, class 0 included."""
        return float(mean_of(self.iou))

    @property
    def miou_named(self) -> float:
        """Mean IoU over the named classes that occur."""
        return float(mean_of(self.iou[1:]))

    @property
    def frequency_weighted_iou(self) -> float:
        """Sum of (row_c / sum row) IoU_c: common classes weigh more."""
        return _weighted(self.iou, self.truth_px.astype(np.float64))

    @property
    def inverse_log_weighted_iou(self) -> float:
        """The "fIoU" of the HistoSegNet code: sum of w_c IoU_c with w_c proportional to 1 / ln row_c.

        Rare classes weigh more. Classes of fewer than two true pixels, where the formula divides by zero, weigh 0.
        """
        weights = np.zeros(len(self.names) + 1)
        common = self.truth_px > 1
        weights[common] = 1 / np.log(self.truth_px[common])
        return _weighted(self.iou, weights)

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels that are right."""
        return float(accuracy_of(self.matrix))


def iou_of(matrix: Counts) -> Floats:
    """Intersection over union, N_cc / (row_c + col_c - N_cc): [.., C, C] (truth, answer) -> float64 [.., C].

    Undefined (nan) where a class is neither in the truth nor in the answer.
    """
    hit, truth, answer = _sums(matrix)
    return _ratio(hit, truth + answer - hit)


def dice_of(matrix: Counts) -> Floats:
    """Dice, 2 N_cc / (row_c + col_c): [.., C, C] (truth, answer) -> float64 [.., C]; nan where undefined."""
    hit, truth, answer = _sums(matrix)
    return _ratio(2 * hit, truth + answer)


def accuracy_of(matrix: Counts) -> Floats:
    """Share of the pixels that are right: [.., C, C] (truth, answer) -> float64 [..]; nan where there are none."""
    hit, truth, _ = _sums(matrix)
    return _ratio(hit.sum(-1), truth.sum(-1))


def mean_of(values: Floats) -> Floats:
    """Mean of what is defined along the last axis: [.., n] -> float64 [..]; nan where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1).astype(np.float64))


def count_pairs(truth: NDArray[np.uint8], answer: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often each (truth, answer) occurs where truth is not 255: int64 `shape`. ValueError for values beyond it."""
    if truth.shape != answer.shape:
        raise ValueError(f"truth {truth.shape} and answer {answer.shape} have different shapes")
    rows, columns = shape
    out = np.zeros(rows * columns, np.int64)
    flat_truth, flat_answer = truth.reshape(-1), answer.reshape(-1)
    for start in range(0, flat_truth.size, _STRIP):
        t, a = flat_truth[start : start + _STRIP], flat_answer[start : start + _STRIP]
        scored = t != IGNORE
        t, a = t[scored].astype(np.int64), a[scored]
        for name, values, end in (("truth", t, rows), ("answer", a, columns)):
            if values.max(initial=0) >= end:
                raise ValueError(
                    f"the {name} holds the value {values.max()}; expected 0..{end - 1}, or 255 in the truth"
                )
        out += np.bincount(t * columns + a, minlength=rows * columns)
    return out.reshape(shape)


def _sums(matrix: Counts) -> tuple[Floats, Floats, Floats]:
    """N_cc, row_c and col_c: [.., C, C] -> float64 [.., C] each."""
    counts = np.asarray(matrix, np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)


def _ratio(over: Floats, under: Floats) -> Floats:
    """The quotient, nan where `under` is 0."""
    return np.asarray(np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0))


def _weighted(values: Floats, weights: Floats) -> float:
    """Mean of `values` by `weights`; undefined values have weight 0."""
    total = weights.sum()
    return float(np.nansum(values * weights) / total) if total > 0 else float("nan")
