"""Old names of options: whoever uses one gets an error with the new name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsipipe.errors import check

RENAMED = {
    "tile.even_stain": "tile.normalise_stain",
    "pretrain.stain": "pretrain.stain_jitter",
    "segment.splits": "segment.labels",
    "segment.robust": "segment.gce_q",
    "segment.mosaic": "segment.mosaic_prob",
    "segment.zoom": "segment.max_zoom",
    "segment.rounds": "segment.self_training_rounds",
    "segment.average": "segment.ema",
    "segment.confident": "segment.teacher_threshold",
    "segment.window_px": "stitch.window_px",
    "segment.overlap": "stitch.overlap",
    "segment.blend": "stitch.blend",
    "segment.views": "stitch.views",
    "segment.stitch_memory_mb": "stitch.memory_mb",
    "segment.score_stride_px": "stitch.score_stride_px",
    "evaluate.labels_csv": "evaluate.labels",
    "export.labels": "export.masks",
}
"""Old dotted key -> new dotted key."""

_MAP_METHODS = ("cam", "drs", "histosegnet", "irnet")

RENAMED_PARAMETERS = {
    "pseudolabel.camel.stain": "pseudolabel.camel.stain_jitter",
    "pseudolabel.camel.zoom": "pseudolabel.camel.max_zoom",
    "pseudolabel.histosegnet.none": "pseudolabel.histosegnet.other_evidence",
    **{f"pseudolabel.{name}.stain": f"pseudolabel.{name}.stain_jitter" for name in _MAP_METHODS},
    **{f"pseudolabel.{name}.cells": f"pseudolabel.{name}.map_size" for name in _MAP_METHODS},
}
"""As `RENAMED`, for parameters of methods, which have no flags."""

REUSED = {"segment.labels": "segment.masks", "evaluate.labels": "evaluate.masks"}
"""Dotted key that held the name of masks and is a CSV now -> the key that holds the name of masks."""

_MASK_NAMES = re.compile(r"[\w+-]+(,[\w+-]+)*")


def check_key(key: str) -> None:
    """Raise ConfigError if a dotted key, which is no option, was one under another name."""
    new = {**RENAMED, **RENAMED_PARAMETERS}.get(key)
    check(new is None, f"{key} was renamed; use {new}")


def check_reused(section: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError if a key that is a CSV now still holds the name of masks."""
    for key, new in REUSED.items():
        old_section, _, name = key.partition(".")
        value = values.get(name, "") if section == old_section else ""
        is_name = isinstance(value, str) and _MASK_NAMES.fullmatch(value) and not Path(value).is_file()
        check(not is_name, f"{key}: {value!r} is no CSV file; the name of masks goes to {new} (--masks)")
