"""Pictures of noise with other textures planted in them, and stores tiled from pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.tiling.stage import run as tile_slides

PINK = np.array([205.0, 150.0, 185.0])
CONTRAST = np.array([22.0, 30.0, 18.0])


def noise(size_px: tuple[int, int], grain_px: float, seed: int) -> NDArray[np.uint8]:
    """Pink noise of one variance and a grain of about `grain_px`: uint8 [h, w, 3] for size (w, h)."""
    field = np.random.default_rng(seed).standard_normal((size_px[1], size_px[0]))
    field = ndimage.gaussian_filter(field, grain_px) if grain_px else field
    field = (field - field.mean()) / field.std()
    return np.clip(np.rint(PINK + CONTRAST * field[..., None]), 0, 255).astype(np.uint8)


def tissue(size_px: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Fine noise."""
    return noise(size_px, 0.6, seed)


def plant(rgb: NDArray[np.uint8], xy_px: tuple[int, int], side_px: int, kind: int = 0) -> None:
    """Put a square of another texture into `rgb`: coarse blobs (kind 0) or broad stripes (kind 1)."""
    x, y = xy_px
    if kind == 0:
        square = noise((side_px, side_px), 4.0, 1000 + x + 7 * y)
    else:
        stripes = np.sign(np.sin((np.arange(side_px) + x) * 2 * np.pi / 6))
        square = np.broadcast_to(np.rint(PINK + CONTRAST * stripes[:, None]), (side_px, side_px, 3)).astype(np.uint8)
    rgb[y : y + side_px, x : x + side_px] = square


TILE_PX = 512


@dataclass(frozen=True)
class Tile:
    """rgb: uint8 [512, 512, 3]. truth: uint8 [512, 512]: 0 glass, 1 stroma, 2 the class, 3 the other texture."""

    rgb: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def textured_tile(seed: int, planted: bool) -> Tile:
    """Bland pink stroma beside near-white glass, and on it one to three round blobs of oriented textures in purple.

    The class has narrow stripes, the other texture broad ones aslant; a tile has the class only if `planted`.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    rgb = np.array([225.0, 165, 195]) + rng.normal(0, 4, (TILE_PX, TILE_PX, 1))
    truth = np.ones((TILE_PX, TILE_PX), np.uint8)
    for blob in range(int(rng.integers(1, 4))):
        of_class = planted and blob == 0
        radius = int(rng.integers(60, 110))
        cx, cy = rng.integers(radius, TILE_PX - radius, 2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        if not of_class:
            inside &= truth != 2
        wave = np.sin((y if of_class else y + 2 * x) * 2 * np.pi / (8 if of_class else 20) + rng.uniform(0, 6))
        colour = np.array([150.0, 90, 165]) + np.array([40.0, 45, 25]) * wave[..., None]
        rgb[inside] = (colour + rng.normal(0, 6, (TILE_PX, TILE_PX, 1)))[inside]
        truth[inside] = 2 if of_class else 3
    edge = 70 + 12 * np.sin(y / 40 + seed)
    glass = (x < edge) if seed % 2 else (x > TILE_PX - edge)
    rgb[glass] = (245 + rng.normal(0, 3, (TILE_PX, TILE_PX, 1)))[glass]
    truth[glass] = 0
    return Tile(np.clip(np.rint(rgb), 0, 255).astype(np.uint8), truth)


def tiled_pictures(folder: Path, pictures: Mapping[str, NDArray[np.uint8]], **options: Any) -> dict[str, Path]:
    """Write each picture as PNG into `folder` and tile it at 0.5 um/px; slide id -> store."""
    settings: dict[str, Any] = {"mpp_override": 0.5, "patch_px": 128, "codec": "zstd", "min_area_um2": 100.0}
    settings |= {"tissue_mpp": 2.0} | options
    slides = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rgb in pictures.items():
        path = folder / f"{name}.png"
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(rgb)))
        slides[name] = SlideFile(path)
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1)
    report, stores = tile_slides(slides, TileConfig(**settings), RunContext(run))
    assert report.exit_code == 0, report.rows
    return {p.stem: p for p in stores}


@dataclass
class Cohort:
    """Stores with their labels, and where the texture was planted: (slide, patch row, patch col) -> cell (row, col)."""

    folder: Path
    stores: dict[str, Path]
    planted: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=lambda: ["slide_id,label,x,y,width,height,split"])

    def labels(self, name: str = "labels.csv", rows: list[str] | None = None) -> Path:
        """Write `rows` (default: the cohort's own) as a labels file."""
        path = self.folder / name
        path.write_text("\n".join(rows or self.rows) + "\n")
        return path
