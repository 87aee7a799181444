"""Tissue masks that the user gives in place of the tissue finder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from wsipipe.annotations.mask_image import SUFFIXES as MASK_SUFFIXES
from wsipipe.annotations.mask_image import find_masks
from wsipipe.slides.base import SlideFile

log = logging.getLogger(__name__)

TISSUE_SUFFIXES = (*MASK_SUFFIXES, ".geojson", ".json")


def with_masks(slides: Mapping[str, SlideFile], spec: str) -> dict[str, SlideFile]:
    """The slides with the tissue masks that `spec` names: a folder, a glob or a pattern that holds `{slide_id}`.

    A mask that a manifest gives stays. Raises ConfigError if no slide has a mask; those without are named in the log.
    """
    masks = find_masks(spec, slides, TISSUE_SUFFIXES)
    lacking = [i for i, file in slides.items() if i not in masks and not file.mask]
    if lacking:
        log.warning("%s: no mask for %s; their tissue is found as usual", spec, ", ".join(lacking))
    return {i: file if file.mask else replace(file, mask=masks.get(i)) for i, file in slides.items()}
