"""Bags: what carries a weak label (a slide, a region, a patch) with the instances that it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import LabelsError
from wsipipe.geometry import Window
from wsipipe.labels import LabelTable, WeakLabel
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class Bag:
    """One weak label.

    xy_px: top left (x, y) of every instance in working px, int32 [M, 2], row-major in the lattice of the bag.
    label: 0 or 1 for each class. patch: whether it is one patch, whose N x N lattice CAMEL's max rules are for;
    other bags follow the prevalence rule. bounds: the labelled rectangle, or the whole slide. patient: whose it is,
    empty if that is not known.
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
    lattice: InstanceGrid,
    min_tissue: float,
) -> tuple[list[Bag], list[str]]:
    """A bag for every row, and notes on rows left out because no instance has `min_tissue` of tissue.

    Instances without enough tissue are left out of their bag (the tissue gate: an empty square must win no rule).
    Raises LabelsError if a region lies outside its slide or is smaller than an instance.
    """
    bags: list[Bag] = []
    notes: list[str] = []
    problems: list[str] = []
    for row in rows:
        store = stores[row.slide_id]
        if row.box_px0 is None:
            xy = lattice.cells(store, min_tissue)[:, ::-1] * lattice.instance_px
            xy = np.ascontiguousarray(xy)
            bag = Bag(row.slide_id, store, xy, row.present, False, store.grid.frame, row.patient_id)
        else:
            window = store.grid.window_of_px0(row.box_px0)
            problem = _misplaced(window, store, lattice)
            if problem:
                problems.append(f"line {row.line}: {problem}")
                continue
            bag = _box_bag(row, window, store, lattice, min_tissue)
        if len(bag.xy_px):
            bags.append(bag)
        else:
            notes.append(f"line {row.line} ({bag.id}): no tissue, left out")
    if problems:
        raise LabelsError(table.path, problems)
    return bags, notes


def _misplaced(window: Window, store: SlideStore, lattice: InstanceGrid) -> str:
    width, height = store.grid.size_px
    if window.x_px >= width or window.y_px >= height:
        return f"the region starts outside slide {store.slide_id} ({width} x {height} px at the working mpp)"
    if min(window.width_px, window.height_px) < lattice.instance_px:
        return f"the region is smaller than one instance ({lattice.instance_px} px at the working mpp)"
    return ""


def _box_bag(row: WeakLabel, window: Window, store: SlideStore, lattice: InstanceGrid, min_tissue: float) -> Bag:
    """The bag of a labelled rectangle: a lattice of its own, from its top left."""
    m, side = lattice.instance_px, store.grid.patch_px
    patch = abs(window.width_px - side) <= 1 and abs(window.height_px - side) <= 1
    if patch:  # a box rounded to level-0 px may come back one px short, and must not lose a row of its lattice
        window = Window(window.x_px, window.y_px, side, side)
    cols, rows = window.width_px // m, window.height_px // m
    ij = np.argwhere(np.ones((rows, cols), bool))
    tissue = store.labels("tissue").read(Window(window.x_px, window.y_px, cols * m, rows * m)) == 1
    share = tissue.reshape(rows, m, cols, m).mean((1, 3))
    keep = ij[share.ravel() >= min_tissue]
    xy = (keep[:, ::-1] * m + [window.x_px, window.y_px]).astype(np.int32)
    name = f"{row.slide_id}@{window.x_px},{window.y_px}"
    return Bag(name, store, xy, row.present, patch, window, row.patient_id)
