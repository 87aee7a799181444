"""Read the polygons of a GeoJSON file exported by QuPath."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.annotations.polygons import MAX_COORDINATE_PX0, MAX_VERTICES, Region, Ring
from wsipipe.errors import SlideError

log = logging.getLogger(__name__)

SUFFIXES = (".geojson", ".json")

MAX_BYTES = 64 * 2**20


def read_geojson(path: Path, origin_px0: tuple[int, int] = (0, 0), may_be_empty: bool = False) -> list[Region]:
    """The polygons of a FeatureCollection, an array of features, or one feature; a warning counts other shapes.

    QuPath crops a slide to the bounds that its scanner records, so `origin_px0`, the corner of these bounds, is added
    to the coordinates. Raises SlideError, also for a file without polygons unless `may_be_empty`.
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
            if vertices > MAX_VERTICES:
                raise SlideError(
                    f"{path}: found more than {MAX_VERTICES} vertices; simplify the annotations, or use a TIFF mask"
                )
            regions.append(Region(rings, *_class_name(feature)))
    skipped = {k: n for k, n in counts.items() if k not in ("Polygon", "MultiPolygon")}
    text = ", ".join(f"{n} {kind}" for kind, n in sorted(skipped.items()))
    if not regions and not may_be_empty:
        raise SlideError(
            f"{path}: found {text or 'no features'}; expected Polygon or MultiPolygon; draw closed regions"
        )
    if skipped:
        log.warning("%s: skipped %s; only polygons enclose an area", path, text)
    return regions


def _load(path: Path) -> Any:
    """The content of a JSON file of at most MAX_BYTES."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SlideError(
                f"{path}: found {size} bytes; expected at most {MAX_BYTES}; simplify it, or use a TIFF mask"
            )
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file") from None
    except RecursionError:
        raise SlideError(f"{path}: found brackets nested too deep; expected GeoJSON exported by QuPath") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise SlideError(f"{path}: not readable as JSON ({error}); export it from QuPath as GeoJSON") from None


def _features(path: Path, root: Any) -> list[dict[str, Any]]:
    """The features of a file. Raises SlideError if `root` is not made of features."""
    found = root
    if isinstance(root, dict):
        found = root.get("features") if root.get("type") == "FeatureCollection" else [root]
    if not isinstance(found, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in found):
        what = f"type {root.get('type')!r}" if isinstance(root, dict) else type(root).__name__
        raise SlideError(
            f"{path}: found {what} without features; expected a FeatureCollection, an array of features or "
            "one Feature; export it from QuPath as GeoJSON"
        )
    return found


def _polygons(feature: dict[str, Any], where: str) -> tuple[str, list[Any]]:
    """The geometry type of a feature, and the rings of each of its polygons."""
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


def _ring(ring: Any, where: str) -> Ring:
    """The positions of a ring: float64 [N, 2]. Raises SlideError unless it has at least 3 plausible ones."""
    try:
        raw = np.asarray(ring)
    except ValueError:  # rows of different lengths
        raw = np.zeros(0)
    if raw.ndim != 2 or raw.shape[1] not in (2, 3) or len(raw) < 3 or raw.dtype.kind not in "iuf":
        raise SlideError(f"{where}: expected a ring of at least 3 positions [x, y]; export it again")
    xy = raw[:, :2].astype(np.float64)
    if not (np.abs(xy) <= MAX_COORDINATE_PX0).all():  # NaN is not
        raise SlideError(
            f"{where}: found a coordinate that is not finite or beyond {MAX_COORDINATE_PX0:.0f}; expected level-0 px"
        )
    return xy


def _class_name(feature: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The classification of a feature (a name, or an object with one or several names) and the classes above it.

    QuPath writes a derived class as "Tumor: Positive"; the class above it is "Tumor".
    """
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    if not isinstance(found, str):
        return "", ()
    parts = found.split(": ")
    return found, tuple(": ".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
