"""Tile one slide, and look at what came of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import read_ledger
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.store.shards import Cell, ShardedArray
from wsipipe.tiling.stage import run as tile_slides

CONFIG = TileConfig(patch_px=128)

Rgb = NDArray[np.uint8]


def tile_one(
    slide: Path | SlideFile, folder: Path, config: TileConfig = CONFIG, overwrite: bool = False, workers: int = 2
) -> SlideStore:
    """The store of a slide, tiled into `folder`; what the ledger says of it must be no failure."""
    file = slide if isinstance(slide, SlideFile) else SlideFile(slide)
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=workers)
    report, stores = tile_slides({file.path.stem: file}, config, RunContext(run, overwrite=overwrite))
    assert report.exit_code == 0, report.rows
    return SlideStore(stores[0])


def ledger(run: RunConfig) -> list[dict[str, str]]:
    """The rows of tile.csv."""
    return read_ledger(Path(run.runs) / "tile" / "tile.csv")


def corrupt(run: RunConfig) -> list[dict[str, str]]:
    """The rows of corrupt.csv."""
    return read_ledger(Path(run.runs) / "tile" / "corrupt.csv")


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path, pattern: str = "*") -> dict[str, tuple[int, int]]:
    """Inode and time of every file below a folder: they change when a file is written anew."""
    found = ((p, p.stat()) for p in folder.rglob(pattern) if p.is_file())
    return {str(p.relative_to(folder)): (s.st_ino, s.st_mtime_ns) for p, s in found}


def streams(array: ShardedArray) -> dict[Cell, bytes]:
    """The stored bytes of every chunk of an array, less their checksum."""
    n, found = array.spec.per_shard, {}
    for row, col in zip(*np.nonzero(array.present()), strict=True):
        shard = array.shard((int(row) // n, int(col) // n))
        assert shard is not None
        body = shard.body(int(row) % n * n + int(col) % n)
        assert body is not None
        found[int(row), int(col)] = body
    return found


def box(array: ShardedArray, cell: Cell) -> Window:
    """The pixels of a chunk that lie inside its array."""
    n, (height, width) = array.spec.chunk_px, array.spec.shape[-2:]
    y, x = cell[0] * n, cell[1] * n
    return Window(x, y, min(n, width - x), min(n, height - y))


def cut(rgb: Rgb, w: Window) -> Rgb:
    """A window of a picture."""
    return rgb[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]


def padded(rgb: Rgb, side: int) -> Rgb:
    """A picture grown to a whole chunk, its border repeated."""
    return np.pad(rgb, ((0, side - rgb.shape[0]), (0, side - rgb.shape[1]), (0, 0)), mode="edge")


def with_mask(slide: Path, mask: Path) -> SlideFile:
    """A slide with a tissue mask of the user's own."""
    return replace(SlideFile(slide), mask=mask)


def slow_mean(rgb: Rgb, scale: tuple[float, float], size: tuple[int, int]) -> Rgb:
    """Means over boxes of `scale` (x, y) px, outside white, by differences of running totals: uint8 [h, w, 3]."""
    out = rgb.astype(np.float64)
    for axis, step, count in ((0, scale[1], size[1]), (1, scale[0], size[0])):
        lacking = max(0, int(np.ceil(count * step)) - out.shape[axis]) + 1
        grown = np.pad(out, [(0, lacking if a == axis else 0) for a in range(3)], constant_values=255)
        total = np.insert(grown.cumsum(axis), 0, 0, axis)
        edges = np.arange(count + 1) * step
        low = np.floor(edges).astype(int)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(3)])
        at = total.take(low, axis) * (1 - part) + total.take(low + 1, axis) * part
        out = np.diff(at, axis=axis) / step
    return np.floor(out + 0.5 + 1e-9).astype(np.uint8)
