"""GeoJSON: annotations for QuPath, exact outlines with holes.

Every 4-connected component of a class is a Feature with a Polygon along the edges of its pixels, holes included; one
Feature per line. Coordinates are level-0 px in QuPath's frame, which starts at the corner of the scanner's bounds. The
exterior ring runs counter-clockwise in (x, y) as in RFC 7946, i.e. clockwise on screen, where y points down. The member
`wsipipe` of the collection, which GeoJSON allows and QuPath ignores, records what the file was made from.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from wsipipe.config.options import ExportConfig, option
from wsipipe.errors import StoreError, check
from wsipipe.export.outlines import Outline, trace
from wsipipe.export.rings import Ring, area
from wsipipe.export.simplify import simplified
from wsipipe.export.values import LabelValue, label_classes
from wsipipe.geometry import LEVEL_FACTOR, Window
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import replacing
from wsipipe.store import SlideStore
from wsipipe.store.shards import ShardedArray

SUFFIX = ".geojson"
BY_DEFAULT = True

AREA = "Area \u00b5m^2"
"""Name of the measurement, spelt as QuPath spells it."""

DECIMALS = 3
"""Decimals of a coordinate in level-0 px; whole numbers have none."""

_BLOCK = 4096
"""Vertices formatted at a time."""


@dataclass(frozen=True)
class GeoJsonOptions:
    """How much of a mask is drawn, and how finely; default: every component, exactly."""

    level: int = option(0, "level of the mask: 0 is exact, each further level 4 times coarser")
    tolerance_um: float = option(0.0, "um by which simplified outlines may deviate; 0: exact")
    min_area_um2: float = option(0.0, "components smaller than this (um2) are left out")

    def __post_init__(self) -> None:
        check(self.level >= 0, f"geojson.level: {self.level} is negative; 0 is the finest")
        check(0 <= self.tolerance_um < np.inf, f"geojson.tolerance_um: {self.tolerance_um} is not a length in um")
        check(0 <= self.min_area_um2 < np.inf, f"geojson.min_area_um2: {self.min_area_um2} is not an area in um2")


EXACT = GeoJsonOptions()


def check_options(options: ExportConfig) -> None:
    """Refuse to verify outlines that are not exact."""
    check(
        not options.verify or _drawing(options) == EXACT,
        "export.verify: only an exact GeoJSON can be compared with the mask; leave --level, --tolerance-um and "
        "--min-area at 0, or verify the other formats alone",
    )


def write(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Write the mask of a store."""
    write_geojson(store, options.masks, path, _drawing(options))


