"""Predict every slide with a checkpoint and write its stitched map into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsipipe.config import RunConfig, SegmentConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.nn.checkpoint import Checkpoint
from wsipipe.nn.encoders import normalise
from wsipipe.runtime import Progress, Report, autocast, device, digest, silent, threads
from wsipipe.segment.stitch import stitch
from wsipipe.segment.train import check_side, load
from wsipipe.store import SlideStore
from wsipipe.store.shards import SHARD_PX, Cell


def predict_stores(
    stores: Sequence[SlideStore],
    checkpoint_path: Path,
    config: SegmentConfig,
    run: RunConfig,
    progress: Progress = silent,
    overwrite: bool = False,
) -> tuple[Report, list[Path]]:
    """Write `labels/<name>` and `scores/<name>` of every store; returns the ledger and the stores that hold them."""
    checkpoint, model = load(checkpoint_path)
    check_side(config.window_px or checkpoint.patch_px)
    on = device(run.device)
    model.to(on).to(memory_format=torch.channels_last)
    name = config.name or checkpoint.network
    report, done = Report(run.max_failed), []
    for i, store in enumerate(stores):
        progress("stitch", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            status = _predict_store(model, checkpoint, store, name, config, run, overwrite)
            report.add(store.slide_id, status, store=store.path)
            done.append(store.path)
    progress("stitch", len(stores), len(stores))
    report.write(Path(run.runs) / name / "segment.csv")
    return report, done


def _predict_store(
    model: nn.Module,
    checkpoint: Checkpoint,
    store: SlideStore,
    name: str,
    config: SegmentConfig,
    run: RunConfig,
    overwrite: bool,
) -> str:
    """One slide; returns done or skipped."""
    window_px = config.window_px or checkpoint.patch_px
    stride_px = max(1, round(window_px * (1 - config.overlap)))
    key = digest(checkpoint.digest, store.digest, window_px, stride_px, config.score_stride_px)
    if store.current("labels", name, key, overwrite) and store.current("scores", name, key, overwrite):
        return "skipped"
    own = sum(store.grid.mpp) / 2
    if abs(own / checkpoint.mpp - 1) > 0.05:
        raise StoreError(
            f"{store.path}: is at {own:g} um/px, the network at {checkpoint.mpp:g}; tile with --mpp {checkpoint.mpp:g}"
        )
    bands = _Bands(store, len(checkpoint.classes), config.score_stride_px)
    predict = predictor(model, store, device(run.device), threads(run.workers))
    wanted = on_patches(store)
    maps = stitch(predict, store.grid.size_px, len(checkpoint.classes) + 1, window_px, stride_px, wanted=wanted)
    meta = {"digest": key, "classes": list(checkpoint.classes), "checkpoint": checkpoint.digest}
    values = {0: "none", **{k + 1: n for k, n in enumerate(checkpoint.classes)}, IGNORE: "not predicted"}
    store.write_labels(name, values, meta, bands.labels(b.values for b in maps))
    store.write_scores(name, config.score_stride_px, meta, bands.scores())
    return "done"


def predictor(
    model: nn.Module, store: SlideStore, on: torch.device, workers: int, batch: int = 16
) -> Callable[[Sequence[Window]], NDArray[np.float32]]:
    """A function from windows to class probabilities float32 [N, C, h, w]; windows are read ahead of the network."""

    def predict(windows: Sequence[Window]) -> NDArray[np.float32]:
        groups = [windows[i : i + batch] for i in range(0, len(windows), batch)]
        out = []
        with ThreadPoolExecutor(min(2, workers)) as pool, torch.inference_mode():
            for rgb in pool.map(store.read_batch, groups):
                with autocast(on):
                    logits = model(normalise(torch.from_numpy(rgb).to(on)))
                out.append(logits.float().softmax(1).cpu().numpy())
        return np.concatenate(out)

    return predict


def on_patches(store: SlideStore) -> Callable[[Window], bool]:
    """Whether a window overlaps any usable patch of the store."""
    cell_px = 64
    width, height = store.grid.size_px
    held = np.zeros((-(-height // cell_px), -(-width // cell_px)), bool)
    for w in store.patches().windows:
        held[_cells(w.y_px, w.height_px, cell_px), _cells(w.x_px, w.width_px, cell_px)] = True
    return lambda w: bool(held[_cells(w.y_px, w.height_px, cell_px), _cells(w.x_px, w.width_px, cell_px)].any())


def _cells(start_px: int, length_px: int, cell_px: int) -> slice:
    return slice(start_px // cell_px, -(-(start_px + length_px) // cell_px))


class _Bands:
    """Turn bands of probabilities into shards of mask values, and keep the scores, averaged over their stride."""

    def __init__(self, store: SlideStore, classes: int, stride_px: int) -> None:
        self.store, self.stride_px = store, stride_px
        width, height = store.grid.size_px
        self._sum = np.zeros((classes, -(-height // stride_px), -(-width // stride_px)), np.float32)
        self._count = np.zeros(self._sum.shape[1:], np.float32)

    def labels(self, bands: Iterator[NDArray[np.float32]]) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
        """(shard, mask uint8) from bands float32 [C, h, W] (nan: not predicted); glass is 0, invalid pixels 255."""
        width, height = self.store.grid.size_px
        tissue = self.store.labels("tissue")
        rows: list[NDArray[np.uint8]] = []
        y = held = 0
        for p in bands:
            self._add_scores(p[1:], y)
            mask = np.nan_to_num(p, nan=-1).argmax(0).astype(np.uint8)
            mask[np.isnan(p[0])] = IGNORE
            what = tissue.read(Window(0, y, width, len(mask)))
            mask[(what == 0) & (mask != IGNORE)] = 0
            mask[what == IGNORE] = IGNORE
            rows.append(mask)
            y, held = y + len(mask), held + len(mask)
            while held >= SHARD_PX or (y == height and held):
                block = np.concatenate(rows)
                top, rest = block[:SHARD_PX], block[SHARD_PX:]
                row = (y - held) // SHARD_PX
                for col in range(-(-width // SHARD_PX)):
                    yield (row, col), top[:, col * SHARD_PX : (col + 1) * SHARD_PX]
                rows, held = [rest], len(rest)

    def scores(self) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
        """(shard, scores uint8 [K, h, w]) once all bands have passed; 0 where nothing was predicted."""
        mean = self._sum / np.maximum(self._count, 1)
        stored = np.rint(mean * 255).astype(np.uint8)
        for row in range(-(-stored.shape[1] // SHARD_PX)):
            for col in range(-(-stored.shape[2] // SHARD_PX)):
                y, x = row * SHARD_PX, col * SHARD_PX
                yield (row, col), stored[:, y : y + SHARD_PX, x : x + SHARD_PX]

    def _add_scores(self, p: NDArray[np.float32], y_px: int) -> None:
        """Add the rows of one band, which need not be a multiple of the stride."""
        s = self.stride_px
        known = ~np.isnan(p[0])
        p = np.nan_to_num(p, nan=0.0)
        columns = np.arange(0, p.shape[2], s)
        row = (y_px + np.arange(p.shape[1])) // s
        first = np.flatnonzero(np.diff(row, prepend=-1))
        self._sum[:, row[first]] += np.add.reduceat(np.add.reduceat(p, columns, axis=2), first, axis=1)
        self._count[row[first]] += np.add.reduceat(
            np.add.reduceat(known, columns, axis=1, dtype=np.float32), first, axis=0
        )
