"""Time and memory of exporting masks to GeoJSON, each in a process of its own.

    python -m benchmarks.speed.geojson --work /tmp/geojson

Masks are made of one block of smoothed noise, repeated without seams: at its median half of the pixels belong to
pieces that wind through the whole slide, with holes and islands, which is the hardest case for what has to be held. The
rest of a slide is empty, as most of a slide is glass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.processes import wait_for
from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import SHARD_PX, Cell

CASES = ((8_192, 1.0, 16.0), (16_384, 1.0, 12.0), (100_000, 0.02, 16.0))
"""Side in px, share of the shards that hold something, and width of the smoothing in px."""

EXPORT = """
import sys, time
from pathlib import Path
from wsipipe.export.formats.geojson import GeoJsonOptions, verify_geojson, write_geojson
from wsipipe.store import SlideStore
store, path = SlideStore(Path(sys.argv[1])), Path(sys.argv[2])
begun, cpu = time.perf_counter(), time.process_time()
if sys.argv[3] == "verify":
    verify_geojson(path, store, "net")
else:
    write_geojson(store, "net", path, GeoJsonOptions(tolerance_um=float(sys.argv[4])))
print(time.perf_counter() - begun, time.process_time() - cpu)
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores and files; made again if gone")
    parser.add_argument("--case", type=int, nargs="*", help=f"which of the {len(CASES)} masks; default: all")
    parser.add_argument("--tolerance", type=float, default=1.0, help="um of the simplified export")
    parser.add_argument("--make", action="store_true", help="only make the stores")
    args = parser.parse_args()
    chosen = args.case or range(len(CASES))
    if args.make:
        for i in chosen:
            make(store_of(args.work, i), *CASES[i])
        return
    print("| mask | what | pieces | vertices | MB | s | CPU s | MiB |", "| --- " * 8 + "|", sep="\n")
    for i in chosen:
        # by another process, as what this one holds counts for those that it measures
        subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.geojson", "--work", str(args.work), "--make", "--case", str(i)],
            check=True,
        )
        for what, tolerance in (("write", 0.0), ("verify", 0.0), ("write", args.tolerance)):
            print(row(store_of(args.work, i), what, tolerance), flush=True)


def store_of(work: Path, case: int) -> Path:
    """The store of a case."""
    return work / "{}_{}_{}.zarr".format(*CASES[case])


def make(path: Path, side: int, share: float, width: float) -> None:
    """Make the store of a case if it is not there."""
    if not path.exists():
        noise = np.random.default_rng(0).standard_normal((SHARD_PX, SHARD_PX)).astype(np.float32)
        block = (ndimage.gaussian_filter(noise, width, mode="wrap") > 0).astype(np.uint8)
        grid = Grid((side, side), (0.5, 0.5), (1.0, 1.0), 256, 256)
        meta = {"slide_id": path.stem, "pixel_digest": "p", "slide": {"bounds_px0": [0, 0, side, side]}}
        store = SlideStore.create(path, grid, 0, meta)
        store.write_labels("net", {0: "none", 1: "tumour", 255: "ignore"}, {"digest": "d"}, shards(store, block, share))


def shards(store: SlideStore, block: NDArray[np.uint8], share: float) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
    """The shards of the mask: a share of them, from the top, is filled."""
    windows = list(shard_windows(store.mask_spec))
    for shard, window in windows[: max(1, round(share * len(windows)))]:
        yield shard, block[: window.height_px, : window.width_px]


def row(store: Path, what: str, tolerance: float) -> str:
    """One line of the table: `what` is done by a fresh process."""
    path = store.with_suffix(f".{tolerance}.geojson")
    command = [sys.executable, "-c", EXPORT, str(store), str(path), what, str(tolerance)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    begun = time.perf_counter()
    mib = wait_for(process)
    assert process.stdout is not None
    seconds, cpu = map(float, process.stdout.read().split())
    assert process.returncode == 0
    assert seconds <= time.perf_counter() - begun
    pieces, vertices = counted(path)
    name = what if not tolerance else f"{what}, {tolerance} um"
    size = path.stat().st_size / 1e6
    return f"| {store.stem} | {name} | {pieces} | {vertices} | {size:.1f} | {seconds:.1f} | {cpu:.1f} | {mib:.0f} |"


def counted(path: Path) -> tuple[int, int]:
    """Pieces and vertices of a file, the closing ones left out."""
    pieces, vertices = 0, 0
    with path.open() as f:
        for line in f:
            if line.startswith('{"type":"Feature",'):
                rings = json.loads(line.rstrip(",\n"))["geometry"]["coordinates"]
                pieces, vertices = pieces + 1, vertices + sum(len(r) - 1 for r in rings)
    return pieces, vertices


if __name__ == "__main__":
    main()
