"""Counts of one slide, its masks and scores against the truth; shard by shard, so that no whole mask is in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.config.options import EvaluateConfig
from wsipipe.errors import StoreError
from wsipipe.evaluate.confusion import Confusion, Floats, count_pairs
from wsipipe.evaluate.detections import find_detections
from wsipipe.evaluate.froc import LESION_MPP, Detections, Hits, find_lesions, match
from wsipipe.evaluate.slide_level import LEVELS, slide_scores
from wsipipe.geometry import Window, ceil_div
from wsipipe.labels import IGNORE, Tissue
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

Bytes = NDArray[np.uint8]
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SlideCounts:
    """Counts of one slide of K named classes, C = K + 1.

    confusion: of the masks, over the scored pixels. tissue: int64 [C, 2], truth against (not tissue, tissue) over the
    same pixels. truth_px: int64 [C], the truth as drawn, glass included. glass_px: scored pixels that are glass (with
    glass `ignored`: those left out). drawn_on_glass_px, answered_on_glass_px: pixels of named classes on glass in the
    truth and in the masks. ignored_px: pixels where the truth is ignore. score_px: int64 [K, LEVELS, 3], tissue px by
    stored score, of another class, of this class, ignore; None without scores. hits, detections: per class, None
    without detections.
    """

    confusion: Confusion
    tissue: NDArray[np.int64]
    truth_px: NDArray[np.int64]
    glass_px: int
    drawn_on_glass_px: int
    answered_on_glass_px: int
    ignored_px: int
    score_px: NDArray[np.int64] | None
    hits: list[Hits] | None
    detections: list[Detections] | None

    def slide_scores(self, top: float) -> Floats:
        """The slide's score for each class: float64 [K], see `slide_level.slide_scores`; nan without scores."""
        if self.score_px is None:
            return np.full(len(self.confusion.names), np.nan)
        return slide_scores(self.score_px.sum(-1), top)


def count_slide(
    store: SlideStore,
    config: EvaluateConfig,
    names: Names,
    read_truth: Callable[[Window], Bytes],
    detections: list[Detections] | None = None,
) -> SlideCounts:
    """Count one slide. `detections` per class; default: the maxima of the scores."""
    counter = _Counter(store, config, names)
    for _, window in shard_windows(store.labels(config.masks).spec):
        truth = read_truth(window)
        try:
            counter.add(window, truth)
        except ValueError as error:
            raise StoreError(f"{store.path}: labels/{config.masks}: {error}; compute it again") from None
    if detections is None and counter.scores is not None:
        detections = find_detections(store, config.masks, config.nms_um)
    return counter.result(detections)


class _Counter:
    """The counts of one slide so far; `add` takes the shards one by one."""

    def __init__(self, store: SlideStore, config: EvaluateConfig, names: Names) -> None:
        self.store, self.glass, self.names = store, config.glass, names
        self.answer, self.tissue_mask = store.labels(config.masks), store.labels("tissue")
        self.confusion = Confusion.empty(names)
        self.tissue = np.zeros((len(names) + 1, 2), np.int64)
        self.truth_px = np.zeros(len(names) + 1, np.int64)
        self.glass_px = self.drawn = self.answered = self.ignored = 0
        self.scores, self.stride_px = None, 1
        if config.masks in store.names("scores"):
            meta = store.attributes("scores", config.masks)
            if tuple(meta.get("classes", ())) != names:
                raise StoreError(
                    f"{store.path}: scores and labels/{config.masks} differ in classes; compute them again"
                )
            self.scores, self.stride_px = store.scores(config.masks), int(meta["stride_px"])
            self.score_px = np.zeros((len(names), LEVELS, 3), np.int64)
        self.step_px = max(1, round(LESION_MPP / store.grid.mean_mpp))
        width, height = store.grid.size_px
        self.coarse = np.zeros((ceil_div(height, self.step_px), ceil_div(width, self.step_px)), np.uint8)

    def add(self, window: Window, truth: Bytes) -> None:
        """Count the pixels of one shard; `truth` uint8 [h, w] holds class indices."""
        answer, kind = (a.read(window).astype(np.uint8, copy=False) for a in (self.answer, self.tissue_mask))
        is_tissue = kind == Tissue.TISSUE
        self.truth_px += np.bincount(truth.ravel(), minlength=256)[: len(self.truth_px)]
        self.ignored += int((truth == IGNORE).sum())
        self._add_coarse(window, truth)
        if self.scores is not None:
            self._add_scores(window, truth, is_tissue)
        glass = (kind == Tissue.GLASS) & (truth != IGNORE)
        self.glass_px += int(glass.sum())
        self.drawn += int((truth[glass] > 0).sum())
        self.answered += int(((answer[glass] > 0) & (answer[glass] != IGNORE)).sum())
        if self.glass == "given":
            truth, answer = np.where(glass, np.uint8(0), truth), np.where(glass, np.uint8(0), answer)
        elif self.glass == "ignored":
            truth = np.where(glass, np.uint8(IGNORE), truth)
        self.confusion.add(truth, answer)
        self.tissue += count_pairs(truth, is_tissue.astype(np.uint8), self.tissue.shape)

    def _add_scores(self, window: Window, truth: Bytes, tissue: NDArray[np.bool_]) -> None:
        """Count the tissue by stored score and truth; a stored score counts for all pixels that it covers."""
        assert self.scores is not None
        s = self.stride_px
        x, y = window.x_px // s, window.y_px // s
        cols = (window.x_px + np.arange(window.width_px)) // s - x
        rows = (window.y_px + np.arange(window.height_px)) // s - y
        cells = self.scores.read(Window(x, y, int(cols[-1]) + 1, int(rows[-1]) + 1)).astype(np.uint8, copy=False)
        on_tissue = truth[tissue]
        for k, cell in enumerate(cells):
            kind = np.where(on_tissue == IGNORE, np.uint8(2), (on_tissue == k + 1).astype(np.uint8))
            self.score_px[k] += count_pairs(kind, cell[rows[:, None], cols][tissue], (3, LEVELS)).T

    def _add_coarse(self, window: Window, truth: Bytes) -> None:
        """Sample the truth at the centres of squares of `step_px` that lie in the window."""
        s = self.step_px
        r, c = (
            np.arange(ceil_div(start - s // 2, s), ceil_div(start + length - s // 2, s))
            for start, length in ((window.y_px, window.height_px), (window.x_px, window.width_px))
        )
        at = np.ix_(r * s + s // 2 - window.y_px, c * s + s // 2 - window.x_px)
        self.coarse[np.ix_(r, c)] = truth[at]

    def result(self, detections: list[Detections] | None) -> SlideCounts:
        """All counts, with the detections matched to lesions."""
        return SlideCounts(
            self.confusion,
            self.tissue,
            self.truth_px,
            self.glass_px,
            self.drawn,
            self.answered,
            self.ignored,
            self.score_px if self.scores is not None else None,
            [self._hits(k, d) for k, d in enumerate(detections, start=1)] if detections is not None else None,
            detections,
        )

    def _hits(self, k: int, detections: Detections) -> Hits:
        grid, s = self.store.grid, self.step_px
        lesions = find_lesions(self.coarse == k, (grid.mpp[0] * s, grid.mpp[1] * s))
        at = [grid.to_px((x, y)) for x, y in detections.xy_px0.tolist()]
        cols, rows = (np.array([int(v[i] // s) for v in at], np.intp) for i in (0, 1))
        return match(lesions, rows, cols, detections.p, self.coarse == IGNORE)
