"""Read and write sharded Zarr v3 arrays chunk by chunk, bit-compatible with stock zarr and many times faster.

A shard file contains its chunks one after the other and ends with an index: (offset, nbytes) as little-endian uint64
per chunk in row-major order, all ones for a missing chunk, then the crc32c of the index (Zarr v3 sharding codec).
Every chunk ends with its own crc32c. An array has axes (c, y, x) or (y, x); c is never split.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Window, ceil_div
from wsipipe.runtime.atomic import replacing
from wsipipe.store.codec import jpeg_decode, jpeg_encode

CHUNK_PX = 256
SHARD_PX = 4096
_ABSENT = 2**64 - 1
_READ_TASKS = 8
_MAX_PIECES = 768  # writev accepts at most 1024

MAX_OPEN = 64
"""Shard files that an array keeps open."""

Cell = tuple[int, int]
"""(row, col) of a chunk in the array's chunk lattice, or of a shard in its shard lattice."""


@dataclass(frozen=True)
class ArraySpec:
    """Layout of one array, as in its zarr.json. shape: (c, y, x) or (y, x). quality: of JPEG, 0 for zstd."""

    shape: tuple[int, ...]
    dtype: str
    fill: int
    chunk_px: int = CHUNK_PX
    shard_px: int = SHARD_PX
    quality: int = 0

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a decoded chunk."""
        return (*self.shape[:-2], self.chunk_px, self.chunk_px)

    @property
    def per_shard(self) -> int:
        """Chunks along one side of a shard."""
        return self.shard_px // self.chunk_px

    @property
    def shards(self) -> Cell:
        """Rows and columns of shards."""
        return ceil_div(self.shape[-2], self.shard_px), ceil_div(self.shape[-1], self.shard_px)

    def chunks_of_shard(self, shard: Cell) -> list[Cell]:
        """The chunks of a shard that lie at least partly inside the array, row-major."""
        n = self.per_shard
        rows, cols = ceil_div(self.shape[-2], self.chunk_px), ceil_div(self.shape[-1], self.chunk_px)
        return [
            (r, c)
            for r in range(shard[0] * n, min(rows, (shard[0] + 1) * n))
            for c in range(shard[1] * n, min(cols, (shard[1] + 1) * n))
        ]

    def encode(self, chunk: NDArray[np.generic]) -> bytes:
        """Encode one chunk [c, y, x] or [y, x], without its crc32c."""
        if self.quality:
            return jpeg_encode(np.moveaxis(chunk, 0, -1).astype(np.uint8, copy=False), self.quality)
        return bytes(imagecodecs.zstd_encode(np.ascontiguousarray(chunk, self.dtype).tobytes(), level=3))

    def decode(self, body: bytes, out: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
        """Decode one chunk [c, y, x] or [y, x], into `out` if it is given and the codec can write there.

        With three axes the memory is channels last: (y, x, c) under a view of (c, y, x).
        """
        if self.quality:
            into = np.moveaxis(out, 0, -1) if out is not None else None
            pixels = jpeg_decode(body, into if into is not None and into.flags.c_contiguous else None)
            if pixels.shape != (self.chunk_px, self.chunk_px, self.shape[0]):
                raise ValueError(f"an image of shape {pixels.shape}, expected {self.chunk_px} px")
            return np.moveaxis(pixels, -1, 0)
        flat = np.frombuffer(imagecodecs.zstd_decode(body), self.dtype)
        return flat.reshape(self.chunk_shape)


class Shard:
    """One open shard file, with its index in memory. Thread-safe: chunks are read by position."""

    def __init__(self, file: Path, chunks: int) -> None:
        self.file = file
        self._file = file.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._size = size = os.fstat(self._file.fileno()).st_size
        tail = os.pread(self._file.fileno(), chunks * 16 + 4, max(0, size - chunks * 16 - 4))
        if len(tail) != chunks * 16 + 4 or _crc(tail[:-4]) != tail[-4:]:
            raise StoreError(f"{file}: damaged index; tile or compute it again")
        self._index = struct.unpack(f"<{2 * chunks}Q", tail[:-4])

    def body(self, i: int) -> bytes | None:
        """Chunk `i` (row-major in the shard) without its crc32c; None if missing. Raises StoreError if damaged."""
        offset, size = self._index[2 * i], self._index[2 * i + 1]
        if offset == _ABSENT:
            return None
        stored = os.pread(self._file.fileno(), size, offset) if offset + size <= self._size else b""
        body = stored[:-4]
        if len(stored) != size or size < 4 or _crc(body) != stored[-4:]:
            raise StoreError(f"{self.file} chunk {i}: damaged, the checksum does not match; tile or compute it again")
        return body

    def present(self) -> list[int]:
        """Indices of the stored chunks."""
        return [i for i, offset in enumerate(self._index[::2]) if offset != _ABSENT]


class ShardedArray:
    """One array on a local disk. Reading is thread-safe; each shard may have only one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = _spec_of(path)
        self._open: OrderedDict[Cell, Shard | None] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, window: Window) -> NDArray[np.generic]:
        """The pixels of `window` (px of this array): [c, h, w] or [h, w]; the fill value where nothing is stored."""
        return np.asarray(self.read_batch([window])[0])

    def read_batch(self, windows: Sequence[Window], pool: Executor | None = None) -> NDArray[np.generic]:
        """Windows of one size: [n, c, h, w], channels last in memory, or [n, h, w]; fill value where nothing is stored.

        Each chunk is decoded once for all windows that overlap it, directly into the result where a window is exactly a
        chunk. The threads of `pool` decode several chunks at a time.
        """
        height, width = windows[0].height_px, windows[0].width_px
        lead = self.spec.shape[:-2]
        out: NDArray[np.generic] = np.empty((len(windows), height, width, *lead), self.spec.dtype)
        if lead:
            out = np.moveaxis(out, -1, 1)
        touched: dict[Cell, list[int]] = {}
        for i, window in enumerate(windows):
            if (window.height_px, window.width_px) != (height, width):
                raise ValueError(f"windows of one size expected, found {window} after {windows[0]}")
            cells, inside = self._cells(window)
            if not inside:
                out[i] = self.spec.fill
            for cell in cells:
                touched.setdefault(cell, []).append(i)

        def place(some: Sequence[Cell]) -> None:
            for cell in some:
                self._place(cell, [(windows[i], out[i]) for i in touched[cell]])

        all_cells = list(touched)
        if pool and len(all_cells) > 1:  # in few tasks: submitting one costs a tenth of decoding a chunk
            list(pool.map(place, [all_cells[i::_READ_TASKS] for i in range(min(_READ_TASKS, len(all_cells)))]))
        else:
            place(all_cells)
        return out

    def chunk(self, cell: Cell, out: NDArray[np.generic] | None = None) -> NDArray[np.generic] | None:
        """One decoded chunk, in `out` if the codec can write there; None if it is not stored."""
        n = self.spec.per_shard
        shard = self.shard((cell[0] // n, cell[1] // n))
        body = shard.body(cell[0] % n * n + cell[1] % n) if shard else None
        if shard is None or body is None:
            return None
        try:
            return self.spec.decode(body, out)
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{shard.file} chunk {cell}: the checksum matches, but decoding fails ({error})") from None

    def shard(self, shard: Cell) -> Shard | None:
        """The open file of a shard, None if there is none. Raises StoreError if its index is damaged."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        try:
            opened = Shard(shard_file(self.path, self.spec, shard), self.spec.per_shard**2)
        except FileNotFoundError:
            opened = None
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)  # closed when its last reader drops it
        return opened

    def present(self) -> NDArray[np.bool_]:
        """Which chunks are stored: bool [rows, cols]."""
        n, (rows, cols) = self.spec.per_shard, self.spec.shards
        out = np.zeros((rows * n, cols * n), bool)
        for row in range(rows):
            for col in range(cols):
                shard = self.shard((row, col))
                for i in shard.present() if shard else ():
                    out[row * n + i // n, col * n + i % n] = True
        height, width = self.spec.shape[-2:]
        return np.asarray(out[: ceil_div(height, self.spec.chunk_px), : ceil_div(width, self.spec.chunk_px)])

    def write_shard(self, shard: Cell, chunks: Iterable[tuple[Cell, Sequence[bytes]]]) -> int:
        """Write one whole shard, atomically; returns the number of its chunks.

        A chunk comes encoded, in one or several pieces, and gets its crc32c here. Missing chunks read as fill value.
        """
        n = self.spec.per_shard
        index = [_ABSENT] * (2 * n * n)
        file = shard_file(self.path, self.spec, shard)
        offset = 0
        waiting: list[bytes] = []
        with replacing(file) as partial, partial.open("wb", buffering=0) as f:
            for cell, pieces in chunks:
                crc = 0
                for piece in pieces:
                    crc = google_crc32c.extend(crc, piece)
                size = sum(map(len, pieces)) + 4
                i = 2 * (cell[0] % n * n + cell[1] % n)
                index[i : i + 2] = offset, size
                offset += size
                waiting += (*pieces, crc.to_bytes(4, "little"))
                if len(waiting) >= _MAX_PIECES:
                    _write_all(f, waiting)
                    waiting = []
            tail = struct.pack(f"<{len(index)}Q", *index)
            _write_all(f, [*waiting, tail, _crc(tail)])
            os.fsync(f.fileno())
        if not offset:
            file.unlink()
        with self._lock:
            self._open.pop(shard, None)
        return n * n - index[::2].count(_ABSENT)

    def write_blocks(self, shard: Cell, blocks: Iterable[tuple[Cell, NDArray[np.generic]]]) -> int:
        """Encode and write the chunks of one shard; chunks with the fill value alone are left out."""
        return self.write_shard(shard, ((c, (self.spec.encode(b),)) for c, b in blocks if np.any(b != self.spec.fill)))

    def write_region(self, shard: Cell, pixels: NDArray[np.generic]) -> int:
        """Write one shard from its pixels [c, h, w] or [h, w], clipped to the array."""
        n, per = self.spec.chunk_px, self.spec.per_shard

        def block(cell: Cell) -> NDArray[np.generic]:
            y, x = (cell[0] - shard[0] * per) * n, (cell[1] - shard[1] * per) * n
            whole = np.full(self.spec.chunk_shape, self.spec.fill, self.spec.dtype)
            part = pixels[..., y : y + n, x : x + n]
            whole[..., : part.shape[-2], : part.shape[-1]] = part
            return whole

        return self.write_blocks(shard, ((cell, block(cell)) for cell in self.spec.chunks_of_shard(shard)))

    def _cells(self, window: Window) -> tuple[list[Cell], bool]:
        """The chunks that a window overlaps, and whether it lies wholly inside the array."""
        n, (height, width) = self.spec.chunk_px, self.spec.shape[-2:]
        y1, y2 = max(window.y_px, 0), min(window.y_px + window.height_px, height)
        x1, x2 = max(window.x_px, 0), min(window.x_px + window.width_px, width)
        if y1 >= y2 or x1 >= x2:
            return [], False
        cells = [(r, c) for r in range(y1 // n, ceil_div(y2, n)) for c in range(x1 // n, ceil_div(x2, n))]
        return cells, (y2 - y1, x2 - x1) == (window.height_px, window.width_px)

    def _place(self, cell: Cell, wanted: Sequence[tuple[Window, NDArray[np.generic]]]) -> None:
        """Copy the parts of one chunk into the pixels [c, h, w] or [h, w] of the windows that overlap it."""
        n, (height, width) = self.spec.chunk_px, self.spec.shape[-2:]
        y0, x0 = cell[0] * n, cell[1] * n
        window, pixels = wanted[0]
        whole = (
            (window.y_px, window.x_px, *pixels.shape[-2:]) == (y0, x0, n, n) and y0 + n <= height and x0 + n <= width
        )
        chunk = self.chunk(cell, pixels if whole else None)
        for window, pixels in wanted:
            ya, yb = max(window.y_px, y0), min(window.y_px + window.height_px, y0 + n, height)
            xa, xb = max(window.x_px, x0), min(window.x_px + window.width_px, x0 + n, width)
            part = pixels[..., ya - window.y_px : yb - window.y_px, xa - window.x_px : xb - window.x_px]
            if chunk is None:
                part[...] = self.spec.fill
            elif not np.may_share_memory(part, chunk):
                part[...] = chunk[..., ya - y0 : yb - y0, xa - x0 : xb - x0]


def shard_file(path: Path, spec: ArraySpec, shard: Cell) -> Path:
    """The file of one shard, by Zarr's default chunk keys."""
    parts = ["c", *["0"] * (len(spec.shape) - 2), str(shard[0]), str(shard[1])]
    return path.joinpath(*parts)


def _write_all(f: FileIO, pieces: Sequence[bytes]) -> None:
    """Write the pieces in order, many per system call."""
    for first in range(0, len(pieces), _MAX_PIECES):
        some = pieces[first : first + _MAX_PIECES]
        written = os.writev(f.fileno(), some)
        rest = memoryview(b"".join(some))[written:] if written < sum(map(len, some)) else memoryview(b"")
        while rest:
            rest = rest[f.write(rest) or 0 :]


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _spec_of(path: Path) -> ArraySpec:
    """ArraySpec from zarr.json. Raises StoreError if the array was not written by wsipipe."""
    try:
        meta = json.loads((path / "zarr.json").read_text())
        sharding = meta["codecs"][0]["configuration"]
        inner = sharding["codecs"]
        names = [c["name"] for c in inner]
        quality = 0
        if "imagecodecs_jpeg" in names:
            quality = int(inner[names.index("imagecodecs_jpeg")].get("configuration", {}).get("level", 90))
        elif names != ["bytes", "zstd", "crc32c"]:
            raise StoreError(f"{path}: codecs {names}; expected the JPEG or zstd chain of wsipipe")
        return ArraySpec(
            shape=tuple(meta["shape"]),
            dtype=str(meta["data_type"]),
            fill=int(meta["fill_value"]),
            chunk_px=int(sharding["chunk_shape"][-1]),
            shard_px=int(meta["chunk_grid"]["configuration"]["chunk_shape"][-1]),
            quality=quality,
        )
    except FileNotFoundError:
        raise StoreError(f"{path}: no array here") from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoreError(f"{path}/zarr.json: not an array written by wsipipe ({error!r})") from None
