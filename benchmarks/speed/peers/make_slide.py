"""Draw a synthetic slide (procedural H&E-like texture, no patient data) in the layout of Aperio's SVS files.

    make_slide.py OUT.svs --size 40000

JPEG tiles of 256 px (YCbCr, 4:2:0) at 0.25 um/px with shared tables; levels 4, 16 and 64 times coarser; 40 % tissue.
The same size and seed give the same bytes. One band of tile rows of level 0 is in memory at a time; the compressed
tiles of the coarser levels are held until level 0 is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]

TILE_PX = 256
BLOCK_PX = 2048
PERIOD_PX = 2048
NOISE_PERIOD_PX = 1201  # prime, so that noise and texture never repeat together
MASK_DOWN = 64
REDUCE = 4
QUALITY = 78
TEXTURE_GAIN = 2.4
NOISE = 6.5
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
BLOBS = (
    (0.33, 0.34, 0.24, 0.20, 1),
    (0.64, 0.60, 0.24, 0.25, 1),
    (0.26, 0.76, 0.13, 0.10, 0.9),
    (0.78, 0.22, 0.10, 0.11, 0.9),
)
"""Pieces of tissue: centre x, y, radius x, y (shares of the slide), weight."""


def periodic_noise(
    side: int, sigma: float, rng: np.random.Generator, stretch: tuple[float, float] = (1.0, 1.0)
) -> Field:
    """Gaussian-filtered noise [side, side] that tiles without a seam; mean 0, deviation 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    ky = np.fft.fftfreq(side)[:, None].astype(np.float32)
    kx = np.fft.rfftfreq(side)[None].astype(np.float32)
    spectrum *= np.exp(-2 * np.pi**2 * sigma**2 * ((ky * stretch[0]) ** 2 + (kx * stretch[1]) ** 2))
    out = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)
    return (out - out.mean()) / (out.std() + 1e-9)


def nuclei(side: int, count: int, rng: np.random.Generator, radius: tuple[int, int]) -> Field:
    """Soft ellipses [side, side], 0..1, that tile without a seam."""
    pad = 48
    canvas = np.zeros((side + 2 * pad, side + 2 * pad), np.float32)
    for _ in range(count):
        x, y = rng.integers(0, side, 2)
        long = rng.uniform(*radius)
        short = long * rng.uniform(0.55, 1)
        angle = rng.uniform(0, 180)
        value = float(rng.uniform(0.55, 1.0))
        for dx in (-side, 0, side):
            for dy in (-side, 0, side):
                cx, cy = x + dx + pad, y + dy + pad
                if -pad < cx < side + 3 * pad and -pad < cy < side + 3 * pad:
                    ellipse = ((float(cx), float(cy)), (2 * long, 2 * short), angle)
                    cv2.ellipse(canvas, ellipse, value, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 1.6)[pad:-pad, pad:-pad]


def textures(rng: np.random.Generator) -> list[Pixels]:
    """Epithelium, stroma and fat, each RGB [PERIOD_PX, PERIOD_PX, 3] without a seam."""
    side, gain = PERIOD_PX, TEXTURE_GAIN
    fine, mid, big = (periodic_noise(side, s, rng) for s in (0.9, 3.0, 14))
    fibre = periodic_noise(side, 4.0, rng, (0.35, 3.0))
    chromatin = periodic_noise(side, 1.4, rng)
    out = []
    for kind, spacing in (("epithelium", 52), ("stroma", 120), ("fat", 260)):
        cells = nuclei(side, int(side * side / spacing**2), rng, (6, 15) if kind == "stroma" else (9, 17))
        blue = cells * (1.15 + 0.22 * gain * chromatin) + 0.10 + 0.05 * gain * mid
        if kind == "epithelium":
            pink = 0.30 + 0.05 * gain * mid + 0.05 * gain * fine + 0.05 * big
        elif kind == "stroma":
            pink = 0.38 + 0.11 * gain * fibre + 0.05 * gain * fine + 0.05 * big
        else:
            membrane = np.clip(1 - np.abs(periodic_noise(side, 40, rng)) * 5, 0, 1)
            pink = 0.04 + 0.45 * membrane + 0.012 * gain * fine
            blue = blue * 0.6 * membrane
        density = np.maximum(blue, 0)[..., None] * HAEMATOXYLIN + np.maximum(pink, 0)[..., None] * EOSIN
        out.append(np.clip(244 * np.exp(-density), 0, 255).astype(np.uint8))
    return out


