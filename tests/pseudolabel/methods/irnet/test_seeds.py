"""Seeds: the truth table, thresholds cell by cell, and the CRF among the classes of a window."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.methods.irnet.seeds import published_seeds, seed_rule, tissue_seeds


@pytest.mark.parametrize(("fg", "bg", "seed"), [(3, 3, 3), (0, 0, 0), (0, 3, IGNORE), (3, 0, 3)])
def test_the_strict_answer_holds_and_background_needs_both(fg: int, bg: int, seed: int):
    assert seed_rule(torch.tensor([fg]), torch.tensor([bg])).tolist() == [seed]


@given(st.integers(0, 999))
def test_a_cell_is_glass_its_highest_class_other_tissue_or_unknown(seed: int):
    g = torch.Generator().manual_seed(seed)
    maps, tissue = torch.rand(2, 3, 4, 5, generator=g) ** 2, torch.rand(2, 4, 5, generator=g) < 0.7
    got = tissue_seeds(maps, tissue, 0.5, 0.2)
    assert got.dtype == torch.uint8
    for b, y, x in itertools.product(range(2), range(4), range(5)):
        values = maps[b, :, y, x].tolist()
        expected = IGNORE
        if not tissue[b, y, x]:
            expected = 0
        elif max(values) >= 0.5:
            expected = values.index(max(values)) + 1
        elif max(values) < 0.2:
            expected = 4
        assert int(got[b, y, x]) == expected


def test_published_seeds_are_classes_background_and_unknown_between_the_thresholds():
    maps = torch.zeros(2, 12, 36)
    maps[1, :, :12], maps[1, :, 12:24] = 0.9, 0.15
    rgb = torch.full((3, 12, 36), 60, dtype=torch.uint8)
    rgb[:, :, 12:24], rgb[:, :, 24:] = 150, 240
    seeds = published_seeds(maps, rgb, 0.3, 0.05)
    assert seeds.dtype == torch.uint8
    assert (seeds[:, :12] == 2).all()
    assert (seeds[:, 12:24] == IGNORE).all()
    assert (seeds[:, 24:] == 0).all()


def test_the_crf_takes_out_a_speck_that_the_image_does_not_show():
    maps = torch.full((1, 16, 16), 0.9)
    maps[0, 8, 8] = 0.0
    rgb = torch.full((3, 16, 16), 120, dtype=torch.uint8)
    assert (published_seeds(maps, rgb, 0.3, 0.05) == 1).all()


def test_without_any_class_all_is_background():
    assert (published_seeds(torch.zeros(2, 5, 6), torch.zeros(3, 5, 6, dtype=torch.uint8), 0.3, 0.05) == 0).all()
