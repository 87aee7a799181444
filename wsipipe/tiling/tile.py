"""Tile slides: each becomes one store, written aside and renamed when it is complete."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import wsipipe
from wsipipe.config import RunConfig, TileConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.runtime import Progress, Report, digest, map_threads, silent
from wsipipe.slides import Slide, open_slide
from wsipipe.slides.resample import read_window
from wsipipe.slides.tissue import TissueMask, find_tissue
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.shards import CHUNK_PX, SHARD_PX, Cell, ShardedArray
from wsipipe.store.slide_store import lock_file, shard_windows, swap
from wsipipe.tiling.plan import plan_chunks, plan_patches

log = logging.getLogger(__name__)

TISSUE_VALUES = {0: "glass", 1: "tissue", 255: "invalid"}


def tile_slides(
    slides: Mapping[str, Path], config: TileConfig, run: RunConfig, progress: Progress = silent, overwrite: bool = False
) -> tuple[Report, list[Path]]:
    """Tile every slide into `run.stores`; returns the ledger and the stores that are there now.

    A slide whose store was made from the same file with the same settings is skipped. A slide that fails is
    recorded and costs only itself.
    """
    report = Report(run.max_failed)
    stores: list[Path] = []
    for i, (slide_id, path) in enumerate(slides.items()):
        progress("tile", i, len(slides), slide_id)
        began = time.monotonic()
        with report.guard(slide_id):
            status, store = _tile_slide(slide_id, path, config, run, progress=progress, overwrite=overwrite)
            n = len(store.patches(config.patch_px, config.stride_px or config.patch_px).cell)
            note = str(store.meta.get("note", ""))
            if n == 0:
                log.warning("%s: no tissue (%s)", slide_id, note or "no patch holds enough of it; see --min-tissue")
                status = "empty" if status == "done" else status
            report.add(slide_id, status, note, patches=n, seconds=f"{time.monotonic() - began:.1f}", store=store.path)
            stores.append(store.path)
    progress("tile", len(slides), len(slides))
    report.write(Path(run.runs) / "tile" / "tile.csv")
    return report, stores


def _tile_slide(
    slide_id: str, path: Path, config: TileConfig, run: RunConfig, *, progress: Progress, overwrite: bool
) -> tuple[str, SlideStore]:
    """One slide; returns the status (done or skipped) and its store."""
    target = Path(run.stores) / f"{slide_id}.zarr"
    slide = open_slide(path, slide_id, config.mpp_override)
    try:
        stride_px = config.stride_px or config.patch_px
        info = slide.info
        grid = Grid.plan(info.size_px0, info.mpp0, slide.downsamples, config.mpp, (config.patch_px, stride_px))
        made_of = {"fingerprint": info.fingerprint, "mpp0": info.mpp0, "tile": asdict(config)}
        pixel_digest = digest(made_of)
        if target.exists():
            old = _old_store(target, overwrite)
            if old and old.pixel_digest == pixel_digest:
                return "skipped", old
            made = [n for n in old.names("labels") if n != "tissue"] if old else []
            if not overwrite:
                also = f" (its labels {', '.join(made)} would go too)" if made else ""
                raise StoreError(
                    f"{target}: made from another slide or with other settings; replace it with --overwrite{also}"
                )
            if made:
                log.warning("%s: replaced; its labels %s are gone", target, ", ".join(made))
        tissue = find_tissue(slide, grid, config.tissue_mpp, config.min_area_um2)
        table = plan_patches(grid, tissue, config.min_tissue)
        aside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        meta = {
            "slide_id": slide_id,
            "slide": info.to_dict(),
            "pixel_digest": pixel_digest,
            "tile": asdict(config),
            "versions": _versions(),
            "note": tissue.note,
        }
        try:
            store = SlideStore.create(aside, grid, config.quality if config.codec == "jpeg" else 0, meta)
            _write(store, _Source(slide, grid, run.workers), table, tissue, progress)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        finally:
            lock_file(aside).unlink(missing_ok=True)
        swap(aside, target)
        return "done", SlideStore(target)
    finally:
        slide.close()


@dataclass(frozen=True)
class _Source:
    """Where pixels come from: a slide seen in the frame of `grid`, read by `workers` threads."""

    slide: Slide
    grid: Grid
    workers: int


def _old_store(path: Path, overwrite: bool) -> SlideStore | None:
    """The store in the way; one that cannot be read may only be overwritten."""
    try:
        return SlideStore(path)
    except StoreError:
        if overwrite:
            return None
        raise


def _write(store: SlideStore, source: _Source, table: PatchTable, tissue: TissueMask, progress: Progress) -> None:
    """Pixels, coarser levels, tissue mask and patch table of one slide."""
    grid = store.grid
    chunks = plan_chunks(table, CHUNK_PX, SHARD_PX)
    total = sum(map(len, chunks.values()))
    done = 0
    for shard, cells in chunks.items():
        _write_shard(store.pixels(0), source, shard, cells, 1)
        done += len(cells)
        progress(f"tile {store.slide_id}", done, total)
    if len(table.cell):
        for level in range(1, grid.levels):
            array = store.pixels(level)
            for shard, _ in shard_windows(array.spec):
                _write_shard(array, source, shard, array.spec.chunks_of_shard(shard), LEVEL_FACTOR**level)
    store.write_labels(
        "tissue",
        TISSUE_VALUES,
        {"digest": store.pixel_digest},
        ((shard, tissue.pixels(window)) for shard, window in shard_windows(store.pixels().spec)),
    )
    store.write_patches(table)


def _write_shard(array: ShardedArray, source: _Source, shard: Cell, cells: list[Cell], factor: int) -> None:
    """Read, resample and encode the chunks of one shard in threads, then write it whole."""
    height, width = array.spec.shape[-2:]

    def encode(cell: Cell) -> bytes:
        y, x = cell[0] * CHUNK_PX, cell[1] * CHUNK_PX
        window = Window(x, y, min(CHUNK_PX, width - x), min(CHUNK_PX, height - y))
        return array.spec.encode(_padded(read_window(source.slide, source.grid, window, factor)))

    encoded: dict[Cell, bytes] = {}
    map_threads(encode, cells, source.workers, encoded.__setitem__)
    array.write_shard(shard, sorted(encoded.items()))


def _padded(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] -> one whole chunk [3, y, x], its border repeated so that JPEG sees no edge."""
    h, w = rgb.shape[:2]
    return np.moveaxis(np.pad(rgb, ((0, CHUNK_PX - h), (0, CHUNK_PX - w), (0, 0)), mode="edge"), -1, 0)


def _versions() -> dict[str, str]:
    """Versions of what decided the pixels."""
    from importlib.metadata import version

    names = ("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "zarr", "numpy")
    return {"wsipipe": wsipipe.__version__, **{n: version(n) for n in names}}
