"""CSV of the area of each class in mm2 and its share of the tissue, a row per slide and class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from wsipipe.config.options import ExportConfig
from wsipipe.errors import ConfigError
from wsipipe.export.values import label_classes
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Tissue
from wsipipe.runtime.atomic import write_csv
from wsipipe.store import SlideStore

FILE = "areas.csv"
BY_DEFAULT = True

COLUMNS = ("slide_id", "name", "class", "area_mm2", "share_of_tissue", "tissue_mm2", "unknown_mm2")
"""area_mm2: of the class, on tissue or glass. share_of_tissue: the fraction of the tissue that it covers, empty without
tissue. tissue_mm2: all tissue of the slide. unknown_mm2: tissue where the mask is 255."""


def write_all(stores: Sequence[SlideStore], path: Path, options: ExportConfig) -> None:
    """Write the areas of the classes of all stores."""
    write_areas(stores, options.masks, path)


def write_areas(stores: Iterable[SlideStore], name: str, path: Path) -> Path:
    """Write the areas of all classes of `labels/<name>` of the stores to a CSV at `path`; returns it.

    A row per slide and class, also for a class that the slide does not hold. Reads a row of chunks at a time. Written
    aside, then renamed. Raises StoreError if a store has no such mask, ConfigError if two stores have one slide id.
    """
    rows: list[dict[str, object]] = []
    seen: dict[str, Path] = {}
    for store in stores:
        if store.slide_id in seen:
            raise ConfigError(
                f"{store.path} and {seen[store.slide_id]} are stores of one slide, {store.slide_id}; name one"
            )
        seen[store.slide_id] = store.path
        rows += _rows(store, name)
    write_csv(path, COLUMNS, rows)
    return path


def _rows(store: SlideStore, name: str) -> Iterator[dict[str, object]]:
    """The rows of one slide."""
    classes = label_classes(store, name)
    count, on_tissue, tissue = _count(store, name)
    mm2 = store.grid.mpp[0] * store.grid.mpp[1] / 1e6
    for value, what in classes.items():
        yield {
            "slide_id": store.slide_id,
            "name": name,
            "class": what.name,
            "area_mm2": f"{count[value] * mm2:.6f}",
            "share_of_tissue": f"{on_tissue[value] / tissue:.6f}" if tissue else "",
            "tissue_mm2": f"{tissue * mm2:.6f}",
            "unknown_mm2": f"{on_tissue[IGNORE] * mm2:.6f}",
        }


def _count(store: SlideStore, name: str) -> tuple[dict[int, int], dict[int, int], int]:
    """Pixels of each value of the mask, those of them on tissue, and all pixels of tissue."""
    mask, tissue = store.labels(name), store.labels("tissue")
    (height, width), rows = mask.spec.shape, mask.spec.chunk_px
    values = (*label_classes(store, name), IGNORE)
    count, on_tissue, whole = dict.fromkeys(values, 0), dict.fromkeys(values, 0), 0
    for y in range(0, height, rows):
        window = Window(0, y, width, min(rows, height - y))
        here, inside = mask.read(window), tissue.read(window) == Tissue.TISSUE
        whole += int(np.count_nonzero(inside))
        for value in values:
            of_value = here == value
            count[value] += int(np.count_nonzero(of_value))
            on_tissue[value] += int(np.count_nonzero(of_value & inside))
    return count, on_tissue, whole
