"""Small TIFFs in the variants that scanners and converters write, and ways to damage them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

APERIO = "Aperio Image Library v12.0.15\r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/RGB Q=80|AppMag = 40|MPP = 0.2500"
LEICA = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" sizeX="{cw}" sizeY="{ch}">
<image name="main"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1"/>
<pixels sizeX="{w}" sizeY="{h}">{sizes}</pixels>
<view sizeX="{vw}" sizeY="{vh}" offsetX="{ox}" offsetY="{oy}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.5</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image></collection></scn>"""
SAMPLINGS = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}

Rgb = NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 0, grain: float = 12.0) -> Rgb:
    """Smooth colours with some grain: uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (9, 9, 0), mode="wrap")
    rgb = 150 + 45 * soft / soft.std() + rng.normal(0, grain, (height, width, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def halved(rgb: Rgb, factor: int) -> Rgb:
    """Area mean by a whole factor; an incomplete last row or column is dropped."""
    h, w = rgb.shape[0] // factor, rgb.shape[1] // factor
    blocks = rgb[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return np.floor(blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def blocks_of(rgb: Rgb, tile: int) -> Iterator[Rgb]:
    """The tiles of an image in row-major order, padded with black at the border."""
    padded = np.pad(rgb, ((0, -rgb.shape[0] % tile), (0, -rgb.shape[1] % tile), (0, 0)))
    for y in range(0, padded.shape[0], tile):
        for x in range(0, padded.shape[1], tile):
            yield np.ascontiguousarray(padded[y : y + tile, x : x + tile])


def segments(stream: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a JPEG stream, its scan header included."""
    found: list[tuple[int, int, int]] = []
    i = 2
    while not found or found[-1][0] != 0xDA:
        end = i + 2 + int.from_bytes(stream[i + 2 : i + 4], "big")
        found.append((stream[i + 1], i, end))
        i = end
    return found


def only(stream: bytes, *markers: int) -> bytes:
    """The segments of a JPEG stream with these markers."""
    return b"".join(stream[i:j] for marker, i, j in segments(stream) if marker in markers)


def renamed(stream: bytes, names: bytes) -> bytes:
    """A JPEG stream with other component names."""
    out = bytearray(stream)
    for marker, i, _ in segments(stream):
        first, step = {0xC0: (i + 10, 3), 0xDA: (i + 5, 2)}.get(marker, (0, 0))
        for k in range(3 if first else 0):
            out[first + k * step] = names[k]
    return bytes(out)


@dataclass(frozen=True)
class JpegKind:
    """A variant of JPEG tiles.

    rgb: colour space of the stream; tag: that of the file (photometric), empty for the same. numbers: name the RGB
    components 1, 2, 3. tables: share the tables in the file. jfif: a JFIF marker in each tile.
    """

    sampling: str = "420"
    rgb: bool = False
    tag: str = ""
    numbers: bool = False
    tables: bool = True
    jfif: bool = False

    @property
    def photometric(self) -> str:
        """The colour space in the file's tag."""
        return self.tag or ("rgb" if self.rgb else "ycbcr")

    def whole(self, rgb: Rgb, quality: int = 80) -> bytes:
        """A complete stream of the block, without JFIF and Adobe markers."""
        source = "YCBCR" if self.rgb else "RGB"  # RGB declared as YCbCr is not converted, and can be subsampled
        kind = {"subsampling": self.sampling, "colorspace": source, "outcolorspace": "YCBCR"}
        stream = bytes(imagecodecs.jpeg8_encode(rgb, level=quality, **kind))
        stream = b"\xff\xd8" + only(stream, 0xDB, 0xC4, 0xC0, 0xDA) + stream[segments(stream)[-1][2] :]
        return renamed(stream, b"RGB") if self.rgb and not self.numbers else stream

    def tile(self, rgb: Rgb) -> bytes:
        """The stream as the file stores it."""
        stream = self.whole(rgb)
        kept = (0xC0, 0xDA) if self.tables else (0xDB, 0xC4, 0xC0, 0xDA)
        marker = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" if self.jfif else b""
        return b"\xff\xd8" + marker + only(stream, *kept) + stream[segments(stream)[-1][2] :]

    def options(self, tile: int) -> dict[str, Any]:
        """Arguments of `TiffWriter.write` for pages of such tiles."""
        stream = self.whole(np.zeros((tile, tile, 3), np.uint8))
        tables = {"jpegtables": b"\xff\xd8" + only(stream, 0xDB, 0xC4) + b"\xff\xd9"} if self.tables else {}
        sampling = {"subsampling": SAMPLINGS[self.sampling]} if self.photometric == "ycbcr" else {}
        return {"compression": "jpeg", "photometric": self.photometric, "tile": (tile, tile), **tables, **sampling}


