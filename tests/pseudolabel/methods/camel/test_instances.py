"""Instance data sets: what is known of each instance, which pixels it has, and how many there may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.textures import tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods.camel.instances import confident_targets, instance_set, targets_from_picks
from wsipipe.pseudolabel.methods.camel.selectors import Pick
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

NAN = float("nan")
COMPUTE = ComputeContext(torch.device("cpu"))


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 256 x 64 px of tissue."""
    paths = tiled_pictures(tmp_path_factory.mktemp("strip"), {"strip": tissue((256, 64))}, patch_px=64)
    return SlideStore(paths["strip"])


GRID = InstanceGrid(16, 16, 1)


def patch_bag(store: SlideStore, column: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(column * 64 + k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    return Bag(f"p{column}", store, xy, label, True, Window(column * 64, 0, 64, 64))


def made_set(
    bags: list[Bag], chosen: list[tuple[int, int, int, int]], limit: int = 100
) -> tuple[NDArray[np.uint8], list[list[float]]]:
    crops, targets = instance_set(bags, GRID, targets_from_picks([Pick(*c) for c in chosen], bags), limit, 0)
    return crops, targets.tolist()


def test_targets_are_known_where_selected_and_where_the_bag_lacks_a_class(strip: SlideStore):
    bags = [patch_bag(strip, 0, (1, 0, 1)), patch_bag(strip, 1, (0, 0, 0))]
    chosen = [(0, 5, 0, 1), (0, 9, 2, 1), (0, 5, 2, 1), (1, 3, 1, 0)]
    _, targets = made_set(bags, chosen)
    np.testing.assert_array_equal(targets, [[1, 0, 1], [NAN, 0, 1], [0, 0, 0]])


def test_an_instance_picked_twice_is_in_the_set_once_with_its_own_pixels(strip: SlideStore):
    bags = [patch_bag(strip, 2, (1,))]
    crops, targets = made_set(bags, [(0, 6, 0, 1), (0, 1, 0, 1), (0, 6, 0, 1)])
    assert targets == [[1], [1]]
    np.testing.assert_array_equal(crops[0].transpose(1, 2, 0), strip.read(Window(128 + 16, 0, 16, 16)))
    np.testing.assert_array_equal(crops[1].transpose(1, 2, 0), strip.read(Window(128 + 32, 16, 16, 16)))


def test_a_full_instance_set_keeps_positives_before_negatives(strip: SlideStore):
    bags = [patch_bag(strip, c, (int(c == 0),)) for c in range(4)]
    chosen = [(0, i, 0, 1) for i in range(6)] + [(c, i, 0, 0) for c in (1, 2, 3) for i in range(16)]
    _, targets = made_set(bags, chosen, limit=20)
    assert len(targets) == 20
    assert sum(t == [1] for t in targets) == 6


def test_a_full_instance_set_keeps_to_its_limit_even_where_positives_fill_it(strip: SlideStore):
    bags = [patch_bag(strip, c, (int(c < 2),)) for c in range(4)]
    chosen = [(c, i, 0, int(c < 2)) for c in range(4) for i in range(16)]
    crops, targets = made_set(bags, chosen, limit=20)
    assert len(crops) == len(targets) <= 20
    assert {t[0] for t in targets} == {0, 1}


def test_an_empty_set_says_what_to_do(strip: SlideStore):
    with pytest.raises(ConfigError, match="the selectors agree with no label"):
        made_set([patch_bag(strip, 0, (1,))], [])


@given(
    st.lists(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(0, 15),
    st.sampled_from([0.6, 0.9]),
)
def test_confident_predictions_count_as_far_as_the_label_allows(rows: list[list[float]], bits: int, confident: float):
    logits = [torch.tensor(r).view(-1, 1) for r in rows]
    labels = torch.tensor([[bits >> b & 1] for b in range(len(rows))])
    for row, label, got in zip(rows, labels, confident_targets(logits, labels, confident), strict=True):
        for z, answer in zip(row, got[:, 0].tolist(), strict=True):
            p = 1 / (1 + np.exp(-z))
            if min(abs(p - confident), abs(p - 1 + confident)) < 1e-6:
                continue  # float32 may say otherwise
            if label[0] and p > confident:
                assert answer == 1
            elif not label[0] or p < 1 - confident:
                assert answer == 0
            else:
                assert np.isnan(answer)


def test_of_a_class_that_a_bag_may_hold_both_confident_predictions_count():
    logits = torch.tensor([[9.0, 9], [-9, -9], [0, 0]])
    (got,) = confident_targets([logits], torch.tensor([[NAN, 0]]), 0.9)
    np.testing.assert_array_equal(got, [[1, 0], [0, 0], [NAN, 0]])
