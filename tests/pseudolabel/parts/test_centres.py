"""Instances by common centre: displacements followed by hand, two discs told apart, and fragments without a score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wsipipe.pseudolabel.parts.centres import clusters, followed, instances
from wsipipe.pseudolabel.parts.walk import Walk


def discs(h: int, w: int, centres: list[tuple[int, int]], radius: int) -> tuple[Tensor, np.ndarray]:
    """Displacements float [2, h, w] to the centre of the disc that a cell lies in, and the discs: int [h, w], 0 none.

    Outside of the discs displacements are long and lead nowhere.
    """
    y, x = np.mgrid[:h, :w]
    d, which = np.full((2, h, w), 50.0), np.zeros((h, w), int)
    for i, (cy, cx) in enumerate(centres, 1):
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        d[:, inside] = np.stack([cy - y, cx - x])[:, inside]
        which[inside] = i
    return torch.from_numpy(d).float(), which


def test_cells_follow_their_displacements_bilinearly_and_stay_inside():
    d = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    got = followed(d, 4)
    for y in range(5):
        for x in range(7):
            c = np.array([y, x], float)
            for _ in range(4):
                low = np.minimum(np.floor(c).astype(int), [3, 5])
                f = c - low
                moved = np.zeros(2)
                for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    weight = (f[0] if i else 1 - f[0]) * (f[1] if j else 1 - f[1])
                    moved += weight * d[:, low[0] + i, low[1] + j].numpy()
                c = np.clip(c + moved, 0, [4, 6])
            assert np.abs(got[:, y, x].numpy() - c).max() <= 0.5 + 1e-3


def test_no_step_leaves_cells_where_they_are():
    got = followed(torch.ones(2, 3, 4), 0)
    assert got[0].tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert got[1].tolist() == [[0, 1, 2, 3]] * 3


def test_cells_of_one_disc_point_to_one_cluster():
    d, which = discs(24, 40, [(11, 10), (12, 29)], 7)
    found = clusters(d)
    names = [set(found[which == i].tolist()) for i in (1, 2)]
    assert [len(n) for n in names] == [1, 1]
    assert names[0] != names[1]
    assert 0 not in names[0] | names[1]


def test_two_objects_of_one_class_are_two_instances_and_a_fragment_has_no_score():
    d, which = discs(24, 40, [(11, 10), (12, 26)], 8)
    maps = torch.zeros(2, 24, 40)
    maps[1] = torch.from_numpy(np.where(which == 1, 1.0, np.where(which == 2, 0.8, 0.0)))
    boundary = torch.from_numpy((which == 0).astype(np.float32))
    found = instances(maps, boundary, clusters(d), Walk(4))
    assert [f.kind for f in found] == [1, 1]
    assert [f.score for f in found] == pytest.approx([1.0, 0.8], abs=1e-3)
    for f, i in zip(found, (1, 2), strict=True):
        np.testing.assert_array_equal(f.mask, which == i)
    maps[0, 11, 10] = 5.0
    lone = boundary.clone()
    lone[10:13, 9:12] = 1
    lone[11, 10] = 0
    small = [f for f in instances(maps, lone, clusters(d), Walk(4)) if f.kind == 0]
    assert [(f.score, int(f.mask.sum())) for f in small] == [(0.0, 1)]


def test_no_centre_no_instance():
    assert instances(torch.ones(1, 6, 6), torch.zeros(6, 6), clusters(torch.full((2, 6, 6), 9.0)), Walk()) == []
