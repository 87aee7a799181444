"""Peers of tiling at a native level: copied compressed bytes, openslide-python to zarr-python, libvips dzsave."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from common import CHUNK_PX, SHARD_PX, WORKERS, Cell, Job, Stopwatch, result, run
from pools import Workers

Band = tuple[int, int]
"""(offset, size) in the slide file."""


class SlideTiles:
    """Where the compressed tiles of level 0 lie in the file."""

    def __init__(self, path: Path) -> None:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            self._offsets, self._sizes = page.dataoffsets, page.databytecounts
            self._cols = -(-page.imagewidth // page.tilewidth)
            self._tables: bytes = page.jpegtables

    def piece(self, cell: Cell) -> Band:
        """The place of one tile."""
        at = cell[0] * self._cols + cell[1]
        return self._offsets[at], self._sizes[at]

    def standalone(self, stream: bytes) -> bytes:
        """One tile as a JPEG file that any decoder understands."""
        return self._tables[:-2] + stream[2:]


def _joined(pieces: Sequence[Band]) -> list[Band]:
    """Neighbours in the file as one piece."""
    runs: list[Band] = []
    for offset, size in pieces:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((offset, size))
    return runs


def copy(job: Job, coalesced: bool) -> dict[str, Any]:
    """Read the compressed tiles and write them, a file a shard, in 2 threads; no decoding, no index, no checksum."""
    tiles, plan = SlideTiles(job.slide), job.plan
    shards = plan.shards()
    file = os.open(job.slide, os.O_RDONLY)

    def one(item: tuple[Cell, list[Cell]]) -> None:
        (row, col), cells = item
        pieces = [tiles.piece(c) for c in cells]
        with (job.out / f"{row}.{col}").open("wb") as out:
            for offset, size in _joined(pieces) if coalesced else pieces:
                out.write(os.pread(file, size, offset))

    with Stopwatch() as watch, ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, shards))
    (shard, cells) = next(s for s in shards if plan.probe in s[1])
    sizes = [tiles.piece(c)[1] for c in cells]
    at = cells.index(plan.probe)
    stream = (job.out / f"{shard[0]}.{shard[1]}").read_bytes()[sum(sizes[:at]) :][: sizes[at]]
    wanted = sum(tiles.piece(c)[1] for _, cells in shards for c in cells)
    written = sum(f.stat().st_size for f in job.out.iterdir())
    return result(
        watch,
        len(plan.cells) if written == wanted else 0,
        simplejpeg.decode_jpeg(tiles.standalone(stream)),
        bytes=written,
    )


class ZarrShard:
    """Reads the tiles of a shard through OpenSlide and assigns the whole shard to a zarr-python array."""

    def __init__(self, slide: Path, out: Path) -> None:
        import openslide
        import zarr

        self._slide = openslide.OpenSlide(slide)
        self._array = zarr.open_array(out, mode="r+")

    def __call__(self, shard: tuple[Cell, list[Cell]]) -> float:
        """Write one shard; returns the processor seconds it took."""
        began = time.process_time()
        (row, col), cells = shard
        y0, x0 = row * SHARD_PX, col * SHARD_PX
        pixels = np.full((SHARD_PX, SHARD_PX, 3), 255, np.uint8)
        for r, c in cells:
            y, x = r * CHUNK_PX, c * CHUNK_PX
            tile = np.asarray(self._slide.read_region((x, y), 0, (CHUNK_PX, CHUNK_PX)))
            pixels[y - y0 : y - y0 + CHUNK_PX, x - x0 : x - x0 + CHUNK_PX] = tile[..., :3]
        height, width = self._array.shape[:2]
        inside = pixels[: height - y0, : width - x0]
        self._array[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside
        return time.process_time() - began


def openslide_zarr(job: Job) -> dict[str, Any]:
    """openslide-python to a sharded zstd array of zarr-python: 2 processes, a whole shard an assignment."""
    import zarr
    from zarr.codecs import ZstdCodec

    plan, path = job.plan, job.out / "array.zarr"
    width, height = plan.size_px
    array = zarr.create_array(
        path,
        shape=(height, width, 3),
        chunks=(CHUNK_PX, CHUNK_PX, 3),
        shards=(SHARD_PX, SHARD_PX, 3),
        dtype="uint8",
        fill_value=255,
        compressors=ZstdCodec(level=1),
    )
    with Workers(partial(ZarrShard, job.slide, path)) as pool, Stopwatch() as watch:
        cpu = pool.map(plan.shards())
    watch.cpu = sum(cpu)
    y, x = (n * CHUNK_PX for n in plan.probe)
    written = sum(_stored_chunks(f) for f in path.glob("c/*/*/*"))
    return result(watch, written, array[y : y + CHUNK_PX, x : x + CHUNK_PX])


def _stored_chunks(shard: Path) -> int:
    """Chunks that the index at the end of a shard file lists."""
    n = (SHARD_PX // CHUNK_PX) ** 2
    index = np.frombuffer(shard.read_bytes()[-16 * n - 4 : -4], "<u8")
    return int((index[::2] != 2**64 - 1).sum())


def dzsave(job: Job) -> dict[str, Any]:
    """Have libvips write all tiles of level 0, blank ones included, as JPEG files in a zip."""
    import pyvips

    path = job.out / "tiles.zip"
    image = pyvips.Image.tiffload(str(job.slide), access="sequential")
    with Stopwatch() as watch:
        image.dzsave(str(path), container="zip", depth="one", tile_size=CHUNK_PX, overlap=0, suffix=".jpg")
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(".jpg")]
        row, col = job.plan.probe
        stream = archive.read(next(n for n in names if n.endswith(f"/{col}_{row}.jpg")))
    return result(watch, len(names), simplejpeg.decode_jpeg(stream))


if __name__ == "__main__":
    run(
        {
            "copy": partial(copy, coalesced=False),
            "copy-runs": partial(copy, coalesced=True),
            "openslide-zarr": openslide_zarr,
            "dzsave": dzsave,
        },
        __doc__,
    )
