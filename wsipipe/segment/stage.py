"""The stage: train unless a checkpoint is given, then stitch if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsipipe.config.options import RunConfig, SegmentConfig
from wsipipe.errors import check
from wsipipe.nn.distributed import join_group
from wsipipe.runtime.device import device
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress, silent
from wsipipe.segment.predict import predict_stores
from wsipipe.segment.train import train
from wsipipe.store import SlideStore
from wsipipe.store.names import check_name


def segment(
    store_paths: Sequence[Path],
    config: SegmentConfig,
    run: RunConfig,
    *,
    stitch: bool = False,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    overwrite: bool = False,
) -> tuple[Report, list[Path]]:
    """Train on `labels/<config.labels>` (or take `checkpoint`) and, with `stitch`, map every store.

    Returns the ledger and what was made: the checkpoint's JSON, or the stores that hold the maps. Under torchrun the
    processes train together, and each maps its share of the stores.
    """
    name = config.name or config.architecture
    check_name(name)
    check(
        bool(checkpoint) or name != config.labels,
        f"segment.name: the maps would take the place of labels/{name}, which they are trained on; choose another "
        "--name",
    )
    stores = [SlideStore(p) for p in store_paths]
    path = checkpoint or train(stores, config, run, progress, overwrite)
    if not stitch:
        report = Report(run.max_failed)
        report.add(str(path), "done")
        return report, [path]
    own = stores[join_group(device(run.device)).own]
    return predict_stores(own, path, config, run, progress, overwrite)