class Content:
    """The picture: any block of a square slide of `size` px, computed on demand."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._bank = textures(rng)
        n = max(8, size // MASK_DOWN)
        y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
        shape = np.zeros((n, n), np.float32)
        for cx, cy, rx, ry, weight in BLOBS:
            shape += weight * np.exp(-((((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) ** 2))

        def low(sigma: float) -> Field:
            noise = periodic_noise(1024, sigma * 1024, rng)
            return cv2.resize(noise, (n, n), interpolation=cv2.INTER_CUBIC)

        shape += 0.22 * low(0.03) + 0.10 * low(0.01)
        threshold = np.quantile(shape, 0.60)  # 40 % of the slide is tissue
        self._mask = np.clip((shape - threshold) / 0.02 * 127 + 128, 0, 255).astype(np.uint8)
        self._stroma = np.clip(low(0.02) * 200 + 128, 0, 255).astype(np.uint8)
        self._fat = np.clip((low(0.025) - 1.1) * 400, 0, 255).astype(np.uint8)
        self._stain = np.clip(1.0 + 0.12 * low(0.05), 0.7, 1.25).astype(np.float32)
        q = NOISE_PERIOD_PX
        coloured, grey = (rng.standard_normal((q, q, channels)) for channels in (3, 1))
        self._noise = np.clip(np.rint(coloured * NOISE * 0.6 + grey * NOISE * 0.8), -30, 30).astype(np.int16)

    def block(self, x: int, y: int, w: int, h: int) -> Pixels:
        """RGB [h, w, 3] of the block at (x, y)."""
        box = (x, y, w, h)
        noise = _wrapped(self._noise, (x + 17 * (y // NOISE_PERIOD_PX), y, w, h))
        mask = _enlarged(self._mask, box)
        if mask.max() == 0:
            return np.clip(noise // 2 + np.array([243, 241, 244], np.int16), 0, 255).astype(np.uint8)
        out, stroma, fat = (_wrapped(t, box).astype(np.int16) for t in self._bank)
        out = out + ((stroma - out) * (_enlarged(self._stroma, box).astype(np.int16)[..., None] >> 1) >> 7)
        out = out + ((fat - out) * (_enlarged(self._fat, box).astype(np.int16)[..., None] >> 1) >> 7)
        stain = (_enlarged(self._stain, box) * 128).astype(np.int16)[..., None]
        dark = (244 - out) * stain >> 7
        dark = dark * (mask.astype(np.int16)[..., None] >> 1) >> 7
        out = 244 - dark + (noise if mask.min() > 0 else np.where(mask[..., None] > 0, noise, noise // 2))
        return np.clip(out, 0, 255).astype(np.uint8)


def _enlarged(coarse: NDArray[Any], box: tuple[int, int, int, int]) -> NDArray[Any]:
    """The part of a coarse field (MASK_DOWN px a value) that covers `box`, interpolated."""
    x, y, w, h = box
    d = MASK_DOWN
    matrix = np.array([[1 / d, 0, (x + 0.5) / d - 0.5], [0, 1 / d, (y + 0.5) / d - 0.5]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(coarse, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _wrapped(tile: NDArray[Any], box: tuple[int, int, int, int]) -> NDArray[Any]:
    """`box` of the plane that repeats `tile` for ever."""
    x, y, w, h = box
    return tile[np.ix_(np.arange(y, y + h) % tile.shape[0], np.arange(x, x + w) % tile.shape[1])]


def _segments(stream: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of the JPEG segments up to the start of scan."""
    at, found = 2, []
    while not found or found[-1][0] != 0xDA:
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        found.append((stream[at + 1], at, at + 2 + length))
        at += 2 + length
    return found


def _parts(stream: bytes, markers: tuple[int, ...]) -> bytes:
    return b"\xff\xd8" + b"".join(stream[a:b] for m, a, b in _segments(stream) if m in markers)


def _jpeg(rgb: Pixels) -> bytes:
    return imagecodecs.jpeg8_encode(
        np.ascontiguousarray(rgb), level=QUALITY, subsampling="420", colorspace="RGB", outcolorspace="YCBCR"
    )


def tables() -> bytes:
    """The quantisation and Huffman tables that all tiles share."""
    return _parts(_jpeg(np.full((TILE_PX, TILE_PX, 3), 200, np.uint8)), (0xDB, 0xC4)) + b"\xff\xd9"


def abbreviated(rgb: Pixels) -> bytes:
    """One tile as a JPEG stream without tables."""
    stream = _jpeg(rgb)
    return _parts(stream, (0xC0, 0xDD, 0xDA)) + stream[_segments(stream)[-1][2] :]


