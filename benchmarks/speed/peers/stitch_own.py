"""What benchmarks/speed/segment.py runs of wsipipe itself, each in a process of its own.

    python benchmarks/speed/peers/stitch_own.py store --out FOLDER --size PX [--full]
    python benchmarks/speed/peers/stitch_own.py pace|memory|naive --store STORE
    python benchmarks/speed/peers/stitch_own.py slide --out SLIDE.svs --reference MAP.npy --size PX
    python benchmarks/speed/peers/stitch_own.py map --slide SLIDE.svs --reference MAP.npy

The answer is a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from stitch_network import BATCH, COLOUR, MPP, STRIDE_PX, WINDOW_PX, convolution, resident_mib
from torch import nn

from wsipipe.config.options import RunConfig, StitchConfig, TileConfig, TrainConfig
from wsipipe.geometry import Grid, Window
from wsipipe.nn.checkpoint import Checkpoint
from wsipipe.nn.encoders import MEAN, STD, normalise
from wsipipe.nn.segmenters import create_segmenter
from wsipipe.nn.train import Schedule, fit
from wsipipe.pipeline import slides_of
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import ComputeContext, autocast
from wsipipe.segment import predict
from wsipipe.segment.data import Batch, Batches, Variation, find_samples
from wsipipe.segment.losses import segmentation_loss
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell
from wsipipe.store.tissue_levels import TissueLevels
from wsipipe.tiling.stage import run as tile_slides
from wsipipe.windows import WindowLattice, blend_weight

CLASSES = ("a", "b", "c")
STEP_PX = 256


def tissue_squares(size_px: int, full: bool) -> NDArray[np.bool_]:
    """Which squares of 256 px hold tissue: all, or a stripe across the slide and one from top to bottom."""
    n = -(-size_px // STEP_PX)
    held = np.full((n, n), full)
    held[n // 2] = held[:, n // 2] = True
    return held


def make_store(path: Path, size_px: int, full: bool) -> None:
    """A store of one tissue-like chunk repeated wherever there is tissue."""
    held = tissue_squares(size_px, full)
    grid = Grid((size_px, size_px), (0.5, 0.5), (1.0, 1.0), WINDOW_PX, WINDOW_PX)
    store = SlideStore.create(path, grid, 85, {"slide_id": path.stem, "pixel_digest": str(size_px)})
    rng = np.random.default_rng(0)
    soft = rng.normal(0, 12, (32, 32, 3)).repeat(8, 0).repeat(8, 1) + rng.normal(0, 6, (256, 256, 3))
    chunk = np.clip(soft + np.array([200, 130, 180]), 0, 255).astype(np.uint8)
    spec = store.pixels().spec
    body = (spec.encode(np.moveaxis(chunk, -1, 0)),)
    stored = {}
    for shard, _ in shard_windows(spec):
        chunks = [(cell, body) for cell in spec.chunks_of_shard(shard) if held[cell]]
        stored[f"{shard[0]}.{shard[1]}"] = store.pixels().write_shard(shard, chunks)
    store.write_tissue(TissueLevels(held.astype(np.uint8), STEP_PX), {})
    cells = np.argwhere(held).astype(np.int32)
    store.write_patches(PatchTable(grid, cells, np.ones(len(cells), np.float32), np.zeros(len(cells), np.uint8)))


def network(name: str) -> nn.Module:
    """One convolution, or the default network of `wsipipe segment`."""
    torch.manual_seed(0)
    made = nn.Conv2d(3, len(CLASSES) + 1, 3, padding=1) if name == "conv" else create_segmenter("unet", name, 4)
    return made.eval().to(memory_format=torch.channels_last)


def stitch(model: nn.Module, store: SlideStore, folder: str) -> dict[str, str]:
    """Map the store as `wsipipe segment --stitch` does, from nothing; the row of the ledger."""
    for kind in ("labels", "scores"):
        shutil.rmtree(store.path / kind / "bench", ignore_errors=True)
    note = Checkpoint("unet", "resnet18_half", CLASSES, 0.5, WINDOW_PX, "digest", MEAN, STD, {})
    predict.load_model = lambda path: (note, model)  # type: ignore[assignment]
    run = RunConfig(stores=folder, runs=folder, device="cpu")
    report, _ = predict.predict_stores(
        [store], Path("model.json"), StitchConfig(), RunContext(run, overwrite=True), "bench"
    )
    assert report.exit_code == 0, report.rows
    return report.rows[0]


def windows_of(store: SlideStore) -> list[Window]:
    """The windows that a map of the store needs, each once."""
    cover = WindowLattice.plan(store.grid.size_px, WINDOW_PX, STRIDE_PX, store.patches().windows)
    return list(cover.touching(Window(0, 0, *store.grid.size_px)))


def groups(windows: list[Window]) -> Iterator[list[Window]]:
    for first in range(0, len(windows), BATCH):
        yield windows[first : first + BATCH]


def pace(store: SlideStore, encoder: str, rounds: int) -> dict[str, object]:
    """Windows a second, by the clock and by processor time, of the bare network and of stitching, in turns."""
    model, windows = network(encoder), windows_of(store)
    batches = [normalise(torch.from_numpy(store.read_batch(g))) for g in groups(windows)]
    found: dict[str, list[float]] = {k: [] for k in ("bare", "stitched", "bare_cpu", "stitched_cpu", "busy")}

    def alone() -> None:
        with torch.inference_mode(), autocast(torch.device("cpu")):
            for x in batches:
                model(x)

    def stitching() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found["busy"].append(float(stitch(model, store, folder)["busy"]))

    with torch.inference_mode(), autocast(torch.device("cpu")):
        model(batches[0])  # warms up
    for _ in range(rounds):
        for name, work in (("bare", alone), ("stitched", stitching)):
            clock, cpu = time.perf_counter(), time.process_time()
            work()
            found[name].append(len(windows) / (time.perf_counter() - clock))
            found[f"{name}_cpu"].append(len(windows) / (time.process_time() - cpu))
    return {"windows": len(windows), **found}


def naive(model: nn.Module, store: SlideStore) -> dict[str, float]:
    """The whole map in arrays: read, predict, add, one after the other; then the mask, written with the store."""
    width, height = store.grid.size_px
    windows, weight = windows_of(store), blend_weight(WINDOW_PX)
    started = time.perf_counter()
    total, norm = np.zeros((len(CLASSES) + 1, height, width), np.float32), np.zeros((height, width), np.float32)
    with torch.inference_mode():
        for group in groups(windows):
            p = model(normalise(torch.from_numpy(store.read_batch(group)))).softmax(1).numpy()
            for w, values in zip(group, p, strict=True):
                h, v = min(WINDOW_PX, height - w.y_px), min(WINDOW_PX, width - w.x_px)
                part = np.s_[w.y_px : w.y_px + h, w.x_px : w.x_px + v]
                total[:, *part] += (values * weight)[:, :h, :v]
                norm[part] += weight[:h, :v]
    mask = np.where(norm > 0, (total / np.maximum(norm, 1e-30)).argmax(0), 255).astype(np.uint8)

    def shards() -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
        for shard, w in shard_windows(store.mask_spec):
            yield shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]

    store.write_labels("naive", {0: "none", 1: "a", 2: "b", 3: "c"}, {"digest": "n"}, shards())
    return {"windows": len(windows), "seconds": time.perf_counter() - started}


def draw_slide(path: Path, size_px: int) -> None:
    """A slide of tissue everywhere, as Aperio writes them: JPEG tiles of 256 px, one coarse level."""
    rng = np.random.default_rng(0)
    soft = zoom(rng.normal(0, 1, (3, size_px // 64 + 1, size_px // 64 + 1)).astype(np.float32), (1, 64, 64), order=1)
    fine = rng.normal(0, 4, (size_px, size_px, 1)).astype(np.float32)
    colours = np.moveaxis(soft[:, :size_px, :size_px], 0, -1) * (18, 26, 18) + fine + COLOUR
    rgb = np.clip(colours, 0, 255).astype(np.uint8)
    note = f"Aperio Image Library v0\n{size_px}x{size_px} |AppMag = 20|MPP = {MPP}"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (rgb, rgb[::4, ::4]):
            tiff.write(level, tile=(256, 256), compression="jpeg", photometric="rgb", description=note, metadata=None)


def write_reference(slide: Path, path: Path) -> None:
    """The strongest class of every pixel, the whole slide convolved as one image: uint8 [h, w]."""
    with openslide.OpenSlide(slide) as opened:
        rgb = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]
    np.save(path, convolution()(normalise(x))[0].argmax(0).to(torch.uint8).numpy())


def map_slide(slide: Path, reference: Path, folder: Path) -> dict[str, object]:
    """From the slide file to its mask and scores in a store, as `wsipipe segment --checkpoint M --stitch` does it."""
    model = convolution().to(memory_format=torch.channels_last)
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder), device="cpu")
    before_mib, started = resident_mib(), time.perf_counter()
    tile = TileConfig(mpp=MPP, patch_px=WINDOW_PX, qc=False)
    report, (path,) = tile_slides(slides_of((str(slide),), tile), tile, RunContext(run))
    assert report.exit_code == 0, report.rows
    store = SlideStore(path)
    row = stitch(model, store, str(folder))
    seconds, peak_mib = time.perf_counter() - started, resident_mib("VmHWM")
    found = store.labels("bench").read(Window(0, 0, *store.grid.size_px))
    return {
        "seconds": seconds,
        "mapping_s": int(row["windows"]) / float(row["per_s"]),
        "before_mib": before_mib,
        "peak_mib": peak_mib,
        "same": float((found == np.load(reference)).mean()),
    }


def train(store: SlideStore, encoder: str, rounds: int, steps: int = 12) -> dict[str, object]:
    """Training steps a second on batches drawn from the store and varied, and on one batch held in memory, in turns."""
    if "truth" not in store.names("labels"):
        write_truth(store)
    batches = Batches(find_samples([store], "truth", 1), "truth", 8, 0, Variation(max_zoom=TrainConfig().max_zoom))
    held, model = batches(0), network(encoder)

    def loss(batch: Batch) -> torch.Tensor:
        return segmentation_loss(model(normalise(batch.rgb)).float(), batch.mask)

    def learn(draw: Callable[[int], Batch], count: int) -> None:
        fit(model, draw, loss, Schedule(count, 1e-4), "bench", ComputeContext(torch.device("cpu")))

    found: dict[str, list[float]] = {"held": [], "drawn": []}
    learn(lambda step: held, 2)  # warms up
    for _ in range(rounds):
        for name, draw in (("held", lambda step: held), ("drawn", batches)):
            clock = time.perf_counter()
            learn(draw, steps)
            found[name].append(steps / (time.perf_counter() - clock))
    return found


def write_truth(store: SlideStore) -> None:
    """`labels/truth`: a class in every second chunk."""
    width, height = store.grid.size_px
    odd = np.add.outer(np.arange(height) // STEP_PX, np.arange(width) // STEP_PX) % 2
    shards = (
        (shard, odd[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px].astype(np.uint8))
        for shard, w in shard_windows(store.mask_spec)
    )
    store.write_labels("truth", {0: "none", 1: "a", 255: "ignore"}, {"digest": "t", "classes": ["a"]}, shards)


def warmed() -> tuple[nn.Module, float]:
    """The network of one convolution after one batch, and the MiB that the process holds then."""
    model = network("conv")
    rgb = torch.zeros((BATCH, 3, WINDOW_PX, WINDOW_PX), dtype=torch.uint8)
    with torch.inference_mode(), autocast(torch.device("cpu")):
        model(normalise(rgb)).softmax(1)
    return model, resident_mib()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("store", "pace", "memory", "naive", "slide", "map", "train"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--encoder", default="resnet18_half")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    answer: dict[str, object] = {}
    if args.what == "store":
        make_store(args.out, args.size, args.full)
    elif args.what == "slide":
        draw_slide(args.out, args.size)
        write_reference(args.out, args.reference)
    elif args.what == "map":
        with tempfile.TemporaryDirectory() as folder:
            answer = map_slide(args.slide, args.reference, Path(folder))
    elif args.what == "train":
        answer = dict(train(SlideStore(args.store), args.encoder, args.rounds))
    elif args.what == "pace":
        answer = pace(SlideStore(args.store), args.encoder, args.rounds)
    else:
        model, before_mib = warmed()
        if args.what == "naive":
            answer = {**naive(model, SlideStore(args.store)), "before_mib": before_mib}
        else:
            with tempfile.TemporaryDirectory() as folder:
                row = stitch(model, SlideStore(args.store), folder)
            answer = {"windows": int(row["windows"]), "per_s": float(row["per_s"]), "before_mib": before_mib}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
