"""Read and write sharded Zarr v3 arrays chunk by chunk, bit-compatible with stock zarr and many times faster.

A shard file holds its chunks one after the other and ends with an index: (offset, nbytes) as little-endian uint64 for
every chunk in row-major order, all ones for an absent chunk, then the crc32c of the index (Zarr v3 sharding codec).
Every chunk ends with its own crc32c. An array has axes (c, y, x) or (y, x); c is never split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.store.codec import jpeg_decode, jpeg_encode

CHUNK_PX = 256
SHARD_PX = 4096
_ABSENT = np.uint64(2**64 - 1)

Cell = tuple[int, int]
"""(row, col) of a chunk in the array's chunk lattice, or of a shard in its shard lattice."""


@dataclass(frozen=True)
class ArraySpec:
    """What zarr.json says of one array. Shapes are (c, y, x) or (y, x); `quality` 0 means zstd instead of JPEG."""

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
    def shards(self) -> Cell:
        """Shard rows and columns."""
        return -(-self.shape[-2] // self.shard_px), -(-self.shape[-1] // self.shard_px)

    def chunks_of_shard(self, shard: Cell) -> list[Cell]:
        """The chunks of a shard that lie at least partly inside the array, row-major."""
        n = self.shard_px // self.chunk_px
        rows, cols = -(-self.shape[-2] // self.chunk_px), -(-self.shape[-1] // self.chunk_px)
        return [
            (r, c)
            for r in range(shard[0] * n, min(rows, (shard[0] + 1) * n))
            for c in range(shard[1] * n, min(cols, (shard[1] + 1) * n))
        ]

    def encode(self, chunk: NDArray[np.generic]) -> bytes:
        """One chunk as stored: [c, y, x] or [y, x] -> codec, then crc32c."""
        if self.quality:
            body = jpeg_encode(np.moveaxis(chunk, 0, -1).astype(np.uint8, copy=False), self.quality)
        else:
            body = bytes(imagecodecs.zstd_encode(np.ascontiguousarray(chunk, self.dtype).tobytes(), level=3))
        return body + _crc(body)

    def decode(self, stored: bytes, where: str) -> NDArray[np.generic]:
        """The chunk [c, y, x] or [y, x] of `stored`; StoreError if its checksum disagrees."""
        body, crc = stored[:-4], stored[-4:]
        if _crc(body) != crc:
            raise StoreError(f"{where}: the checksum does not match, the file is damaged; tile or compute it again")
        if self.quality:
            return np.moveaxis(jpeg_decode(body), -1, 0)  # a view: the memory stays (y, x, c), channels last
        flat = np.frombuffer(imagecodecs.zstd_decode(body), self.dtype)
        return flat.reshape(self.chunk_shape)


class ShardedArray:
    """One array on a local disk. Reading is thread-safe; no two writers may write one shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = _spec_of(path)
        self._index: dict[Cell, NDArray[np.uint64] | None] = {}

    def read(self, window: Window) -> NDArray[np.generic]:
        """The pixels of `window` (px of this array): [c, h, w] or [h, w]; fill value where nothing is stored."""
        spec, n = self.spec, self.spec.chunk_px
        out = np.full((*spec.shape[:-2], window.height_px, window.width_px), spec.fill, spec.dtype)
        height, width = spec.shape[-2:]
        y2, x2 = min(window.y_px + window.height_px, height), min(window.x_px + window.width_px, width)
        if window.y_px >= height or window.x_px >= width:
            return out
        for r in range(max(window.y_px, 0) // n, -(-y2 // n)):
            for c in range(max(window.x_px, 0) // n, -(-x2 // n)):
                chunk = self.chunk((r, c))
                if chunk is None:
                    continue
                ya, yb = max(window.y_px, r * n), min(y2, (r + 1) * n)
                xa, xb = max(window.x_px, c * n), min(x2, (c + 1) * n)
                out[..., ya - window.y_px : yb - window.y_px, xa - window.x_px : xb - window.x_px] = chunk[
                    ..., ya - r * n : yb - r * n, xa - c * n : xb - c * n
                ]
        return out

    def chunk(self, cell: Cell) -> NDArray[np.generic] | None:
        """One decoded chunk, or None where nothing is stored."""
        n = self.spec.shard_px // self.spec.chunk_px
        shard = (cell[0] // n, cell[1] // n)
        index = self._shard_index(shard)
        if index is None:
            return None
        offset, size = index[(cell[0] % n) * n + cell[1] % n]
        if offset == _ABSENT:
            return None
        file = shard_file(self.path, self.spec, shard)
        with file.open("rb") as f:
            f.seek(int(offset))
            stored = f.read(int(size))
        return self.spec.decode(stored, f"{file} chunk {cell}")

    def write_shard(self, shard: Cell, chunks: Iterable[tuple[Cell, bytes]]) -> None:
        """Write one whole shard of encoded chunks, aside and then renamed; absent chunks read as fill value."""
        n = self.spec.shard_px // self.spec.chunk_px
        index = np.full((n * n, 2), _ABSENT, "<u8")
        file = shard_file(self.path, self.spec, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.partial")
        offset = 0
        with aside.open("wb") as f:
            for cell, stored in chunks:
                index[(cell[0] % n) * n + cell[1] % n] = (offset, len(stored))
                f.write(stored)
                offset += len(stored)
            f.write(index.tobytes() + _crc(index.tobytes()))
            f.flush()
            os.fsync(f.fileno())
        if offset:
            os.replace(aside, file)
        else:
            aside.unlink()
            file.unlink(missing_ok=True)
        self._index.pop(shard, None)

    def write_blocks(self, shard: Cell, blocks: Mapping[Cell, NDArray[np.generic]]) -> None:
        """Encode and write the chunks of one shard; chunks that hold only the fill value are left out."""
        self.write_shard(
            shard, ((c, self.spec.encode(b)) for c, b in sorted(blocks.items()) if np.any(b != self.spec.fill))
        )

    def write_region(self, shard: Cell, pixels: NDArray[np.generic]) -> None:
        """Write one shard from its pixels [c, h, w] or [h, w], as much of it as lies inside the array."""
        n, per = self.spec.chunk_px, self.spec.shard_px // self.spec.chunk_px
        blocks = {}
        for cell in self.spec.chunks_of_shard(shard):
            y, x = (cell[0] - shard[0] * per) * n, (cell[1] - shard[1] * per) * n
            block = np.full(self.spec.chunk_shape, self.spec.fill, self.spec.dtype)
            part = pixels[..., y : y + n, x : x + n]
            block[..., : part.shape[-2], : part.shape[-1]] = part
            blocks[cell] = block
        self.write_blocks(shard, blocks)

    def _shard_index(self, shard: Cell) -> NDArray[np.uint64] | None:
        if shard not in self._index:
            self._index[shard] = self._read_index(shard)
        return self._index[shard]

    def _read_index(self, shard: Cell) -> NDArray[np.uint64] | None:
        file = shard_file(self.path, self.spec, shard)
        count = (self.spec.shard_px // self.spec.chunk_px) ** 2
        size = count * 16 + 4
        try:
            with file.open("rb") as f:
                f.seek(-size, os.SEEK_END)
                tail = f.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{file}: not a complete shard ({error}); tile or compute it again") from None
        if _crc(tail[:-4]) != tail[-4:]:
            raise StoreError(f"{file}: the index is damaged; tile or compute it again")
        return np.frombuffer(tail[:-4], "<u8").reshape(count, 2)


def shard_file(path: Path, spec: ArraySpec, shard: Cell) -> Path:
    """The file of one shard under Zarr's default chunk keys."""
    parts = ["c", *["0"] * (len(spec.shape) - 2), str(shard[0]), str(shard[1])]
    return path.joinpath(*parts)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _spec_of(path: Path) -> ArraySpec:
    """ArraySpec from zarr.json; StoreError if it is no array that wsipipe writes."""
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
