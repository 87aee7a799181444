"""Refinement by superpixels: one value within each, in um."""

from __future__ import annotations

import pytest
import torch
from support.two_tissues import everywhere, halves, noisy_evidence

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.refine.slic import Params, pool_mean, refine, superpixels


def test_lengths_are_in_um():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    one = refine(evidence, rgb, known, 4.0, Params(side_um=20))
    assert torch.equal(one, refine(evidence, rgb, known, 8.0, Params(side_um=40)))
    assert not torch.equal(one, refine(evidence, rgb, known, 8.0, Params(side_um=20)))


def test_it_is_the_mean_of_every_superpixel():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    known[3:8, :9] = False
    expected = pool_mean(evidence, superpixels(rgb, known, 6.0, 12.0))
    assert torch.equal(refine(evidence, rgb, known, 4.0, Params(side_um=24.0, compactness=12.0)), expected)
    assert not torch.equal(expected, pool_mean(evidence, superpixels(rgb, known, 6.0, 100.0)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("side_um", 0.0, r"slic.side_um: 0\.0 is not above 0"),
        ("compactness", 0.0, r"slic.compactness: 0\.0 is not above 0"),
    ],
)
def test_bad_parameters_are_told(name: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        Params(**{name: value})
