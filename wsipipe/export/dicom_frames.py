"""Frames of a DICOM SEG: the tiles of a mask, streamed into the file behind its header (PS3.5, 7.5 and A.4)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import check
from wsipipe.export.dicom_source import Source
from wsipipe.geometry import Window, ceil_div
from wsipipe.store.shards import Cell, ShardedArray

TILE_PX = 512
"""Side of a frame: 2 x 2 chunks of a store; its square is a multiple of 8, so that frames of bits begin at bytes."""

_MOST_BYTES = 2**32 - 2
"""Largest value of the 32-bit lengths and offsets of DICOM."""

_ITEM, _END, _PIXELS, _PER_FRAME = (
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"\xe0\x7f\x10\x00OB\0\0",
    b"\x00\x52\x30\x92SQ\0\0",
)
_UNDEFINED = b"\xff\xff\xff\xff"


def cells(array: ShardedArray) -> Cell:
    """Rows and columns of tiles."""
    height, width = array.spec.shape
    return ceil_div(height, TILE_PX), ceil_div(width, TILE_PX)


def inside(array: ShardedArray, cell: Cell) -> Window:
    """The window of a tile, cut at the border of the mask."""
    height, width = array.spec.shape
    y, x = cell[0] * TILE_PX, cell[1] * TILE_PX
    return Window(x, y, min(TILE_PX, width - x), min(TILE_PX, height - y))


def tile(array: ShardedArray, cell: Cell) -> NDArray[np.uint8]:
    """The mask values of a tile: uint8 [TILE_PX, TILE_PX], 0 beyond the border."""
    window = inside(array, cell)
    out = np.zeros((TILE_PX, TILE_PX), np.uint8)
    out[: window.height_px, : window.width_px] = array.read(window)
    return out


def write_frame_items(f: BinaryIO, template: Any, frames: Sequence[tuple[Cell, int]], image: Source) -> None:
    """Write the Per-frame Functional Groups Sequence: segment and position of every frame."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    if "DerivationImageSequence" in template:
        del template.DerivationImageSequence  # all frames share it
    rows, cols = (sorted({cell[axis] for cell, _ in frames}) for axis in (0, 1))
    rank = [{at: i for i, at in enumerate(found, start=1)} for found in (rows, cols)]
    place, content = template.PlanePositionSlideSequence[0], template.FrameContentSequence[0]
    f.write(_PER_FRAME + _UNDEFINED)
    for (row, col), segment in frames:
        content.DimensionIndexValues = [segment + 1, rank[0][row], rank[1][col]]
        place.RowPositionInTotalImagePixelMatrix = row * TILE_PX + 1
        place.ColumnPositionInTotalImagePixelMatrix = col * TILE_PX + 1
        position = image.position_mm(col * TILE_PX, row * TILE_PX)
        for axis, mm in zip("XYZ", position, strict=True):
            setattr(place, f"{axis}OffsetInSlideCoordinateSystem", f"{mm:.10g}")
        if "SegmentIdentificationSequence" in template:  # shared if there is only one segment
            template.SegmentIdentificationSequence[0].ReferencedSegmentNumber = segment + 1
        item = DicomBytesIO()
        item.is_little_endian, item.is_implicit_VR = True, False
        write_dataset(item, template)
        f.write(_ITEM + struct.pack("<I", item.tell()) + item.getvalue())
    f.write(_END)


def write_bits(f: BinaryIO, array: ShardedArray, frames: Sequence[tuple[Cell, int]], values: Sequence[int]) -> None:
    """Write frames (tile, index of the segment) as bits, the first pixel in the lowest bit (PS3.5, 8.1.1).

    `values`: the mask value of each segment.
    """
    size = len(frames) * TILE_PX**2 // 8
    check(size <= _MOST_BYTES, f"{len(frames)} frames of bits: more than 4 GiB, which DICOM cannot hold; use labelmap")
    f.write(_PIXELS + struct.pack("<I", size))
    for cell, segment in frames:
        f.write(np.packbits(tile(array, cell) == values[segment], bitorder="little").tobytes())


def write_bytes(f: BinaryIO, array: ShardedArray, tiles: Sequence[Cell]) -> None:
    """Write tiles as RLE frames behind the table of their offsets."""
    f.write(_PIXELS + _UNDEFINED)
    table, offsets = f.tell(), []
    f.write(_ITEM + struct.pack("<I", 4 * len(tiles)) + bytes(4 * len(tiles)))
    first = f.tell()
    for cell in tiles:
        offsets.append(f.tell() - first)
        body = _rle(tile(array, cell))
        f.write(_ITEM + struct.pack("<I", len(body)) + body)
    f.write(_END)
    check(offsets[-1] <= _MOST_BYTES, f"{len(tiles)} frames: more than 4 GiB compressed, which DICOM cannot point to")
    f.seek(table + 8)
    f.write(np.array(offsets, "<u4").tobytes())


def _rle(pixels: NDArray[np.uint8]) -> bytes:
    """A frame in DICOM's RLE (PS3.5, annex G): the offsets of its one segment, then PackBits by rows."""
    packed = bytes(imagecodecs.packbits_encode(pixels))
    return struct.pack("<16I", 1, 64, *[0] * 14) + packed + b"\0" * (len(packed) % 2)
