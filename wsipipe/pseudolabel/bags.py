"""Bags: a slide, region or patch with its weak label and its instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import LabelsError
from wsipipe.geometry import Window
from wsipipe.labels import LabelTable, Tissue, WeakLabel
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class Bag:
    """One weak label and the instances that it is about.

    xy_px: top left corner (x, y) of every instance in working px, int32 [M, 2], row by row. label: 0 or 1 per class.
    patch: whether the bag is a single patch. bounds: the labelled rectangle or the whole slide, in working px. patient:
    empty if not known.
    """

    id: str
    store: SlideStore
    xy_px: NDArray[np.int32]
    label: tuple[int, ...]
    patch: bool
    bounds: Window
    patient: str = ""


def make_bags(
    table: LabelTable,
    rows: Sequence[WeakLabel],
    stores: Mapping[str, SlideStore],
    instance_grid: InstanceGrid,
    min_tissue: float,
) -> tuple[list[Bag], list[str]]:
    """One bag per row, and a note on each row skipped because none of its instances has enough tissue.

    Bags hold only instances with at least `min_tissue` (0..1) of tissue: empty glass must never be selected.
    LabelsError lists regions that lie outside their slide or are smaller than an instance.
    """
    bags: list[Bag] = []
    notes: list[str] = []
    problems: list[str] = []
    for row in rows:
        store = stores[row.slide_id]
        if row.box_px0 is None:
            xy = instance_grid.cells(store, min_tissue)[:, ::-1] * instance_grid.instance_px
            xy = np.ascontiguousarray(xy)
            bag = Bag(row.slide_id, store, xy, row.present, False, store.grid.frame, row.patient_id)
        else:
            window = store.grid.window_of_px0(row.box_px0)
            if problem := _problem_of(window, store, instance_grid):
                problems.append(f"line {row.line}: {problem}")
                continue
            bag = _box_bag(row, window, store, instance_grid, min_tissue)
        if len(bag.xy_px):
            bags.append(bag)
        else:
            notes.append(f"line {row.line} ({bag.id}): no tissue, skipped")
    if problems:
        raise LabelsError(table.path, problems)
    return bags, notes


def _problem_of(window: Window, store: SlideStore, instance_grid: InstanceGrid) -> str:
    """What is wrong with the position or size of a region; empty if nothing is."""
    width, height = store.grid.size_px
    if window.x_px >= width or window.y_px >= height:
        return f"the region starts outside slide {store.slide_id} ({width} x {height} px at the working mpp)"
    if min(window.width_px, window.height_px) < instance_grid.instance_px:
        return f"the region is smaller than one instance ({instance_grid.instance_px} px at the working mpp)"
    return ""


def _box_bag(row: WeakLabel, window: Window, store: SlideStore, instance_grid: InstanceGrid, min_tissue: float) -> Bag:
    """The bag of a labelled rectangle, whose instances start at its top left corner."""
    m, side = instance_grid.instance_px, store.grid.patch_px
    patch = abs(window.width_px - side) <= 1 and abs(window.height_px - side) <= 1
    if patch:  # a box rounded to level-0 px may come back one px short; it must not lose a row of instances
        window = Window(window.x_px, window.y_px, side, side)
    cols, rows = window.width_px // m, window.height_px // m
    ij = np.argwhere(np.ones((rows, cols), bool))
    tissue = store.labels("tissue").read(Window(window.x_px, window.y_px, cols * m, rows * m)) == Tissue.TISSUE
    fraction = tissue.reshape(rows, m, cols, m).mean((1, 3))
    keep = ij[fraction.ravel() >= min_tissue]
    xy = (keep[:, ::-1] * m + [window.x_px, window.y_px]).astype(np.int32)
    name = f"{row.slide_id}@{window.x_px},{window.y_px}"
    return Bag(name, store, xy, row.present, patch, window, row.patient_id)
