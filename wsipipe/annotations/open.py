"""Open what a person drew on a slide, a mask image or an annotation file, as class indices in the working frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.annotations import asap, geojson, mask_image
from wsipipe.annotations.mask_image import ValueMap, mask_reader
from wsipipe.annotations.polygons import Region, RegionPainter
from wsipipe.errors import ConfigError
from wsipipe.geometry import Grid, Window
from wsipipe.labels import IGNORE

OUTSIDE = "outside"
"""Name in a value map for the area outside all annotations; default: class 0."""

UNCLASSIFIED = "unclassified"
"""Name in a value map for annotations without a class or group."""

WindowReader = Callable[[Window], NDArray[np.uint8]]
"""Reads a window (working px, inside the frame): class indices uint8 [h, w]."""


def open_truth(
    path: Path, grid: Grid, value_map: ValueMap, shown_from_px0: tuple[int, int] | None = None
) -> WindowReader:
    """A reader of the class indices (0 none, 255 ignore) that a mask image or annotation file contains.

    A mask image (PNG, TIFF) covers the level-0 frame; `value_map` maps its values to classes. The polygons of an
    annotation file (QuPath GeoJSON, ASAP XML) cover the pixels whose centres they contain, and `value_map` maps the
    names of their classes or groups. A later polygon covers an earlier one: in file order for QuPath, group after
    group in the order of `value_map` for ASAP, so that `_0=tumour,_1=tumour,_2=0` cuts group _2 out. Only the
    requested window is rasterised. `shown_from_px0` is the origin of QuPath's coordinates in level-0 px, by default
    the corner of the frame.

    Raises SlideError if the file cannot be read, and ConfigError for values or names that `value_map` lacks.
    """
    return FORMATS.get(path.suffix.lower(), _open_mask_image)(path, grid, value_map, shown_from_px0)


def _open_mask_image(path: Path, grid: Grid, value_map: ValueMap, _: tuple[int, int] | None) -> WindowReader:
    values = mask_reader(path, grid)
    return lambda window: value_map.apply(values(window), path)


def _open_geojson(path: Path, grid: Grid, value_map: ValueMap, shown_from_px0: tuple[int, int] | None) -> WindowReader:
    regions = geojson.read_geojson(path, shown_from_px0 or grid.origin_px0, may_be_empty=True)
    return _painter(path, regions, grid, value_map)


def _open_asap(path: Path, grid: Grid, value_map: ValueMap, _: tuple[int, int] | None) -> WindowReader:
    """Regions in the order of `value_map`; in file order within a group."""
    regions = asap.read_asap(path)

    def rank(region: Region) -> int:
        place = _place(region, value_map)
        return -1 if place is None else place

    return _painter(path, sorted(regions, key=rank), grid, value_map)


FORMATS: dict[str, Callable[[Path, Grid, ValueMap, tuple[int, int] | None], WindowReader]] = {
    suffix: opener
    for suffixes, opener in (
        (mask_image.SUFFIXES, _open_mask_image),
        (geojson.SUFFIXES, _open_geojson),
        (asap.SUFFIXES, _open_asap),
    )
    for suffix in suffixes
}
"""File suffix -> what opens such a file."""

SUFFIXES = tuple(FORMATS)


def _place(region: Region, value_map: ValueMap) -> int | None:
    """Index in `value_map.names` of a region's class, or of the nearest group above it; None if it has neither."""
    places = {name: i for i, (name, _) in enumerate(value_map.names)}
    return next((places[n] for n in (region.name or UNCLASSIFIED, *region.above) if n in places), None)


def _painter(path: Path, regions: Sequence[Region], grid: Grid, value_map: ValueMap) -> WindowReader:
    """A reader that paints regions in this order. Raises ConfigError with the names that `value_map` lacks."""
    places = [_place(region, value_map) for region in regions]
    unknown = sorted({r.name or UNCLASSIFIED for r, place in zip(regions, places, strict=True) if place is None})
    if unknown:
        known = ", ".join(f"{n}={'ignore' if i == IGNORE else i}" for n, i in value_map.names)
        raise ConfigError(
            f"{path}: holds annotations called {', '.join(unknown[:20])} that have no meaning (known: {known}); "
            f"map every name to a class: give {value_map.flag}, e.g. {','.join(f'{n}=0' for n in unknown[:3])}"
        )
    background = dict(value_map.names).get(OUTSIDE, 0)
    values = [value_map.names[place][1] for place in places if place is not None]
    return RegionPainter(regions, values, grid, background).read
