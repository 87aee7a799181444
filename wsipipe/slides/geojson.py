"""Read the polygons of a GeoJSON file as QuPath exports them, and rasterise them onto a coarse frame."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError

log = logging.getLogger(__name__)

SUFFIXES = (".geojson", ".json")

MOST_BYTES = 64 * 2**20
MOST_VERTICES = 5_000_000

FARTHEST_PX0 = 1e7
"""Coordinates beyond it are errors: slides are at most some 10**6 px wide."""

_CROSSINGS = 2**20
"""Crossings of edges with rows computed at once; bounds the memory whatever the polygons are."""


@dataclass(frozen=True)
class Region:
    """One polygon: `rings` float64 [N, 2] (x, y) in level-0 px, the outline and then its holes; `name` of its class.

    `name` is empty where the file gives no classification.
    """

    rings: tuple[NDArray[np.float64], ...]
    name: str = ""


def read_regions(path: Path, origin_px0: tuple[int, int] = (0, 0)) -> list[Region]:
    """The polygons of a FeatureCollection, an array of features, or one feature; a warning counts other shapes.

    QuPath shows a slide cropped to the bounds that its scanner gives, so `origin_px0`, the corner of these bounds, is
    added to the coordinates. Raises SlideError.
    """
    counts = Counter[str]()
    regions: list[Region] = []
    vertices = 0
    for number, feature in enumerate(_features(path, _load(path))):
        where = f"{path}: feature {number}"
        kind, polygons = _polygons(feature, where)
        counts[kind] += 1
        for polygon in polygons:
            if not isinstance(polygon, list) or not polygon:
                raise SlideError(f"{where}: found a polygon without rings; expected a list of rings; export it again")
            rings = tuple(_ring(ring, where) + origin_px0 for ring in polygon)
            vertices += sum(map(len, rings))
            if vertices > MOST_VERTICES:
                raise SlideError(
                    f"{path}: found more than {MOST_VERTICES} vertices; simplify the annotations, or give a TIFF mask"
                )
            regions.append(Region(rings, _class_name(feature)))
    left_out = {k: n for k, n in counts.items() if k not in ("Polygon", "MultiPolygon")}
    text = ", ".join(f"{n} {kind}" for kind, n in sorted(left_out.items()))
    if not regions:
        raise SlideError(
            f"{path}: found {text or 'no features'}; expected Polygon or MultiPolygon; draw closed regions"
        )
    if left_out:
        log.warning("%s: left out %s; only polygons enclose an area", path, text)
    return regions


def rasterise(
    regions: Iterable[Region],
    shape: tuple[int, int],
    px0_per_px: tuple[float, float],
    origin_px0: tuple[int, int] = (0, 0),
) -> NDArray[np.bool_]:
    """Which pixels have their centre in a region: bool [h, w] of `shape`.

    The frame starts at `origin_px0`; its pixels are `px0_per_px` (x, y) level-0 px large. Within a region rings are
    even-odd, so that holes are empty; regions add up. Of centres on an edge, those at its left or top end are inside.
    """
    out = np.zeros(shape, np.bool_)
    for region in regions:
        rings = [(ring - origin_px0) / px0_per_px for ring in region.rings]
        low, high = np.floor([r.min(0) for r in rings]).min(0), np.ceil([r.max(0) for r in rings]).max(0)
        x1, y1 = np.maximum(low, 0).astype(int)
        x2, y2 = np.minimum(high, (shape[1], shape[0])).astype(int)
        if x1 < x2 and y1 < y2:
            box = out[y1:y2, x1:x2]
            box |= _even_odd([ring - (x1, y1) for ring in rings], (box.shape[0], box.shape[1]))
    return out


def _even_odd(rings: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre an odd number of edges has to its left: rings [N, 2] (x, y) in px -> bool [h, w].

    Each edge flips, in every row whose centre line it crosses, the pixels from the crossing on.
    """
    height, width = shape
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        closed, chunk = np.concatenate([ring, ring[:1]]), max(1, _CROSSINGS // height)
        for first in range(0, len(ring), chunk):
            start, end = ring[first : first + chunk], closed[first + 1 : first + chunk + 1]
            up = end[:, 1:] < start[:, 1:]
            (x1, y1), (x2, y2) = np.where(up, end, start).T, np.where(up, start, end).T
            top, bottom = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.intp) for y in (y1, y2))
            rows = bottom - top
            edge = np.repeat(np.arange(len(rows)), rows)
            row = np.arange(len(edge)) - (np.cumsum(rows) - rows - top)[edge]
            x = x1[edge] + (row + 0.5 - y1[edge]) * ((x2 - x1)[edge] / (y2 - y1)[edge])
            np.bitwise_xor.at(flips, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)), np.uint8(1))
    return np.asarray(np.bitwise_xor.accumulate(flips, axis=1)[:, :width] == 1)


def _load(path: Path) -> Any:
    """The JSON of a file of bounded size."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SlideError(
                f"{path}: found {size} bytes; expected at most {MOST_BYTES}; simplify it, or give a TIFF mask"
            )
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file") from None
    except RecursionError:
        raise SlideError(f"{path}: found brackets nested too deep; expected GeoJSON as QuPath exports it") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise SlideError(f"{path}: not readable as JSON ({error}); export it from QuPath as GeoJSON") from None


def _features(path: Path, root: Any) -> list[dict[str, Any]]:
    found = root
    if isinstance(root, dict):
        found = root.get("features") if root.get("type") == "FeatureCollection" else [root]
    if not isinstance(found, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in found):
        what = f"type {root.get('type')!r}" if isinstance(root, dict) else type(root).__name__
        raise SlideError(
            f"{path}: found {what} that is not made of features; expected a FeatureCollection, an array of features or "
            "one Feature; export it from QuPath as GeoJSON"
        )
    return found


def _polygons(feature: dict[str, Any], where: str) -> tuple[str, list[Any]]:
    """The type of a feature's geometry, and the rings of each of its polygons."""
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict):
        return "feature without geometry", []
    kind, coordinates = str(geometry.get("type")), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return kind, []
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list):
        raise SlideError(f"{where}: found a {kind} without coordinates; export it from QuPath again")
    return kind, polygons


def _ring(ring: Any, where: str) -> NDArray[np.float64]:
    """Positions as float64 [N, 2]; SlideError unless they are at least 3 pairs of sensible numbers."""
    try:
        raw = np.asarray(ring)
    except ValueError:  # rows of different lengths
        raw = np.zeros(0)
    if raw.ndim != 2 or raw.shape[1] not in (2, 3) or len(raw) < 3 or raw.dtype.kind not in "iuf":
        raise SlideError(f"{where}: found a ring that is not a list of at least 3 positions [x, y]; export it again")
    xy = raw[:, :2].astype(np.float64)
    if not (np.abs(xy) <= FARTHEST_PX0).all():  # NaN is not
        raise SlideError(
            f"{where}: found a coordinate that is not finite or beyond {FARTHEST_PX0:.0f}; expected level-0 px"
        )
    return xy


def _class_name(feature: dict[str, Any]) -> str:
    """The classification that QuPath gave: a name, or an object that holds one or several."""
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    return found if isinstance(found, str) else ""
