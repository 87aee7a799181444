"""The stage: train unless a checkpoint is given, then stitch maps of all slides if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsipipe.config.options import StitchConfig, TrainConfig
from wsipipe.errors import check
from wsipipe.nn.distributed import join_group
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.segment.predict import predict_stores
from wsipipe.segment.train import train
from wsipipe.store import SlideStore
from wsipipe.store.names import check_name


@dataclass(frozen=True)
class SegmentOptions:
    """What `segment` does.

    train: how a network is trained. stitch: how maps of all slides are stitched; None makes none. checkpoint: the JSON
    of a trained network to use; nothing is trained then.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    stitch: StitchConfig | None = None
    checkpoint: Path | None = None


def run(store_paths: Sequence[Path], options: SegmentOptions, context: RunContext) -> tuple[Report, list[Path]]:
    """Train on the masks of the stores (or take the checkpoint) and, if asked, map every store.

    Returns the ledger and what was made: the checkpoint's JSON, or the stores that hold the maps. Under torchrun the
    processes train together, and each maps its share of the stores.
    """
    config, checkpoint = options.train, options.checkpoint
    name = config.name or config.architecture
    check_name(name)
    check(
        bool(checkpoint) or name != config.masks,
        f"segment.name: the maps would replace labels/{name}, which they are trained on; choose another --name",
    )
    stores = [SlideStore(p) for p in store_paths]
    path = checkpoint or train(stores, config, context)
    if options.stitch is None:
        report = context.report()
        report.add(str(path), "done")
        return report, [path]
    own = stores[join_group(context.compute().device).share]
    return predict_stores(own, path, options.stitch, context, config.name)
