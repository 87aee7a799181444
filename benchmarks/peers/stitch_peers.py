"""The merging of other tools on a map covered by windows everywhere; runs in the peers' environment.

    PEERS/bin/python benchmarks/peers/stitch_peers.py monai|monai-zarr|tiatoolbox --size PX

The answers of the network are one array, handed out again and again, so that merging alone is measured. The answer is
a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WINDOW_PX, STRIDE_PX, CHANNELS, BATCH = 256, 128, 4, 16


def starts(size_px: int) -> list[int]:
    """Starts of the windows along a side that is covered to its end."""
    return sorted({*range(0, size_px - WINDOW_PX, STRIDE_PX), size_px - WINDOW_PX})


def answers() -> np.ndarray:
    """Probabilities of one batch of windows: float32 [B, C, h, w]."""
    p = np.random.default_rng(0).random((BATCH, CHANNELS, WINDOW_PX, WINDOW_PX)).astype(np.float32)
    return p / p.sum(1, keepdims=True)


def monai(size_px: int, folder: Path) -> Callable[[], float]:
    """`sliding_window_inference` with Gaussian weights over an image in memory; it changes the answers in place."""
    import torch
    from monai.inferers import sliding_window_inference

    p = torch.from_numpy(answers())

    def run() -> float:
        image = torch.zeros((1, 3, size_px, size_px))
        side = (WINDOW_PX, WINDOW_PX)
        merged = sliding_window_inference(image, side, BATCH, lambda x: p[: len(x)].clone(), 0.5, mode="gaussian")
        return float(merged[0, :, size_px // 2, size_px // 2].sum())

    return run


def monai_zarr(size_px: int, folder: Path) -> Callable[[], float]:
    """`ZarrAvgMerger`, window by window, out of memory."""
    import torch
    from monai.inferers import ZarrAvgMerger

    p = torch.from_numpy(answers())

    def run() -> float:
        shape = (1, CHANNELS, size_px, size_px)
        stores = {k: str(folder / f"{k}.zarr") for k in ("store", "value_store", "count_store")}
        merger = ZarrAvgMerger(merged_shape=shape, chunks=(1, CHANNELS, 1024, 1024), **stores)
        for y in starts(size_px):
            for i, x in enumerate(starts(size_px)):
                merger.aggregate(p[i % BATCH][None], (y, x))
        merged = merger.finalize()
        return float(np.asarray(merged[0, :, size_px // 2, size_px // 2]).sum())

    return run


def tiatoolbox(size_px: int, folder: Path) -> Callable[[], float]:
    """What `SemanticSegmentor` does with the answers of a slide: rows of windows merged, then rows with rows."""
    from tiatoolbox.models.engine.semantic_segmentor import merge_horizontal, merge_vertical_chunkwise

    p = np.ascontiguousarray(answers().transpose(0, 2, 3, 1))

    def run() -> float:
        canvas = count = rows = None
        xs = np.array(starts(size_px))
        blocks = p[np.arange(len(xs)) % BATCH]
        for y in starts(size_px):
            places = np.stack([xs, np.full_like(xs, y), xs + WINDOW_PX, np.full_like(xs, y + WINDOW_PX)], 1)
            canvas, count, _, _, rows = merge_horizontal(canvas, count, rows, blocks, places, [len(xs)], size_px)
        merged = merge_vertical_chunkwise(
            canvas, count, rows, None, folder / "cache.zarr", output_shape=(size_px, size_px), verbose=False
        )
        return float(np.asarray(merged[size_px // 2, size_px // 2]).sum())

    return run


def resident_mib() -> float:
    """Memory that the process holds now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Command line."""
    tools = {"monai": monai, "monai-zarr": monai_zarr, "tiatoolbox": tiatoolbox}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=tuple(tools))
    parser.add_argument("--size", type=int, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = tools[args.tool](args.size, Path(folder))
        before_mib, started = resident_mib(), time.perf_counter()
        total = run()
        seconds = time.perf_counter() - started
    if not abs(total - 1) < 1e-3:
        raise SystemExit(f"wrong output: the classes of a pixel sum to {total:.4f}, not 1")
    windows = len(starts(args.size)) ** 2
    print(json.dumps({"windows": windows, "seconds": seconds, "before_mib": before_mib}))


if __name__ == "__main__":
    main()
