"""Read the polygons of an ASAP XML file, the format of the Camelyon annotations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml.ElementTree import ParseError, iterparse

from wsipipe.annotations.polygons import MAX_COORDINATE_PX0, MAX_VERTICES, Region, Ring
from wsipipe.errors import SlideError

log = logging.getLogger(__name__)

SUFFIXES = (".xml",)

MAX_BYTES = 256 * 2**20

AREAS = ("Polygon", "Rectangle", "Spline")
"""Annotation types that enclose an area. Straight lines join the points of a spline, as in ASAP's own masks."""

_NO_GROUP = ("None", "")


def read_asap(path: Path) -> list[Region]:
    """The areas of an ASAP file in file order; a warning counts dots, point sets and areas of fewer than 3 points.

    Coordinates are level-0 px of the whole slide, even if the scanner records bounds. `name` of a region is its group,
    `above` the groups that contain this group. A file without annotations has no regions. Document types and entities
    are refused. Raises SlideError.
    """
    counts = Counter[str]()
    drawn: list[tuple[str, Ring]] = []
    parents: dict[str, str] = {}
    vertices = 0
    for element in _elements(path):
        group = element.get("PartOfGroup", "")
        if element.tag == "Group":
            parents[element.get("Name", "")] = group
            continue
        kind, ring = element.get("Type", "annotation without a type"), _ring(element, path)
        vertices += len(ring)
        if vertices > MAX_VERTICES:
            raise SlideError(
                f"{path}: found more than {MAX_VERTICES} vertices; simplify the annotations, or use a TIFF mask"
            )
        if kind in AREAS and len(ring) >= 3:
            drawn.append(("" if group in _NO_GROUP else group, ring))
        else:
            counts[f"{kind} of fewer than 3 points" if kind in AREAS else kind] += 1
    if counts:
        text = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        log.warning("%s: skipped %s; only closed regions enclose an area", path, text)
    return [Region((ring,), name, _above(name, parents)) for name, ring in drawn]


def _elements(path: Path) -> Iterator[Any]:
    """Every Annotation and Group of the file, freed after its use."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SlideError(
                f"{path}: found {size} bytes; expected at most {MAX_BYTES}; simplify it, or use a TIFF mask"
            )
        root = None
        with path.open("rb") as file:
            for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
                if root is None:
                    root = element
                    if root.tag != "ASAP_Annotations":
                        raise SlideError(
                            f"{path}: found <{root.tag}>; expected <ASAP_Annotations>, the XML format of ASAP"
                        )
                if event == "end" and element.tag in ("Annotation", "Group"):
                    yield element
                    element.clear()
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file") from None
    except (ParseError, ValueError, LookupError) as error:  # not XML, a document type or entity, an unknown encoding
        text = " ".join(str(error).split())
        raise SlideError(f"{path}: not readable as XML ({text}); save the annotations from ASAP again") from None


def _ring(annotation: Any, path: Path) -> Ring:
    """The points of an annotation in their order: float64 [N, 2] (x, y) in level-0 px."""
    where = f"{path}: annotation {annotation.get('Name', '')!r}"
    points = annotation.findall("./Coordinates/Coordinate")
    try:
        raw = np.array([[float(p.get(k, i)) for k in ("Order", "X", "Y")] for i, p in enumerate(points)], np.float64)
    except ValueError as error:
        raise SlideError(
            f"{where}: found a coordinate that is not a number ({error}); save it from ASAP again"
        ) from None
    if any(p.get(k) is None for p in points for k in "XY"):
        raise SlideError(f"{where}: found a coordinate without X or Y; save it from ASAP again")
    if not (np.abs(raw) <= MAX_COORDINATE_PX0).all():  # NaN is not
        raise SlideError(
            f"{where}: found a coordinate that is not finite or beyond {MAX_COORDINATE_PX0:.0f}; expected level-0 px"
        )
    raw = raw.reshape(-1, 3)
    return np.asarray(raw[np.argsort(raw[:, 0], kind="stable"), 1:])


def _above(name: str, parents: dict[str, str]) -> tuple[str, ...]:
    """The groups that contain a group, nearest first."""
    above: list[str] = []
    while (name := parents.get(name, "")) not in (*_NO_GROUP, *above):
        above.append(name)
    return tuple(above)
