"""The QC image of a tiled slide: tissue, excluded areas and patches over the overview."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from wsipipe.geometry import Grid, Window
from wsipipe.runtime.atomic import write_bytes
from wsipipe.store import USABLE, PatchTable
from wsipipe.tissue.detect import TissueMask
from wsipipe.tissue.overview import OverviewKind

LONGEST_PX = 1600
"""Longer side of the image without its legend; smaller overviews are enlarged by a whole factor."""

MIN_PATCH_PX = 6
"""Patches smaller than this in the image share one outline: a grid would hide the slide."""

Colour = tuple[int, int, int]

TINTS: dict[int, tuple[Colour, float]] = {
    OverviewKind.PEN: ((40, 70, 255), 0.45),
    OverviewKind.BLUR: ((255, 140, 0), 0.45),
    OverviewKind.BLACK: ((128, 128, 128), 0.7),
}
"""Colour and opacity of excluded areas."""

TISSUE_LINE: Colour = (0, 150, 50)
PATCH_LINE: Colour = (30, 30, 90)
CORRUPT: Colour = (225, 0, 0)

_FONT_PX, _LINE_PX, _MARGIN_PX = 16, 24, 12


def write_qc_image(
    path: Path,
    rgb: NDArray[np.uint8],
    step_px: float,
    tissue: TissueMask,
    table: PatchTable,
    corrupt: Sequence[Window],
) -> None:
    """Write the QC image of slide `path.stem` as PNG, atomically.

    rgb: uint8 [h, w, 3], the whole slide, one pixel per `step_px` working px. corrupt: unreadable windows (working px),
    drawn in red like excluded patches.
    """
    picture, px = _picture(rgb, step_px)
    kind = _kinds(tissue, picture.size, px)
    for value, (colour, opacity) in TINTS.items():
        picture.paste(colour, mask=_layer(kind == value, opacity))
    inside = kind == OverviewKind.TISSUE
    usable = table.status == USABLE
    _draw_patches(picture, table.grid, table.cell[usable], px, PATCH_LINE)
    _draw_patches(picture, table.grid, table.cell[~usable], px, CORRUPT)
    picture.paste(TISSUE_LINE, mask=_layer(inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)))
    draw = ImageDraw.Draw(picture)
    for window in corrupt:
        x, y = window.x_px / px, window.y_px / px
        draw.rectangle((x, y, x + max(2, window.width_px / px), y + max(2, window.height_px / px)), CORRUPT)
    out = _with_legend(picture, px * table.grid.mean_mpp, path.stem, tissue.note, _entries(tissue, table, corrupt))
    stream = io.BytesIO()
    out.save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def _picture(rgb: NDArray[np.uint8], step_px: float) -> tuple[Image.Image, float]:
    """The overview, resized, and working px per pixel of the image."""
    height, width = rgb.shape[:2]
    whole = LONGEST_PX // max(height, width)
    scale = float(whole) if whole else LONGEST_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.BILINEAR if whole else Image.Resampling.BOX
    return Image.fromarray(rgb).resize(size, how), step_px / scale


def _kinds(tissue: TissueMask, size: tuple[int, int], px: float) -> NDArray[np.uint8]:
    """The kind at the centre of every image pixel, which is `px` working px wide: uint8 [h, w]."""
    x, y = (
        np.minimum((np.arange(n) + 0.5) * px / tissue.step_px, m - 1).astype(np.intp)
        for n, m in zip(size, tissue.kind.shape[::-1], strict=True)
    )
    return tissue.kind[np.ix_(y, x)]


def _layer(where: NDArray[np.bool_], opacity: float = 1.0) -> Image.Image:
    """A paste mask for PIL: bool [h, w] -> image."""
    return Image.fromarray(where * np.uint8(round(255 * opacity)))


def _draw_patches(picture: Image.Image, grid: Grid, cell: NDArray[np.int32], px: float, colour: Colour) -> None:
    """Outline patches, cell int32 [N, 2] (row, col): each of them, or their union if they are small."""
    layer, side = Image.new("L", picture.size), grid.patch_px / px
    draw = ImageDraw.Draw(layer)
    small = side < MIN_PATCH_PX
    for y, x in (cell * (grid.stride_px / px)).tolist():
        box = (round(x), round(y), round(x + side), round(y + side))
        draw.rectangle(box, fill=255 if small else None, outline=255 if small else 150)
    if small:
        filled = np.asarray(layer) > 0
        layer = _layer(filled & ~ndimage.binary_erosion(filled, border_value=1))
    picture.paste(colour, mask=layer)


def _entries(tissue: TissueMask, table: PatchTable, corrupt: Sequence[Window]) -> list[tuple[Colour, str]]:
    """Colour and text of the legend: tissue and patches always, the others where they occur."""
    mm2 = tissue.step_px**2 * table.grid.mpp[0] * table.grid.mpp[1] / 1e6
    counts = {kind: int((tissue.kind == kind).sum()) for kind in OverviewKind}
    matter = max(1, counts[OverviewKind.TISSUE] + counts[OverviewKind.PEN] + counts[OverviewKind.BLUR])
    used = int((table.status == USABLE).sum())
    entries = [
        (TISSUE_LINE, f"tissue {counts[OverviewKind.TISSUE] * mm2:.3g} mm2"),
        (PATCH_LINE, f"patches of {table.grid.patch_px} px: {used}"),
    ]
    for value, name in ((OverviewKind.PEN, "pen"), (OverviewKind.BLUR, "out of focus")):
        if counts[value]:
            entries.append((TINTS[value][0], f"{name} {counts[value] / matter:.1%}"))
    if counts[OverviewKind.BLACK]:
        entries.append((TINTS[OverviewKind.BLACK][0], f"black {counts[OverviewKind.BLACK] * mm2:.3g} mm2"))
    if corrupt or used < len(table.status):
        entries.append((CORRUPT, f"unreadable tiles: {len(corrupt)}, patches excluded: {len(table.status) - used}"))
    return entries


def _with_legend(
    picture: Image.Image, um_per_px: float, title: str, note: str, entries: Iterable[tuple[Colour, str]]
) -> Image.Image:
    """The image above a white band with title, scale bar, entries and note."""
    font = ImageFont.load_default(_FONT_PX)
    width = max(picture.width, 480)
    bar_um = _round_length(um_per_px * picture.width / 5)
    length = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} um"
    words = [*entries, (None, note)] if note else [*entries]
    places, x, y = [], _MARGIN_PX, _MARGIN_PX + _LINE_PX
    for colour, text in words:
        wide = font.getlength(text) + (_FONT_PX + 6 if colour else 0)
        if x > _MARGIN_PX and x + wide > width - _MARGIN_PX:
            x, y = _MARGIN_PX, y + _LINE_PX
        places.append((x, y))
        x += round(wide) + 2 * _MARGIN_PX
    out = Image.new("RGB", (width, picture.height + y + _LINE_PX + _MARGIN_PX), "white")
    out.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(out), picture.height
    draw.line((0, top, width, top), "black")
    draw.text((_MARGIN_PX, top + _MARGIN_PX), title, "black", font)
    end = width - _MARGIN_PX - round(font.getlength(length)) - 6
    draw.rectangle((end - bar_um / um_per_px, top + _MARGIN_PX + 8, end, top + _MARGIN_PX + 12), "black")
    draw.text((end + 6, top + _MARGIN_PX), length, "black", font)
    for (colour, text), (x, y) in zip(words, places, strict=True):
        if colour:
            draw.rectangle((x, top + y + 2, x + _FONT_PX, top + y + 2 + _FONT_PX), colour)
        draw.text((x + (_FONT_PX + 6 if colour else 0), top + y), text, "black", font)
    return out


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20 .. up to `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(f * power for f in (1, 2, 5) if f * power <= length * (1 + 1e-9)))
