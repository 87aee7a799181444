"""A small labelled cohort, and how tests of the stage look at what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.textures import plant, tissue
from wsipipe.geometry import Window
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

Stores = dict[str, Path]
Stage = Callable[..., tuple[Report, list[Path]]]
Csv = Callable[..., Path]

BRIEF = {"lattice": 2, "selector_steps": 2, "retrain_steps": 2}
STRIDE = 32
"""Side of an instance."""

ROWS = ("blob,a,", "line,b,", "both,a;b,", "none,,", "held,,test")
SIZE = (320, 256)


def picture(seed: int, kinds: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    """Tissue left of x = 256, glass right of it."""
    rgb = np.full((SIZE[1], SIZE[0], 3), 243, np.uint8)
    rgb[:, :256] = tissue((256, SIZE[1]), seed)
    for kind in kinds:
        plant(rgb, (64, 64 * kind), 64, kind)
    return rgb


def mask_of(path: Path, name: str = "camel") -> NDArray[np.uint8]:
    return np.asarray(SlideStore(path).labels(name).read(Window(0, 0, *SIZE)), np.uint8)


def scores_of(path: Path, name: str = "camel") -> NDArray[np.uint8]:
    window = Window(0, 0, SIZE[0] // STRIDE, SIZE[1] // STRIDE)
    return np.asarray(SlideStore(path).scores(name).read(window), np.uint8)


def tissue_of(path: Path) -> NDArray[np.bool_]:
    return mask_of(path, "tissue") == 1


def statuses(report: Report) -> dict[str, str]:
    return {r["item"]: r["status"] for r in report.rows}


def written(stores: Stores) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for p in stores.values() for f in p.rglob("camel/**/*") if f.is_file()}
