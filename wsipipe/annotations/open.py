"""Open what a person drew on a slide, a mask image or an annotation file, as class indices in the working frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.annotations import asap, geojson, mask_image
from wsipipe.annotations.mask_image import ValueMap, mask_reader
from wsipipe.annotations.polygons import Painting, Region
from wsipipe.errors import ConfigError
from wsipipe.geometry import Grid, Window
from wsipipe.labels import IGNORE

SUFFIXES = (*mask_image.SUFFIXES, *geojson.SUFFIXES, *asap.SUFFIXES)

OUTSIDE = "outside"
"""Name in a map for what lies in no annotation; without it that is class 0."""

UNCLASSIFIED = "unclassified"
"""Name in a map for annotations to which no class or group was given."""

Reader = Callable[[Window], NDArray[np.uint8]]


def open_truth(path: Path, grid: Grid, meaning: ValueMap, shown_from_px0: tuple[int, int] | None = None) -> Reader:
    """What reads windows (working px, inside the frame) of the truth: class indices uint8 [h, w].

    A mask image (PNG, TIFF) lies in the level-0 frame and its values mean what `meaning` says. Polygons (GeoJSON of
    QuPath, XML of ASAP) count by pixel centres and only the asked window is painted: those of QuPath in the order of
    the file, those of ASAP group after group in the order of `meaning`, always a later one over an earlier one; so
    `_0=tumour,_1=tumour,_2=0` cuts group _2 out. `shown_from_px0` is where QuPath counts from, by default the corner of
    the frame. Raises SlideError where the file cannot be read, and ConfigError for
    values or names without a meaning.
    """
    suffix = path.suffix.lower()
    if suffix in geojson.SUFFIXES:
        regions = geojson.read_regions(path, shown_from_px0 or grid.origin_px0, may_be_empty=True)
        return _painting(path, regions, [_place(r, meaning) for r in regions], grid, meaning)
    if suffix in asap.SUFFIXES:
        regions = asap.read_asap(path)
        placed = sorted(((_place(r, meaning), r) for r in regions), key=lambda v: -1 if v[0] is None else v[0])
        return _painting(path, [r for _, r in placed], [p for p, _ in placed], grid, meaning)
    values = mask_reader(path, grid)
    return lambda window: meaning.apply(values(window), path)


def _place(region: Region, meaning: ValueMap) -> int | None:
    """Where in `meaning` the class of a region stands, or else the nearest group above it; None if nowhere."""
    places = {name: i for i, (name, _) in enumerate(meaning.names)}
    return next((places[n] for n in (region.name or UNCLASSIFIED, *region.above) if n in places), None)


def _painting(
    path: Path, regions: Sequence[Region], places: Sequence[int | None], grid: Grid, meaning: ValueMap
) -> Reader:
    strange = sorted({r.name or UNCLASSIFIED for r, place in zip(regions, places, strict=True) if place is None})
    if strange:
        known = ", ".join(f"{n}={'ignore' if i == IGNORE else i}" for n, i in meaning.names)
        raise ConfigError(
            f"{path}: holds annotations called {', '.join(strange[:20])} that have no meaning (known: {known}); "
            f"say what each means: give {meaning.flag}, e.g. {','.join(f'{n}=0' for n in strange[:3])}"
        )
    ground = dict(meaning.names).get(OUTSIDE, 0)
    return Painting(regions, [meaning.names[p][1] for p in places if p is not None], grid, ground).read
