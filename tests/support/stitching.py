"""What the tests of stitching share: networks whose answer is known, a slow stitcher, and maps put together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wsipipe.geometry import Window
from wsipipe.segment.prefetch import PrefetchPipeline
from wsipipe.segment.stitch import StripPlan, stitcher
from wsipipe.store import SlideStore
from wsipipe.windows import WindowLattice

Predict = Callable[[Sequence[Window]], np.ndarray]


def reader(image: np.ndarray) -> Predict:
    """A network that gives back its input; image float32 [C, h, w], garbage beyond its border."""

    def predict(windows: Sequence[Window]) -> np.ndarray:
        answers = []
        for w in windows:
            answer = np.full((len(image), w.height_px, w.width_px), 1e6, np.float32)
            part = image[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
            answer[:, : part.shape[1], : part.shape[2]] = part
            answers.append(answer)
        return np.stack(answers)

    return predict


def noisy(windows: Sequence[Window]) -> np.ndarray:
    """Probabilities of 3 classes that depend on the window, so that overlapping windows disagree."""
    side = windows[0].width_px
    drawn = [np.random.default_rng([w.x_px, w.y_px]).random((3, side, side)).astype(np.float32) for w in windows]
    return np.stack([p / p.sum(0) for p in drawn])


def every_start(length: int, window: int, stride: int) -> list[int]:
    """Steps of the stride as long as a window fits, and one last window that ends at the border."""
    found, s = [], 0
    while s + window < length:
        found.append(s)
        s += stride
    return [*found, max(0, length - window)]


def slow(
    predict: Predict,
    size: tuple[int, int],
    window: int,
    stride: int,
    wanted: Callable[[Window], bool] = lambda w: True,
    weigh: Callable[[int], float] | None = None,
) -> np.ndarray:
    """sum(w p) / sum(w), window by window and pixel by pixel, in double precision; nan where nothing covers."""
    width, height = size
    weigh = weigh or (lambda i: math.sin(math.pi * (i + 0.5) / window) ** 2)
    total: np.ndarray | None = None
    norm = np.zeros((height, width))
    for y in every_start(height, window, stride):
        for x in every_start(width, window, stride):
            w = Window(x, y, window, window)
            p = predict([w])[0].astype(float)
            total = np.zeros((len(p), height, width)) if total is None else total
            if not wanted(w):
                continue
            for i in range(min(window, height - y)):
                for j in range(min(window, width - x)):
                    weight = weigh(i) * weigh(j)
                    total[:, y + i, x + j] += weight * p[:, i, j]
                    norm[y + i, x + j] += weight
    assert total is not None
    out = np.full(total.shape, np.nan)
    out[:, norm > 0] = total[:, norm > 0] / norm[norm > 0]
    return out


def slow_scores(p: np.ndarray, cell: int) -> np.ndarray:
    """Mean of the known pixels of each square, 0 where there is none: p [K, h, w] with nan -> [K, rows, cols]."""
    k, h, w = p.shape
    out = np.zeros((k, -(-h // cell), -(-w // cell)))
    for r in range(out.shape[1]):
        for c in range(out.shape[2]):
            square = p[:, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell]
            if not np.isnan(square[0]).all():
                out[:, r, c] = np.nanmean(square.reshape(k, -1), axis=1)
    return out


def subset(cover: WindowLattice, seed: int, share: float) -> WindowLattice:
    """The cover with a random share of its windows."""
    chosen = np.random.default_rng(seed).random(cover.used.shape) < share
    return WindowLattice(cover.side_px, cover.ys, cover.xs, chosen)


def mapped(
    plan: StripPlan, predict: Predict, blend: str = "hann", batch: int = 5, readers: int = 2
) -> tuple[Any, Any, Any]:
    """The mask uint8 [h, w] and the scores uint8 [C - 1, rows, cols] of a whole map, put together from its shards."""
    channels = predict([Window(0, 0, plan.cover.side_px, plan.cover.side_px)]).shape[1]
    (width, height), cell = plan.size_px, plan.cell_px
    mask = np.full((height, width), 255, np.uint8)
    scores = np.zeros((channels - 1, -(-height // cell), -(-width // cell)), np.uint8)
    order = []

    def write(shard: tuple[int, int], values: np.ndarray, its_scores: np.ndarray) -> None:
        own = plan.shard(shard)
        order.append(shard)
        assert values.shape == (own.height_px, own.width_px)
        mask[own.y_px : own.y_px + own.height_px, own.x_px : own.x_px + own.width_px] = values
        y, x = -(-own.y_px // cell), -(-own.x_px // cell)
        scores[:, y : y + its_scores.shape[1], x : x + its_scores.shape[2]] = its_scores

    stitch = stitcher(plan, channels, blend, write)
    PrefetchPipeline(
        read=lambda items: [window for _, window in items],
        network=lambda windows: lambda: predict(windows),
        take=stitch.add,
        end=stitch.end,
        readers=readers,
    ).run(stitch.windows(), batch)
    assert len(order) == len(set(order))
    return mask, scores, order


def bytes_of(store: SlideStore, name: str) -> dict[str, bytes]:
    """Every file of `labels/<name>` and `scores/<name>`."""
    folders = [store.path / kind / name for kind in ("labels", "scores")]
    return {str(p.relative_to(store.path)): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}
