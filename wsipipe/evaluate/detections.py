"""Detections: the local maxima of a score map, or points of a CSV; written as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.feature import peak_local_max

from wsipipe.errors import ConfigError
from wsipipe.evaluate.froc import LESION_MPP, Detections
from wsipipe.geometry import Window, ceil_div
from wsipipe.labels import read_table, slide_id_of
from wsipipe.runtime.atomic import write_csv
from wsipipe.store import SlideStore

COLUMNS = ("slide", "class", "x_px0", "y_px0", "p")

_BAND = 512
"""Rows of cells read at once."""

SlideDetections = Mapping[str, Mapping[str, Detections]]
"""Slide id -> class -> detections."""


def find_detections(store: SlideStore, name: str, nms_um: float) -> list[Detections]:
    """The detections of each class of `scores/<name>`: tissue cells that are the maximum within `nms_um`.

    A cell is the highest score within about 7.8 um (or one stored score, if these are larger). Of equal cells the upper
    left one is kept and suppresses the others within `nms_um`, so that a large saturated area gives one detection per
    `nms_um`. Distances are the maximum of those along x and y. Cells of score 0 are no detections.
    """
    cells, cell_px = _cells(store, name)
    mpp = store.grid.mean_mpp
    reach = max(1, round(nms_um / (cell_px * mpp)))
    found = []
    for cell in cells:
        at = maxima(cell, reach)
        xy = [store.grid.to_px0(((c + 0.5) * cell_px, (r + 0.5) * cell_px)) for r, c in at.tolist()]
        found.append(Detections(np.asarray(xy, np.float64).reshape(-1, 2), cell[at[:, 0], at[:, 1]] / 255))
    return found


def maxima(cells: NDArray[np.uint8], reach: int) -> NDArray[np.intp]:
    """Cells above 0 that are the maximum within `reach` rows and columns: uint8 [h, w] -> (row, col) [n, 2].

    Sorted by score, the highest first, and of equal cells the upper left one first; it suppresses equal cells within
    `reach`.
    """
    padded = np.pad(cells.astype(np.int16), 1)  # a constant image would have no maximum
    return np.asarray(peak_local_max(padded, min_distance=reach, threshold_abs=0, exclude_border=False) - 1, np.intp)


def _cells(store: SlideStore, name: str) -> tuple[NDArray[np.uint8], int]:
    """The highest stored score of every cell, 0 off the tissue: uint8 [K, rows, cols], and the side of a cell in px."""
    stride_px = int(store.attributes("scores", name)["stride_px"])
    block = max(1, round(LESION_MPP / (stride_px * store.grid.mean_mpp)))
    array = store.scores(name)
    classes, height, width = array.spec.shape
    out = np.zeros((classes, ceil_div(height, block), ceil_div(width, block)), np.uint8)
    for first in range(0, out.shape[1], _BAND):
        y = first * block
        rows = min(_BAND * block, height - y)
        band = array.read(Window(0, y, width, rows))
        by_row = np.maximum.reduceat(band, np.arange(0, rows, block), axis=1)
        out[:, first : first + _BAND] = np.maximum.reduceat(by_row, np.arange(0, width, block), axis=2)
    cell_px = block * stride_px
    out[:, store.tissue_grid(cell_px) == 0] = 0
    return out, cell_px


def write_detections(path: Path, found: SlideDetections) -> None:
    """Write detections as CSV: a row per point, in level-0 px, sorted by p, the highest first."""
    write_csv(
        path,
        COLUMNS,
        (
            dict(zip(COLUMNS, (slide, name, f"{x:.1f}", f"{y:.1f}", f"{p:.4f}"), strict=True))
            for slide, of_class in found.items()
            for name, d in of_class.items()
            for (x, y), p in sorted(zip(d.xy_px0.tolist(), d.p.tolist(), strict=True), key=lambda v: -v[1])
        ),
    )


def read_detections(path: Path, classes: Sequence[str]) -> SlideDetections:
    """Read such a CSV; with one class, `class` is optional. Raises ConfigError with every problem."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--detections {path}: cannot be read ({error})") from None
    header, rows, problems = read_table(text, COLUMNS) if text.strip() else ([], [], [])
    missing = [c for c in COLUMNS if c not in header and (c != "class" or len(classes) > 1)]
    if missing:
        raise ConfigError(
            f"--detections {path}: no column {', '.join(missing)}; expected {','.join(COLUMNS)} with level-0 px"
        )
    points: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for line, record in rows:
        name = record.get("class") or classes[0]
        try:
            x, y, p = (float(record[c]) for c in ("x_px0", "y_px0", "p"))
        except ValueError:
            x = y = p = float("nan")
        if name not in classes or not (np.isfinite([x, y]).all() and 0 <= p <= 1):
            problems.append(f"line {line}: expected a class of {', '.join(classes)}, two coordinates and p in 0..1")
        points.setdefault(slide_id_of(record["slide"]), {}).setdefault(name, []).append((x, y, p))
    if problems:
        raise ConfigError(f"--detections {path}: {'; '.join(problems[:20])}")
    return {
        slide: {name: _as_detections(rows) for name, rows in of_class.items()} for slide, of_class in points.items()
    }


def _as_detections(points: Sequence[tuple[float, float, float]]) -> Detections:
    array = np.array(points, np.float64)
    return Detections(array[:, :2], array[:, 2])