def write_jpeg(
    path: Path, rgb: Rgb, kind: JpegKind = JpegKind(), tile: int = 256, factors: tuple[int, ...] = (), big: bool = False
) -> Path:
    """An Aperio-like file of JPEG tiles made by `kind`: level 0, a striped thumbnail, then levels by `factors`."""
    (h, w), options = rgb.shape[:2], kind.options(tile)
    plain: dict[str, Any] = {"metadata": None, "software": False, "description": APERIO.format(w=w, h=h, t=tile)}
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for f in (1, *factors):
            level = halved(rgb, f)
            streams = (kind.tile(block) for block in blocks_of(level, tile))
            tiff.write(streams, shape=level.shape, dtype="uint8", **options, **plain)
            if f == 1:
                tiff.write(halved(rgb, max(1, h // 64)), photometric="rgb", rowsperstrip=16, **plain)
    with tifffile.TiffFile(path, mode="r+b") as tiff:  # the writer tags all JPEG pages as YCbCr
        for page in tiff.pages:
            if page.is_tiled:
                page.tags["PhotometricInterpretation"].overwrite({"rgb": 2, "ycbcr": 6}[kind.photometric])
    return path


def write_tiles(path: Path, rgb: Rgb, tile: int = 256, factors: tuple[int, ...] = (), **options: Any) -> Path:
    """A generic tiled TIFF at 0.25 um/px in any compression that tifffile writes."""
    with tifffile.TiffWriter(path) as tiff:
        for f in (1, *factors):
            per_cm = (40_000 / f, 40_000 / f)
            plain = {"metadata": None, "resolution": per_cm, "resolutionunit": "CENTIMETER", "subfiletype": int(f > 1)}
            tiff.write(halved(rgb, f), tile=(tile, tile), photometric="rgb", **plain, **options)
    return path


def write_scn(
    path: Path,
    rgb: Rgb,
    canvas: tuple[int, int],
    offset: tuple[int, int],
    tile: int = 64,
    factors: tuple[int, ...] = (4,),
) -> Path:
    """A Leica-like file at 0.25 um/px: an image scanned at `offset` of a larger `canvas`, both (x, y) px."""
    (h, w), nm, kind = rgb.shape[:2], 250, JpegKind()
    facts = {"cw": canvas[0] * nm, "ch": canvas[1] * nm, "w": w, "h": h, "vw": w * nm, "vh": h * nm}
    levels = list(enumerate((1, *factors)))
    sizes = "".join(f'<dimension sizeX="{w // f}" sizeY="{h // f}" r="{i}" ifd="{i}"/>' for i, f in levels)
    xml = LEICA.format(**facts, ox=offset[0] * nm, oy=offset[1] * nm, sizes=sizes)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for i, f in levels:
            level = halved(rgb, f)
            plain = {"metadata": None, "software": False, "description": "" if i else xml}
            scale = {"resolution": (40_000 / f, 40_000 / f), "resolutionunit": "CENTIMETER"}
            streams = (kind.tile(block) for block in blocks_of(level, tile))
            tiff.write(streams, shape=level.shape, dtype="uint8", **plain, **scale, **kind.options(tile))
    return path


def expected(path: Path, page: int = 0) -> Rgb:
    """The pixels of a page as tifffile reads them."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        return np.asarray(tiff.pages[page].asarray())


def tamper(path: Path, index: int, page: int = 0, *, offset: int | None = None, size: int | None = None) -> None:
    """Change the offset or size that a page records for one of its tiles."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[page].tags
        for name, value in (("TileOffsets", offset), ("TileByteCounts", size)):
            if value is not None:
                values = list(tags[name].value)
                values[index] = value
                tags[name].overwrite(values, dtype="Q" if tiff.is_bigtiff else "I")


def place(path: Path, index: int, page: int = 0) -> tuple[int, int]:
    """(offset, size) of a tile in its file."""
    with tifffile.TiffFile(path) as tiff:
        return int(tiff.pages[page].dataoffsets[index]), int(tiff.pages[page].databytecounts[index])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
