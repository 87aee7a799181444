"""Predict every slide with a checkpoint and write its stitched map into the store."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.config.options import StitchConfig
from wsipipe.errors import check
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.checkpoint import Checkpoint
from wsipipe.nn.encoders import normalise
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import autocast
from wsipipe.runtime.digest import digest
from wsipipe.runtime.executor import thread_count
from wsipipe.runtime.ledger import Report
from wsipipe.segment.model import check_side, load_model
from wsipipe.segment.prefetch import PrefetchPipeline, Throughput
from wsipipe.segment.stitch import Stitching, StripPlan, fit_to_budget, stitcher
from wsipipe.segment.tta import VIEWS, mean_over_views
from wsipipe.store import SlideStore
from wsipipe.store.map_writer import ResumableMapWriter, remove_finished
from wsipipe.store.shards import SHARD_PX, Cell
from wsipipe.windows import BLENDS, WindowLattice

log = logging.getLogger(__name__)

BATCH_PX = 2**20
"""Pixels of a batch on a CPU: 16 windows of 256 px."""

ACCELERATOR_BATCH_PX = 2**22
"""Pixels of a batch elsewhere."""

MOST_WINDOWS = 64
"""Windows of a batch at most."""

MOST_READERS = 8
"""Threads that read ahead at most."""

_ROWS = 256  # of a mask that are set against the tissue at once: those of one chunk


@dataclass(frozen=True)
class Network:
    """A trained network on its device: windows uint8 [N, 3, S, S] -> class probabilities float32 [N, C, S, S].

    Elsewhere than on a CPU every batch is filled up to `batch` windows, so that a window gets the same answer in a
    batch that is not full: libraries choose their arithmetic by the size of the batch.
    """

    model: nn.Module
    on: torch.device
    views: int = 1
    batch: int = 16

    def pixels(self, rgb: NDArray[np.uint8]) -> Tensor:
        """The windows as a tensor that the device can fetch while it computes; called by the threads that read."""
        x = torch.from_numpy(rgb)
        return x if self.on.type == "cpu" else x.pin_memory()

    def __call__(self, rgb: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Start the network on windows; what is returned waits for the answer."""
        count = len(rgb)
        with torch.inference_mode(), autocast(self.on):
            x = normalise(rgb.to(self.on, non_blocking=True))
            if self.on.type == "cpu":
                p = mean_over_views(self.model, x, self.views)
                return p.numpy
            filled = torch.cat([x, x[-1:].expand(self.batch - count, -1, -1, -1)]) if count < self.batch else x
            p = mean_over_views(self.model, filled.contiguous(memory_format=torch.channels_last), self.views)[:count]
            there = torch.empty(p.shape, dtype=p.dtype, pin_memory=True)
            there.copy_(p, non_blocking=True)
            ready = torch.Event(self.on)
            ready.record()

        def fetch() -> NDArray[np.float32]:
            ready.synchronize()
            return there.numpy()

        return fetch


