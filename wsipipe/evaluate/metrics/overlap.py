"""Overlap of answer and truth per class, and its means over the classes.

N[g, p] are pixels of class g in the truth and class p in the answer; row_c = sum_p N[c, p], col_c = sum_g N[g, c].
"""

from __future__ import annotations

import numpy as np

from wsipipe.evaluate.confusion import Counts, Floats
from wsipipe.evaluate.metrics import Metric


def iou_of(matrix: Counts) -> Floats:
    """Intersection over union, N_cc / (row_c + col_c - N_cc); nan where a class is in neither truth nor answer."""
    hit, truth, answer = _sums(matrix)
    return _ratio(hit, truth + answer - hit)


def dice_of(matrix: Counts) -> Floats:
    """Dice, also called F1: 2 N_cc / (row_c + col_c)."""
    hit, truth, answer = _sums(matrix)
    return _ratio(2 * hit, truth + answer)


def precision_of(matrix: Counts) -> Floats:
    """Fraction of the predicted pixels that are correct: N_cc / col_c."""
    hit, _, answer = _sums(matrix)
    return _ratio(hit, answer)


def recall_of(matrix: Counts) -> Floats:
    """Fraction of the true pixels that are found (sensitivity): N_cc / row_c."""
    hit, truth, _ = _sums(matrix)
    return _ratio(hit, truth)


def miou_of(matrix: Counts) -> Floats:
    """Mean IoU over all classes that occur, background included."""
    return _mean(iou_of(matrix))


def named_miou_of(matrix: Counts) -> Floats:
    """Mean IoU over the named classes that occur, without background."""
    return _mean(iou_of(matrix)[..., 1:])


def frequency_weighted_iou_of(matrix: Counts) -> Floats:
    """Sum of (row_c / sum row) IoU_c: frequent classes have more weight."""
    _, truth, _ = _sums(matrix)
    return _weighted(iou_of(matrix), truth)


def inverse_log_weighted_iou_of(matrix: Counts) -> Floats:
    """The "fIoU" of the HistoSegNet code: sum of w_c IoU_c with w_c proportional to 1 / ln row_c.

    Rare classes have more weight. A class with fewer than two true pixels, where the formula divides by zero, has
    weight 0.
    """
    _, truth, _ = _sums(matrix)
    common = truth > 1
    weights = np.divide(1, np.log(np.where(common, truth, 2)), out=np.zeros_like(truth), where=common)
    return _weighted(iou_of(matrix), weights)


def accuracy_of(matrix: Counts) -> Floats:
    """Fraction of the pixels that are correct."""
    hit, truth, _ = _sums(matrix)
    return _ratio(hit.sum(-1), truth.sum(-1))


METRICS = (
    Metric("iou", "IoU", iou_of),
    Metric("dice", "Dice", dice_of),
    Metric("precision", "precision", precision_of),
    Metric("recall", "recall", recall_of),
    Metric("miou", "mean IoU", miou_of, pooled=True),
    Metric("miou_named", "mean IoU without background", named_miou_of, pooled=True),
    Metric("frequency_weighted_iou", "frequency-weighted IoU", frequency_weighted_iou_of, pooled=True),
    Metric(
        "inverse_log_weighted_iou",
        "IoU weighted by 1 / log frequency (HistoSegNet)",
        inverse_log_weighted_iou_of,
        pooled=True,
    ),
    Metric("accuracy", "pixel accuracy", accuracy_of, pooled=True),
)


def _sums(matrix: Counts) -> tuple[Floats, Floats, Floats]:
    """N_cc, row_c and col_c: [.., C, C] -> float64 [.., C] each."""
    counts = np.asarray(matrix, np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)


def _ratio(over: Floats, under: Floats) -> Floats:
    """The quotient, nan where `under` is 0."""
    return np.asarray(np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0))


def _mean(values: Floats) -> Floats:
    """Mean of the defined values along the last axis; nan where none is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1).astype(np.float64))


def _weighted(values: Floats, weights: Floats) -> Floats:
    """Weighted mean along the last axis; undefined values count as 0."""
    return _ratio(np.nansum(values * weights, -1), weights.sum(-1))
