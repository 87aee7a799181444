"""Tissue masks from the user, in place of tissue detection."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsipipe.annotations import geojson, mask_image
from wsipipe.annotations.mask_image import find_masks, read_mask
from wsipipe.annotations.polygons import rasterise
from wsipipe.geometry import Grid
from wsipipe.slides.base import SlideFile
from wsipipe.tissue.detect import TissueMask
from wsipipe.tissue.overview import OverviewFrame, OverviewKind

log = logging.getLogger(__name__)

SUFFIXES = (*mask_image.SUFFIXES, *geojson.SUFFIXES)


def with_masks(slides: Mapping[str, SlideFile], spec: str) -> dict[str, SlideFile]:
    """The slides with the tissue masks at `spec`: a folder, a glob or a pattern with `{slide_id}`.

    A mask in a manifest takes precedence. The log names the slides without a mask. Raises ConfigError if no slide has
    a mask.
    """
    masks = find_masks(spec, slides, SUFFIXES)
    without = [i for i, file in slides.items() if i not in masks and not file.mask]
    if without:
        log.warning("%s: no mask for %s; detecting their tissue", spec, ", ".join(without))
    return {i: file if file.mask else replace(file, mask=masks.get(i)) for i, file in slides.items()}


def tissue_from_mask(path: Path, grid: Grid, mpp: float, shown_from_px0: tuple[int, int] | None = None) -> TissueMask:
    """The user's mask on an overview at about `mpp` um/px: PNG or TIFF (not 0 is tissue), or QuPath polygons (GeoJSON).

    `shown_from_px0` is the origin of QuPath's coordinates in level-0 px, the corner of the scanner's bounds; by default
    the corner of the frame. Raises SlideError if the file is not such a mask, or does not fit the slide.
    """
    frame = OverviewFrame.plan(grid, mpp)
    if path.suffix.lower() in geojson.SUFFIXES:
        regions = geojson.read_geojson(path, shown_from_px0 or grid.origin_px0)
        inside = rasterise(regions, frame.shape, frame.scale, grid.origin_px0)
    else:
        step = frame.step_px
        inside = read_mask(path, replace(grid, mpp=(grid.mpp[0] * step, grid.mpp[1] * step), scale=frame.scale)) != 0
        # pixels that extend over the border of the slide repeat their neighbours
        inside = np.pad(inside, [(0, n - m) for n, m in zip(frame.shape, inside.shape, strict=True)], mode="edge")
    kind = np.where(inside, np.uint8(OverviewKind.TISSUE), np.uint8(OverviewKind.GLASS))
    return TissueMask(kind, frame.step_px, "" if inside.any() else f"no tissue in the mask {path.name}")