def predict_stores(
    stores: Sequence[SlideStore],
    checkpoint_path: Path,
    options: StitchConfig,
    context: RunContext,
    name: str = "",
) -> tuple[Report, list[Path]]:
    """Write `labels/<name>` and `scores/<name>` of every store; returns the ledger and the stores that hold them.

    `name` is that of the architecture unless given.

    A slide whose stitching was killed goes on at the first shard that was not written, to the same bytes. The ledger
    says of each slide how many windows were predicted (windows), how many a second (per_s), the share of the time in
    which the network was at work (busy), and the most memory of the process so far (peak_mib).
    """
    checkpoint, model = load_model(checkpoint_path)
    how = stitching(options, checkpoint)
    model.to(context.compute().device).to(memory_format=torch.channels_last)
    name = name or checkpoint.network
    report, done = context.report(), []
    for i, store in enumerate(stores):
        context.progress("stitch", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            job = _Job(store, name, checkpoint, how)
            pace = job.run(model, context)
            report.add(store.slide_id, "done" if pace else "skipped", store=store.path, **_told(store, pace))
            done.append(store.path)
    context.progress("stitch", len(stores), len(stores))
    report.write(context.runs / name / "segment.csv")
    return report, done


def stitching(options: StitchConfig, checkpoint: Checkpoint) -> Stitching:
    """How the options say that slides are stitched; ConfigError if that cannot be."""
    window_px = options.window_px or checkpoint.patch_px
    check_side(window_px)
    how = Stitching(
        window_px,
        max(1, round(window_px * (1 - options.overlap))),
        options.score_stride_px,
        blend=options.blend,
        views=options.views,
        memory_mb=options.memory_mb,
    )
    check(how.blend in BLENDS, f"stitch.blend: {how.blend!r} is not known; choose one of {', '.join(BLENDS)}")
    check(how.views in VIEWS, f"stitch.views: {how.views} is not one of {', '.join(map(str, VIEWS))}")
    return how


@dataclass(frozen=True)
class _Job:
    """One slide to be mapped."""

    store: SlideStore
    name: str
    checkpoint: Checkpoint
    how: Stitching

    @property
    def key(self) -> str:
        """Digest of all that the maps are made of; the budget of memory has no part in it."""
        how = {k: v for k, v in asdict(self.how).items() if k != "memory_mb"}
        return digest(self.checkpoint.digest, self.store.digest, how)

    def run(self, model: nn.Module, context: RunContext) -> Throughput | None:
        """Map the slide, or go on with it; None if it is mapped already."""
        store, classes = self.store, list(self.checkpoint.classes)
        if all([store.can_reuse(kind, self.name, self.key, context.overwrite) for kind in ("labels", "scores")]):
            remove_finished(store, self.name)
            return None
        store.check_compatible(self.checkpoint.mpp, self.checkpoint.normalise_stain, "the network")
        meta = {"digest": self.key, "classes": classes, "checkpoint": self.checkpoint.digest}
        values = Classes(self.checkpoint.classes).mask_values("not predicted")
        with ResumableMapWriter(store, self.name, self.key, len(classes), self.how.cell_px, SHARD_PX) as maps:
            pace = Throughput(0, 0.0, 0.0) if maps.complete else self._stitch(maps, model, context)
            maps.finish(values, meta)
        return pace

    def _stitch(self, maps: ResumableMapWriter, model: nn.Module, context: RunContext) -> Throughput:
        """Predict and write the shards that are missing."""
        store, how, on, channels = self.store, self.how, context.compute().device, len(self.checkpoint.classes) + 1
        most = (BATCH_PX if on.type == "cpu" else ACCELERATOR_BATCH_PX) // how.window_px**2
        batch, width_px = fit_to_budget(how, channels, min(MOST_WINDOWS, max(1, most)), SHARD_PX)
        cover = WindowLattice.plan(store.grid.size_px, how.window_px, how.stride_px, store.patches().windows)
        plan = StripPlan(store.grid.size_px, cover, width_px, how.cell_px, SHARD_PX)
        tissue = store.labels("tissue")

        def write(shard: Cell, mask: NDArray[np.uint8], scores: NDArray[np.uint8]) -> None:
            own = plan.shard(shard)
            for y in range(0, own.height_px, _ROWS):
                rows = mask[y : y + _ROWS]
                what = tissue.read(Window(own.x_px, own.y_px + y, own.width_px, len(rows)))
                rows[(what == 0) & (rows != IGNORE)] = 0
                rows[what == IGNORE] = IGNORE
            maps.write(shard, mask, scores)

        stitch = stitcher(plan, channels, how.blend, write, maps.written)
        total = stitch.count()
        network = Network(model, on, how.views, batch)
        flow = PrefetchPipeline(
            read=lambda items: network.pixels(store.read_batch([window for _, window in items])),
            network=network,
            take=stitch.add,
            end=stitch.end,
            readers=min(MOST_READERS, thread_count(context.run.workers)),
        )
        return flow.run(stitch.windows(), batch, lambda n: context.progress(f"stitch {store.slide_id}", n, total))


def _told(store: SlideStore, pace: Throughput | None) -> dict[str, str]:
    """What the ledger and the log say of how one slide went."""
    if pace is None:
        return {}
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    per_s = pace.items / pace.seconds if pace.seconds else 0.0
    log.info(
        "%s: %d windows, %.1f a second, network at work %.0f %% of the time, peak memory %.0f MiB",
        *(store.slide_id, pace.items, per_s, 100 * pace.busy, peak_mib),
    )
    told = {"windows": pace.items, "per_s": f"{per_s:.1f}", "busy": f"{pace.busy:.3f}", "peak_mib": f"{peak_mib:.0f}"}
    return {k: str(v) for k, v in told.items()}
