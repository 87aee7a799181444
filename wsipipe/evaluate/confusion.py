"""Confusion matrices: pixel counts by class in the truth and class in the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.labels import IGNORE

_STRIP_PX = 1 << 20
"""Pixels counted at a time: bounds the 64-bit copy that counting makes."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | Floats
"""Whole counts, or counts weighted by a bootstrap resample."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixel counts of one answer over a set of slides; `add` counts more pixels into it.

    names: the K named classes; with class 0 (none of them) there are C = K + 1. counts: int64 [C, C + 1], rows truth,
    columns answer, the last column the pixels that the answer does not predict (255).
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, names: tuple[str, ...]) -> Confusion:
        """All counts 0."""
        return cls(names, np.zeros((len(names) + 1, len(names) + 2), np.int64))

    @classmethod
    def of(cls, names: tuple[str, ...], matrix: NDArray[np.int64]) -> Confusion:
        """From counts int64 [C, C] (truth, answer) of an answer that predicts every pixel."""
        return cls(names, np.concatenate([matrix, np.zeros((len(matrix), 1), np.int64)], 1))

    def add(self, truth: NDArray[np.uint8], answer: NDArray[np.uint8]) -> None:
        """Count the pixels of two masks of one shape, except where truth is 255. ValueError for values above K."""
        size = len(self.names) + 1
        invalid = (answer >= size) & (answer != IGNORE)
        if invalid.any():
            found = ", ".join(map(str, np.unique(answer[invalid])))
            raise ValueError(f"the mask holds the values {found}; expected 0..{size - 1} or 255")
        folded = np.where(answer == IGNORE, np.uint8(size), answer)
        self.counts[...] += count_pairs(truth, folded, (size, size + 1))

    def plus(self, other: Confusion) -> Confusion:
        """The counts of both sets of pixels together."""
        if other.names != self.names:
            raise ValueError(f"classes {self.names} and {other.names} cannot be pooled")
        return Confusion(self.names, self.counts + other.counts)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """N[g, p], int64 [C, C] (truth, answer); pixels that are not predicted count as class 0."""
        matrix = self.counts[:, :-1].copy()
        matrix[:, 0] += self.counts[:, -1]
        return matrix

    @property
    def pixels(self) -> int:
        """Pixels counted."""
        return int(self.counts.sum())

    @property
    def unpredicted(self) -> int:
        """Pixels counted that the answer does not predict."""
        return int(self.counts[:, -1].sum())

    @property
    def truth_px(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth: int64 [C]."""
        return np.asarray(self.counts.sum(1))


def count_pairs(truth: NDArray[np.uint8], answer: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often each pair (truth, answer) occurs where truth is not 255: int64 `shape`.

    Raises ValueError for values beyond `shape`.
    """
    if truth.shape != answer.shape:
        raise ValueError(f"truth {truth.shape} and answer {answer.shape} have different shapes")
    rows, columns = shape
    out = np.zeros(rows * columns, np.int64)
    flat_truth, flat_answer = truth.reshape(-1), answer.reshape(-1)
    for start in range(0, flat_truth.size, _STRIP_PX):
        t, a = flat_truth[start : start + _STRIP_PX], flat_answer[start : start + _STRIP_PX]
        scored = t != IGNORE
        t, a = t[scored].astype(np.int64), a[scored]
        for name, values, end in (("truth", t, rows), ("answer", a, columns)):
            if values.max(initial=0) >= end:
                raise ValueError(
                    f"the {name} holds the value {values.max()}; expected 0..{end - 1}, or 255 in the truth"
                )
        out += np.bincount(t * columns + a, minlength=rows * columns)
    return out.reshape(shape)
