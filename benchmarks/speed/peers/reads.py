"""Peers of random reading: zarr-python on the store and on an array of patches, and bare JPEG decoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import imagecodecs
import numpy as np
import simplejpeg
import zarr
from common import BATCH, CHUNK_PX, WORKERS, Job, Stopwatch, Windows, result, run, timed_reads
from native import SlideTiles
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

SHARD_PATCHES = 256
SLIDE_QUALITY = 78
"""JPEG quality of the synthetic slides, hence of the chunks that wsipipe copies from them."""


@dataclass(frozen=True)
class PatchJpeg(ArrayBytesCodec):
    """A uint8 [1, y, x, 3] chunk as one JPEG stream."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From zarr.json."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """As zarr.json."""
        return {"name": "patch_jpeg", "configuration": {}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = imagecodecs.jpeg8_decode(chunk_data.to_bytes())[None]
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        stream = imagecodecs.jpeg8_encode(np.ascontiguousarray(chunk_data.as_numpy_array()[0]), level=SLIDE_QUALITY)
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before encoding."""
        raise NotImplementedError


def _patches(store: Path, codec: str) -> zarr.Array[Any]:
    """An array of patches that `pack` wrote."""
    register_codec("patch_jpeg", PatchJpeg)
    return zarr.open_array(store / f"{codec}.zarr", mode="r")


def pack(job: Job) -> dict[str, Any]:
    """The same patches as arrays [patch, y, x, 3] in shards of 256 patches: the layout that z[i] is made for."""
    windows = Windows.load(job.windows)
    store = _pixels(job.store)
    shape = (len(windows.pool), CHUNK_PX, CHUNK_PX, 3)
    layout = {"chunks": (1, *shape[1:]), "shards": (SHARD_PATCHES, *shape[1:]), "dtype": "uint8"}
    jpeg = zarr.create_array(
        job.out / "jpeg.zarr", shape=shape, serializer=PatchJpeg(), compressors=Crc32cCodec(), **layout
    )
    zstd = zarr.create_array(
        job.out / "zstd.zarr", shape=shape, compressors=(ZstdCodec(level=1), Crc32cCodec()), **layout
    )
    with Stopwatch() as watch:
        for first in range(0, len(windows.pool), SHARD_PATCHES):
            patches = np.stack([_window(store, xy) for xy in windows.pool[first : first + SHARD_PATCHES].tolist()])
            jpeg[first : first + len(patches)] = patches
            zstd[first : first + len(patches)] = patches
    return result(watch, len(windows.pool))


def _pixels(store: Path) -> zarr.Array[Any]:
    """Level 0 of a store of wsipipe, opened by zarr-python."""
    from wsipipe.store.codec import Jpeg

    register_codec("imagecodecs_jpeg", Jpeg)
    return zarr.open_array(store / "0", mode="r")


def _window(array: zarr.Array[Any], xy: list[int]) -> NDArray[Any]:
    """uint8 [y, x, 3] of the window at (x, y)."""
    x, y = xy
    return np.moveaxis(np.asarray(array[:, y : y + CHUNK_PX, x : x + CHUNK_PX]), 0, -1)


def zarr_window(job: Job) -> dict[str, Any]:
    """zarr-python on the store of wsipipe: one selection a window."""
    windows, array = Windows.load(job.windows), _pixels(job.store)
    return timed_reads(windows, lambda batch: np.stack([_window(array, xy) for xy in windows.pool[batch].tolist()]))


def zarr_loop(job: Job, codec: str) -> dict[str, Any]:
    """zarr-python on the array of patches: z[i] in a loop."""
    windows, array = Windows.load(job.windows), _patches(job.store, codec)
    return timed_reads(windows, lambda batch: np.stack([np.asarray(array[i]) for i in batch.tolist()]))


def zarr_orthogonal(job: Job) -> dict[str, Any]:
    """zarr-python on the array of patches: one orthogonal selection a batch."""
    windows, array = Windows.load(job.windows), _patches(job.store, "jpeg")
    return timed_reads(windows, lambda batch: np.asarray(array.oindex[batch]))


def turbo(job: Job, decode: Callable[[list[bytes]], int]) -> dict[str, Any]:
    """libjpeg-turbo decoding the slide's own tiles from memory in 2 threads with a buffer each; no pixel is kept."""
    windows, tiles = Windows.load(job.windows), SlideTiles(job.slide)
    cells = [(y // CHUNK_PX, x // CHUNK_PX) for x, y in windows.pool[windows.order].tolist()]
    file = os.open(job.slide, os.O_RDONLY)
    streams = [tiles.standalone(os.pread(file, size, offset)) for offset, size in map(tiles.piece, cells)]
    parts = [streams[i::WORKERS] for i in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(decode, [p[:BATCH] for p in parts]))
        with Stopwatch() as watch:
            count = sum(pool.map(decode, parts))
    return result(watch, count, simplejpeg.decode_jpeg(streams[0]))


def _by_simplejpeg(streams: list[bytes]) -> int:
    buffer = np.empty((CHUNK_PX, CHUNK_PX, 3), np.uint8)
    for stream in streams:
        simplejpeg.decode_jpeg(stream, buffer=buffer)
    return len(streams)


def _by_imagecodecs(streams: list[bytes]) -> int:
    buffer = np.empty((CHUNK_PX, CHUNK_PX, 3), np.uint8)
    for stream in streams:
        imagecodecs.jpeg8_decode(stream, out=buffer)
    return len(streams)


if __name__ == "__main__":
    run(
        {
            "pack": pack,
            "zarr-window": zarr_window,
            **{f"zarr-loop-{codec}": partial(zarr_loop, codec=codec) for codec in ("jpeg", "zstd")},
            "zarr-orthogonal": zarr_orthogonal,
            "turbo-simplejpeg": partial(turbo, decode=_by_simplejpeg),
            "turbo-imagecodecs": partial(turbo, decode=_by_imagecodecs),
        },
        __doc__,
    )