def verify(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Read a file back and compare it with the mask."""
    verify_geojson(path, store, options.masks)


def _drawing(options: ExportConfig) -> GeoJsonOptions:
    return GeoJsonOptions(options.level, options.tolerance_um, options.min_area_um2)


def write_geojson(store: SlideStore, name: str, path: Path, options: GeoJsonOptions = EXACT) -> Path:
    """Write the classes of `labels/<name>` to `path`; returns it. Written aside, feature by feature, then renamed.

    Memory: a band of the mask and the outlines that are still open. The same mask gives the same file, ids included.
    Simplified outlines of neighbours may overlap or leave gaps within the tolerance; a component that is left out
    leaves its hole. Raises StoreError if the mask holds a value without a class, ConfigError if it has no such level.
    """
    classes = label_classes(store, name)
    levels = store.grid.levels
    check(options.level < levels, f"geojson.level: {options.level} is beyond the {levels} levels of {store.path}")
    frame = _Frame.of(store, options.level)
    with replacing(path) as partial, partial.open("w", encoding="ascii", newline="\n") as f:
        f.write(_head(store, name, options))
        begin = "\n"
        for outline in trace(_bands(store.labels(name, options.level)), frame.width):
            if outline.value not in classes:
                raise _nameless(store, name, outline)
            area_um2 = frame.area_um2(outline.rings)
            if area_um2 >= options.min_area_um2:
                f.write(begin)
                key = f"wsipipe/{store.slide_id}/{name}/{options.level}/{outline.value}/{outline.first_px}"
                rings = outline.rings
                if options.tolerance_um:
                    rings = simplified(rings, frame.mpp, options.tolerance_um)
                _write_feature(f, key, frame.texts(rings), _properties(classes[outline.value], area_um2))
                begin = ",\n"
        f.write("\n]}\n")
    return path


class _Frame:
    """Lattice points of a mask level in um and in QuPath's frame, as tables by x and by y."""

    def __init__(self, store: SlideStore, level: int, xy_px: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        grid, corner = store.grid, store.shown_from_px0
        self.width = len(xy_px[0]) - 1
        f = LEVEL_FACTOR**level
        self.mpp = (grid.mpp[0] * f, grid.mpp[1] * f)
        self._um = tuple(xy * mpp for xy, mpp in zip(xy_px, grid.mpp, strict=True))
        px0 = [grid.to_px0((x, 0))[0] for x in xy_px[0].tolist()], [grid.to_px0((0, y))[1] for y in xy_px[1].tolist()]
        self._text = tuple([_number(v - low) for v in side] for side, low in zip(px0, corner, strict=True))
        self._lines = tuple(np.array(side, np.float64) for side in self._text)  # as written in the file

    @classmethod
    def of(cls, store: SlideStore, level: int) -> _Frame:
        """The frame of a level; pixels beyond the border of the slide are cut there."""
        f, (height, width) = LEVEL_FACTOR**level, store.grid.level_shape(level)
        x, y = (
            np.minimum(np.arange(n + 1) * float(f), end)
            for n, end in zip((width, height), store.grid.size_px, strict=True)
        )
        return cls(store, level, (x, y))

    def area_um2(self, rings: Sequence[Ring]) -> float:
        """The area of a polygon without its holes."""
        return sum(area(self._um[0][ring[:, 0]], self._um[1][ring[:, 1]]) for ring in rings)

    def texts(self, rings: Sequence[Ring]) -> Iterator[str]:
        """The coordinates of a polygon as JSON, closed, in pieces of text."""
        xs, ys = self._text
        begin = "["
        for ring in rings:
            yield begin
            for first in range(0, len(ring), _BLOCK):
                some = ring[first : first + _BLOCK].tolist()
                yield "".join([f"[{xs[x]},{ys[y]}]," for x, y in some])
            x, y = ring[0].tolist()
            yield f"[{xs[x]},{ys[y]}]]"
            begin = ",["

    def edges(self, feature: dict[str, Any], classes: dict[int, LabelValue]) -> NDArray[np.int32]:
        """The vertical edges of a feature: int32 [N, 4] of lattice x, upper end, lower end, value; else ValueError."""
        called = feature["properties"]["classification"]["name"]
        value = {c.name: v for v, c in classes.items()}[called]
        out = []
        for ring in feature["geometry"]["coordinates"]:
            x, y = (_places(side, v) for side, v in zip(self._lines, np.asarray(ring, np.float64).T, strict=True))
            upright = x[1:] == x[:-1]
            if (x[0], y[0]) != (x[-1], y[-1]) or (upright == (y[1:] == y[:-1])).any():
                raise ValueError(f"{feature['id']} has a ring that is open or does not follow pixel edges")
            low, high = np.minimum(y[1:], y[:-1])[upright], np.maximum(y[1:], y[:-1])[upright]
            out.append(np.stack([x[1:][upright], low, high, np.full(len(low), value)], 1).astype(np.int32))
        return np.concatenate(out)


def _places(lines: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the lattice lines (ascending) at these coordinates; ValueError for a coordinate between lines."""
    at = np.minimum(np.searchsorted(lines, values), len(lines) - 1)
    if (lines[at] != values).any():
        raise ValueError(f"coordinate {values[lines[at] != values][0]} is not on a pixel edge")
    return at


def _number(value: float) -> str:
    rounded = round(value, DECIMALS)
    return str(int(rounded) if rounded == int(rounded) else rounded)


def _bands(array: ShardedArray) -> Iterator[NDArray[np.uint8]]:
    """A mask from top to bottom, a row of chunks at a time, 255 as 0: uint8 [h, width]."""
    (height, width), rows = array.spec.shape, array.spec.chunk_px
    for y in range(0, height, rows):
        band = array.read(Window(0, y, width, min(rows, height - y))).astype(np.uint8, copy=False)
        band *= band != IGNORE
        yield band


def _head(store: SlideStore, name: str, options: GeoJsonOptions) -> str:
    """The first line of the file."""
    made_of = {"slide_id": store.slide_id, "name": name, "digest": store.attributes("labels", name).get("digest", "")}
    return f'{{"type":"FeatureCollection","wsipipe":{json.dumps({**made_of, **asdict(options)})},"features":['


def _properties(what: LabelValue, area_um2: float) -> dict[str, Any]:
    """What QuPath reads of an annotation besides id and geometry."""
    return {
        "objectType": "annotation",
        "classification": {"name": what.name, "color": list(what.rgb)},
        "isLocked": False,
        "measurements": {AREA: round(area_um2, 3)},
    }


def _write_feature(f: TextIO, key: str, coordinates: Iterator[str], properties: dict[str, Any]) -> None:
    """Write one line; the id of the Feature is derived from `key`."""
    f.write(f'{{"type":"Feature","id":"{uuid.uuid5(uuid.NAMESPACE_URL, key)}",')
    f.write('"geometry":{"type":"Polygon","coordinates":[')
    f.writelines(coordinates)
    f.write(f']}},"properties":{json.dumps(properties)}}}')


def _nameless(store: SlideStore, name: str, outline: Outline) -> StoreError:
    x, y = outline.first_px
    return StoreError(
        f"{store.path}: labels/{name} holds the value {outline.value} at {x}, {y}, which has no class; "
        "compute or import it again"
    )


def verify_geojson(path: Path, store: SlideStore, name: str) -> None:
    """Rasterise a file of `write_geojson` and compare it with `labels/<name>` pixel by pixel, at the level of the file.

    Memory: a band of the mask and the vertices in the file. Raises StoreError with the first difference, row by row, if
    the file is not in the layout of `write_geojson`, or if it was written with a tolerance or a least area: only exact
    files can be compared.
    """
    classes = label_classes(store, name)
    try:
        with path.open(encoding="utf-8") as f:
            level = _level_of(path, json.loads(f.readline() + "]}"), store, name)
            frame = _Frame.of(store, level)
            parts = [frame.edges(feature, classes) for feature in _features(f)]
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; export it first") from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise StoreError(f"{path}: not in the layout of wsipipe ({error}); export it again") from None
    edges = np.concatenate(parts) if parts else np.zeros((0, 4), np.int32)
    edges = edges[np.argsort(edges[:, 1], kind="stable")]
    y = 0
    for band in _bands(store.labels(name, level)):
        _compare(path, edges, band, y, {0: "none", **{v: c.name for v, c in classes.items()}})
        y += len(band)


def _level_of(path: Path, root: dict[str, Any], store: SlideStore, name: str) -> int:
    """The level of the file; StoreError if it was made from another mask, or not exactly."""
    of = root["wsipipe"]
    found = (of["slide_id"], of["name"], of["digest"])
    expected = (store.slide_id, name, store.attributes("labels", name).get("digest", ""))
    if found != expected:
        what = "labels/{1} of slide {0}, digest {2!r}"
        raise StoreError(f"{path}: made from {what.format(*found)}; expected {what.format(*expected)}; export it again")
    for limit in ("tolerance_um", "min_area_um2"):
        if of[limit]:
            raise StoreError(f"{path}: made with {limit} {of[limit]}; only exact files can be verified; export with 0")
    return int(of["level"])


def _features(lines: TextIO) -> Iterator[dict[str, Any]]:
    """The features of the lines after the first; ValueError if the end is missing."""
    for line in lines:
        if line == "]}\n":
            return
        if text := line.rstrip(",\n"):
            yield json.loads(text)
    raise ValueError("it is truncated")


def _compare(path: Path, edges: NDArray[np.int32], band: NDArray[np.uint8], top: int, names: dict[int, str]) -> None:
    """Raise StoreError for the first pixel where the band, uint8 [h, width] from row `top`, differs from the polygons.

    edges: rows x, upper end, lower end, value; sorted by upper ends. Each edge flips the pixels to its right: a bit per
    class, eight classes at a time, so that overlapping polygons are found too.
    """
    height, width = band.shape
    some = edges[: np.searchsorted(edges[:, 1], top + height)]
    some = some[some[:, 2] > top]
    if not len(some) and not band.any():
        return
    first = (np.clip(some[:, 1:3] - top, 0, height) * np.int64(width + 1)) + some[:, :1]
    different, values = ~np.isin(np.arange(256), list(names))[band], sorted(names)[1:]
    painted = []
    for i in range(0, len(values), 8):
        bit = np.zeros(256, np.uint8)
        bit[values[i : i + 8]] = 1 << np.arange(len(values[i : i + 8]))
        flips = np.zeros((height + 1, width + 1), np.uint8)
        np.bitwise_xor.at(flips.reshape(-1), first, bit[some[:, 3:]])
        np.bitwise_xor.accumulate(flips, axis=0, out=flips)
        np.bitwise_xor.accumulate(flips, axis=1, out=flips)
        different |= flips[:height, :width] != bit[band]
        painted.append((bit, flips))
    if different.any():
        y, x = divmod(int(np.argmax(different)), width)
        found = [names[v] for v in values for bit, flips in painted if bit[v] & flips[y, x]]
        raise StoreError(
            f"{path}: differs from the mask first at {x}, {top + y} (px of its level): "
            f"found {' and '.join(found) or names[0]}; expected {names.get(int(band[y, x]), 'another')}; export again"
        )
