"""Objects by common centre: displacements followed by hand, two discs told apart, and cells that hang together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from wsipipe.pseudolabel import centres
from wsipipe.pseudolabel.centres import connected_cells, find_clusters, follow


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
    got = follow(d, 4)
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
    got = follow(torch.ones(2, 3, 4), 0)
    assert got[0].tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert got[1].tolist() == [[0, 1, 2, 3]] * 3


def test_cells_of_one_disc_point_to_one_cluster():
    d, which = discs(24, 40, [(11, 10), (12, 29)], 7)
    found = find_clusters(d)
    names = [set(found[which == i].tolist()) for i in (1, 2)]
    assert [len(n) for n in names] == [1, 1]
    assert names[0] != names[1]
    assert 0 not in names[0] | names[1]


def test_cells_that_are_chosen_go_where_they_go_among_all():
    d = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(1)) * 3
    y, x = np.nonzero(np.random.default_rng(0).random((9, 7)) < 0.4)
    torch.testing.assert_close(follow(d, 5, torch.from_numpy(np.stack([y, x]))), follow(d, 5)[:, y, x])


@pytest.mark.parametrize("block", [1, 40, 97, 1 << 20])
def test_clusters_do_not_depend_on_how_many_cells_are_followed_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch):
    d, which = discs(24, 40, [(11, 10), (12, 29)], 7)
    d += torch.randn(d.shape, generator=torch.Generator().manual_seed(2))
    expected = find_clusters(d)
    monkeypatch.setattr(centres, "BLOCK", block)
    np.testing.assert_array_equal(find_clusters(d), expected)
    np.testing.assert_array_equal(find_clusters(d, wanted=which > 0), np.where(which > 0, expected, 0))


def test_no_centre_lies_where_nothing_is_known():
    d, which = discs(24, 40, [(11, 10), (12, 29)], 7)
    d[:, which == 0] = 0
    found = find_clusters(d, known=which > 0)
    assert len(set(found[which == 1].tolist())) == len(set(found[which == 2].tolist())) == 1
    assert (found[which > 0] > 0).all()
    assert not found[ndimage.distance_transform_edt(which == 0) > 2].any()


def test_no_short_displacement_no_centre():
    assert not find_clusters(torch.full((2, 6, 6), 9.0)).any()


def test_connected_cells_are_numbered_row_by_row_as_each_cluster_by_itself_would_be():
    rng = np.random.default_rng(3)
    present, cluster = rng.random((30, 40)) < 0.7, rng.integers(0, 4, (30, 40)).astype(np.int32)
    numbers, count = connected_cells(present, cluster)
    slow = np.zeros(present.shape, int)
    for c in range(4):
        parts = ndimage.label(present & (cluster == c), np.ones((3, 3)))[0]
        slow[parts > 0] = parts[parts > 0] + slow.max()
    pairs = set(zip(numbers.ravel().tolist(), slow.ravel().tolist(), strict=True))
    assert len(pairs) == slow.max() + 1 == count + 1
    first = np.unique(numbers, return_index=True)
    assert first[0].tolist() == list(range(count + 1))
    assert (np.diff(first[1][1:]) > 0).all()