class Level:
    """A coarser level: rows wait until a band of tiles is complete, then become compressed tiles."""

    def __init__(self, size: int, pool: ThreadPoolExecutor) -> None:
        self.size = size
        self.tiles: list[bytes] = []
        self._pool = pool
        self._rows: list[Pixels] = []
        self._done = 0

    def feed(self, rows: Pixels) -> list[Pixels]:
        """Take more rows; returns the bands that were compressed, for the next level."""
        self._rows.append(rows[: self.size, : self.size])
        waiting = sum(len(r) for r in self._rows)
        last = self._done + waiting >= self.size
        if waiting < TILE_PX * REDUCE and not last:
            return []
        pixels = np.concatenate(self._rows)
        whole = len(pixels) if last else len(pixels) // (TILE_PX * REDUCE) * TILE_PX * REDUCE
        bands = [pixels[y : min(y + TILE_PX * REDUCE, whole)] for y in range(0, whole, TILE_PX * REDUCE)]
        for band in bands:
            for y in range(0, len(band), TILE_PX):
                self.tiles += compress_row(band[y : y + TILE_PX], self._pool)
        self._rows = [pixels[whole:]] if whole < len(pixels) else []
        self._done += waiting
        return bands


def compress_row(band: Pixels, pool: ThreadPoolExecutor) -> list[bytes]:
    """One row of tiles, its border repeated up to whole tiles."""
    h, w = band.shape[:2]
    band = np.pad(band, ((0, -h % TILE_PX), (0, -w % TILE_PX), (0, 0)), mode="edge")
    return list(pool.map(lambda x: abbreviated(band[:, x : x + TILE_PX]), range(0, band.shape[1], TILE_PX)))


def push(levels: list[Level], rows: Pixels, thumbnail: list[Pixels], number: int = 0) -> None:
    """Reduce rows of the next finer level and hand them to `levels[0]`, and so on down."""
    if not levels or len(rows) < REDUCE:
        return
    h, w = rows.shape[0] // REDUCE, rows.shape[1] // REDUCE
    small = cv2.resize(rows[: h * REDUCE, : w * REDUCE], (w, h), interpolation=cv2.INTER_AREA)
    if number == 1:
        thumbnail.append(small[: levels[0].size, : levels[0].size].copy())
    for band in levels[0].feed(small):
        push(levels[1:], band, thumbnail, number + 1)


def level0(
    content: Content, size: int, levels: list[Level], thumbnail: list[Pixels], pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """The compressed tiles of level 0, row-major; feeds the coarser levels on the way."""
    for y in range(0, size, TILE_PX):
        boxes = [(x, y, min(BLOCK_PX, size - x), min(TILE_PX, size - y)) for x in range(0, size, BLOCK_PX)]
        band = np.concatenate(list(pool.map(lambda box: content.block(*box), boxes)), axis=1)
        push(levels, band, thumbnail)  # before the yield: the writer stops at the last tile
        yield from compress_row(band, pool)


def write(out: str, size: int, seed: int, threads: int) -> None:
    """Draw and write one slide."""
    content = Content(size, seed)
    base = (
        f"Aperio Image Library v12.0.15\r\n{size}x{size} [0,0 {size}x{size}] ({TILE_PX}x{TILE_PX}) JPEG/RGB Q={QUALITY}"
    )
    meta = "|AppMag = 40|MPP = 0.2500|ScanScope ID = SYNTH|Filename = synthetic|Left = 0.0|Top = 0.0"
    common: dict[str, Any] = {"compression": "jpeg", "metadata": None, "software": False}
    tiled = {
        **common,
        "photometric": "ycbcr",
        "tile": (TILE_PX, TILE_PX),
        "dtype": "uint8",
        "jpegtables": tables(),
        "subsampling": (2, 2),
    }
    thumbnail: list[Pixels] = []
    with ThreadPoolExecutor(threads) as pool, tifffile.TiffWriter(out, bigtiff=size > 60_000) as tiff:
        levels = [Level(size // f, pool) for f in (4, 16, 64)]
        tiles = level0(content, size, levels, thumbnail, pool)
        tiff.write(tiles, shape=(size, size, 3), description=base + meta, **tiled)
        small = np.concatenate(thumbnail)
        shrink = min(1, 1024 / max(small.shape[:2]))
        small = cv2.resize(small, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        note = f"{base} -> {small.shape[1]}x{small.shape[0]} - {meta}"
        tiff.write(small, description=note, photometric="rgb", rowsperstrip=16, **common)
        for level in levels:
            note = f"{base} -> {level.size}x{level.size} - {meta}"
            tiff.write(iter(level.tiles), shape=(level.size, level.size, 3), description=note, **tiled)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=40_000, help="side in px, at least 4096")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.size < 4096:
        parser.error("--size: at least 4096")
    cv2.setNumThreads(1)
    began = time.perf_counter()
    write(args.out, args.size, args.seed, args.threads)
    print(f"{args.out}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
