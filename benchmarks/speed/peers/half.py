"""Peers of tiling at half the slide's resolution: openslide-python with Pillow, cuCIM with the writer of wsipipe."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from common import CHUNK_PX, WORKERS, Cell, Job, Stopwatch, result, run
from pools import Workers


class PillowShard:
    """Reads each chunk's area through OpenSlide, shrinks it with Pillow and appends its JPEG to the shard's file."""

    def __init__(self, slide: Path, out: Path, scale: int, quality: int) -> None:
        import openslide

        self._slide = openslide.OpenSlide(slide)
        self._out, self._scale, self._quality = out, scale, quality

    def __call__(self, shard: tuple[Cell, list[Cell]]) -> tuple[float, dict[Cell, tuple[int, int]]]:
        """Write one shard; returns the processor seconds and (offset, size) of every chunk."""
        from PIL import Image

        began = time.process_time()
        (row, col), cells = shard
        side = CHUNK_PX * self._scale
        places = {}
        with (self._out / f"{row}.{col}").open("wb") as out:
            for r, c in cells:
                source = self._slide.read_region((c * side, r * side), 0, (side, side)).convert("RGB")
                small = source.resize((CHUNK_PX, CHUNK_PX), Image.Resampling.BOX)
                stream = io.BytesIO()
                small.save(stream, "JPEG", quality=self._quality, subsampling="4:2:0")
                places[r, c] = (out.tell(), stream.tell())
                out.write(stream.getvalue())
        return time.process_time() - began, places


def openslide_pillow(job: Job) -> dict[str, Any]:
    """openslide-python, Pillow's box resize and JPEG in 2 processes."""
    plan = job.plan
    make = partial(PillowShard, job.slide, job.out, plan.scale, plan.quality)
    shards = plan.shards()
    with Workers(make) as pool, Stopwatch() as watch:
        answers = pool.map(shards)
    watch.cpu = sum(cpu for cpu, _ in answers)
    places = {c: (shard, at) for (shard, _), (_, cells) in zip(shards, answers, strict=True) for c, at in cells.items()}
    (row, col), (offset, size) = places[plan.probe]
    stream = (job.out / f"{row}.{col}").read_bytes()[offset : offset + size]
    return result(watch, len(places), simplejpeg.decode_jpeg(stream))


def cucim(job: Job) -> dict[str, Any]:
    """Read with cuCIM in 2 threads; area mean, JPEG and shard files by the functions of wsipipe itself."""
    from cucim import CuImage

    from wsipipe.slides.area_mean import area_mean
    from wsipipe.store.layout import create_array
    from wsipipe.store.shards import ArraySpec

    plan = job.plan
    width, height = plan.size_px
    array = create_array(job.out / "0", ArraySpec((3, height, width), "uint8", 255, quality=plan.quality), "cyx")
    slide, side = CuImage(str(job.slide)), CHUNK_PX * plan.scale
    steps = (float(plan.scale), float(plan.scale))

    def encoded(cell: Cell) -> tuple[bytes]:
        source = np.asarray(slide.read_region((cell[1] * side, cell[0] * side), (side, side), 0))
        small = area_mean(source[..., :3], (0.0, 0.0), steps, (CHUNK_PX, CHUNK_PX))
        return (array.spec.encode(np.moveaxis(small, -1, 0)),)

    def one(item: tuple[Cell, list[Cell]]) -> int:
        shard, cells = item
        return array.write_shard(shard, ((c, encoded(c)) for c in cells))

    shards = plan.shards()
    encoded(plan.probe)
    with ThreadPoolExecutor(WORKERS) as pool, Stopwatch() as watch:
        written = sum(pool.map(one, shards))
    chunk = array.chunk(plan.probe)
    assert chunk is not None
    return result(watch, written, np.moveaxis(chunk, 0, -1).astype(np.uint8))


if __name__ == "__main__":
    run({"openslide-pillow": openslide_pillow, "cucim": cucim}, __doc__)
