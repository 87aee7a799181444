"""CAMEL's cascade, N = N1 x N2: the crops that cMIL labels on a coarse lattice become the bags of a second cMIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods.camel.selectors import Pick


@dataclass(frozen=True)
class Crops:
    """The intermediate crops of a patch bag: a bag of crops, and the indices of the instances inside each crop."""

    bag: Bag
    inside: tuple[NDArray[np.int64], ...]


def coarse_grid(instance_grid: InstanceGrid, n2: int) -> InstanceGrid:
    """Crops of N2 x N2 instances, seen without context: with it, the four crops of a patch would see the same."""
    side = instance_grid.instance_px * n2
    return InstanceGrid(side, side, instance_grid.shrink)


def intermediate_crops(bag: Bag, instance_grid: InstanceGrid, n2: int) -> Crops:
    """The crops of N2 x N2 instances of a patch, row by row, without those that hold no instance (glass)."""
    side = instance_grid.instance_px * n2
    origin = np.array([bag.bounds.x_px, bag.bounds.y_px])
    crop = (bag.xy_px - origin) // side  # (column, row) of the crop that each instance lies in
    found, which = np.unique(crop[:, ::-1], axis=0, return_inverse=True)
    xy = (found[:, ::-1] * side + origin).astype(np.int32)
    inside = tuple(np.flatnonzero(which.ravel() == j) for j in range(len(found)))
    return Crops(replace(bag, xy_px=xy), inside)


@dataclass(frozen=True)
class SubBags:
    """Labelled crops as bags: labels float [S, K] (nan: unknown); where: bag and indices of its instances."""

    labels: Tensor
    where: list[tuple[int, NDArray[np.int64]]]

    def of(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values of each sub-bag, from values [M, ..] of each bag."""
        return [values[b][torch.from_numpy(rows)] for b, rows in self.where]

    def back(self, picks: Sequence[Pick]) -> list[Pick]:
        """Picks from sub-bags as picks from the bags that contain them."""
        return [p._replace(bag=self.where[p.bag][0], instance=int(self.where[p.bag][1][p.instance])) for p in picks]


def sub_bags(crops: Sequence[Crops], parents: Sequence[int], picks: Sequence[Pick], labels: Tensor) -> SubBags:
    """The picked crops as bags; crops[j] belongs to bag parents[j], and a pick names j and a crop.

    A class that the patch does not hold is 0 in all of its crops; one that it holds is known only where picked.
    """
    known: dict[tuple[int, int], Tensor] = {}
    for p in picks:
        label = labels[parents[p.bag]].float()
        row = known.setdefault((p.bag, p.instance), torch.where(label > 0, torch.nan, label))
        row[p.of_class] = p.target
    keys = sorted(known)
    where = [(parents[j], crops[j].inside[i]) for j, i in keys]
    return SubBags(torch.stack([known[k] for k in keys]) if keys else torch.zeros(0, labels.shape[1]), where)
