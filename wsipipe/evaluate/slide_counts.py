"""Count one slide: its answer and its scores against its truth, shard by shard, so that no mask is whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.config.options import EvaluateConfig
from wsipipe.errors import StoreError
from wsipipe.evaluate.detections import find_detections
from wsipipe.evaluate.froc import LESION_MPP, Detections, Hits, find_lesions, match
from wsipipe.evaluate.metrics import Confusion, Floats, count_pairs
from wsipipe.evaluate.slide_level import LEVELS, slide_scores
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

GLASS, TISSUE = 0, 1
"""Values of `labels/tissue`."""

Bytes = NDArray[np.uint8]
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of one slide of K named classes, C = K + 1.

    confusion: of the answer, over the scored pixels. tissue: int64 [C, 2], truth against (not tissue, tissue) there.
    truth_px: int64 [C], the truth as drawn, on glass too. glass_px: scored pixels that are glass (with `ignored`: left
    out). drawn_on_glass_px, answered_on_glass_px: pixels of named classes on glass. ignored_px: pixels where the truth
    is ignore. score_px: int64 [K, LEVELS, 3], tissue by stored score: of another class, of this one, ignore; None
    without scores. hits: of each class, None without detections.
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
        """How strongly the slide shows each class: float64 [K], see `slide_level.slide_scores`; nan without scores."""
        if self.score_px is None:
            return np.full(len(self.confusion.names), np.nan)
        return slide_scores(self.score_px.sum(-1), top)


def tally(
    store: SlideStore,
    config: EvaluateConfig,
    names: Names,
    read_truth: Callable[[Window], Bytes],
    given: list[Detections] | None = None,
) -> Tally:
    """Count one slide; `given` detections of each class take the place of the maxima of the scores."""
    count = _Counter(store, config, names)
    for _, window in shard_windows(store.labels(config.masks).spec):
        truth = read_truth(window)
        try:
            count.add(window, truth)
        except ValueError as error:
            raise StoreError(f"{store.path}: labels/{config.masks}: {error}; compute it again") from None
    detections = given
    if detections is None and count.scores is not None:
        detections = find_detections(store, config.masks, config.nms_um)
    return count.result(detections)


class _Counter:
    """The counts of one slide while its shards pass."""

    def __init__(self, store: SlideStore, config: EvaluateConfig, names: Names) -> None:
        self.store, self.glass, self.names = store, config.glass, names
        self.answer, self.kind = store.labels(config.masks), store.labels("tissue")
        self.confusion = Confusion.empty(names)
        self.tissue = np.zeros((len(names) + 1, 2), np.int64)
        self.truth_px = np.zeros(len(names) + 1, np.int64)
        self.glass_px = self.drawn = self.answered = self.ignored = 0
        self.scores, self.stride_px = None, 1
        if config.masks in store.names("scores"):
            meta = store.attributes("scores", config.masks)
            if tuple(meta.get("classes", ())) != names:
                raise StoreError(f"{store.path}: scores and labels/{config.masks} have other classes; compute again")
            self.scores, self.stride_px = store.scores(config.masks), int(meta["stride_px"])
            self.score_px = np.zeros((len(names), LEVELS, 3), np.int64)
        self.step_px = max(1, round(LESION_MPP / store.grid.mean_mpp))
        width, height = store.grid.size_px
        self.coarse = np.zeros((-(-height // self.step_px), -(-width // self.step_px)), np.uint8)

    def add(self, window: Window, truth: Bytes) -> None:
        """Count the pixels of one shard; `truth` uint8 [h, w] holds class indices."""
        answer, kind = (a.read(window).astype(np.uint8, copy=False) for a in (self.answer, self.kind))
        self.truth_px += np.bincount(truth.ravel(), minlength=256)[: len(self.truth_px)]
        self.ignored += int((truth == IGNORE).sum())
        self._add_coarse(window, truth)
        if self.scores is not None:
            self._add_scores(window, truth, kind == TISSUE)
        glass = (kind == GLASS) & (truth != IGNORE)
        self.glass_px += int(glass.sum())
        self.drawn += int((truth[glass] > 0).sum())
        self.answered += int(((answer[glass] > 0) & (answer[glass] != IGNORE)).sum())
        if self.glass == "given":
            truth, answer = np.where(glass, np.uint8(0), truth), np.where(glass, np.uint8(0), answer)
        elif self.glass == "ignored":
            truth = np.where(glass, np.uint8(IGNORE), truth)
        self.confusion.add(truth, answer)
        self.tissue += count_pairs(truth, (kind == TISSUE).astype(np.uint8), self.tissue.shape)

    def _add_scores(self, window: Window, truth: Bytes, tissue: NDArray[np.bool_]) -> None:
        """Count the tissue by stored score and truth; a stored score stands for all pixels that it covers."""
        assert self.scores is not None
        s = self.stride_px
        x, y = window.x_px // s, window.y_px // s
        cols = (window.x_px + np.arange(window.width_px)) // s - x
        rows = (window.y_px + np.arange(window.height_px)) // s - y
        cells = self.scores.read(Window(x, y, int(cols[-1]) + 1, int(rows[-1]) + 1)).astype(np.uint8, copy=False)
        held = truth[tissue]
        for k, cell in enumerate(cells):
            kind = np.where(held == IGNORE, np.uint8(2), (held == k + 1).astype(np.uint8))
            self.score_px[k] += count_pairs(kind, cell[rows[:, None], cols][tissue], (3, LEVELS)).T

    def _add_coarse(self, window: Window, truth: Bytes) -> None:
        """Keep the truth at the centre of every `step_px` square whose centre lies in the window."""
        s = self.step_px
        r, c = (
            np.arange(-(-(start - s // 2) // s), -(-(start + length - s // 2) // s))
            for start, length in ((window.y_px, window.height_px), (window.x_px, window.width_px))
        )
        at = np.ix_(r * s + s // 2 - window.y_px, c * s + s // 2 - window.x_px)
        self.coarse[np.ix_(r, c)] = truth[at]

    def result(self, detections: list[Detections] | None) -> Tally:
        """Everything counted, with the detections matched."""
        return Tally(
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

    def _hits(self, k: int, found: Detections) -> Hits:
        grid, s = self.store.grid, self.step_px
        lesions = find_lesions(self.coarse == k, (grid.mpp[0] * s, grid.mpp[1] * s))
        at = [grid.to_px((x, y)) for x, y in found.xy_px0.tolist()]
        cols, rows = (np.array([int(v[i] // s) for v in at], np.intp) for i in (0, 1))
        return match(lesions, rows, cols, found.p, self.coarse == IGNORE)
