"""Refinement by the guided filter: evidence that follows the tissue, within its range, in um."""

from __future__ import annotations

import pytest
import torch
from support.two_tissues import everywhere, halves, noisy_evidence

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.refine.guided import Params, guided_filter, refine


def test_lengths_are_in_um():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    one = refine(evidence, rgb, known, 4.0, Params(radius_um=12))
    assert torch.equal(one, refine(evidence, rgb, known, 8.0, Params(radius_um=24)))
    assert not torch.equal(one, refine(evidence, rgb, known, 8.0, Params(radius_um=12)))


@pytest.mark.parametrize("grey", [False, True])
def test_it_is_the_guided_filter_held_in_range(grey: bool):
    rgb, purple = halves(20, 24)
    evidence, known = (noisy_evidence(purple) > 0.5).float(), everywhere(20, 24)
    guide = rgb.float() / 255
    q = guided_filter(evidence, guide.mean(0, keepdim=True) if grey else guide, 3, 0.002, known)
    assert q.min() < 0
    assert q.max() > 1
    out = refine(evidence, rgb, known, 4.0, Params(radius_um=12.0, eps=0.002, grey=grey))
    assert torch.equal(out, q.clamp(0, 1))


def test_a_window_is_a_cell_around_at_the_least():
    rgb, purple = halves(20, 24)
    evidence = noisy_evidence(purple)
    small, one = (refine(evidence, rgb, everywhere(20, 24), 8.0, Params(radius_um=r)) for r in (1.0, 8.0))
    assert torch.equal(small, one)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("radius_um", 0.0, r"guided.radius_um: 0\.0 is not above 0"),
        ("eps", 0.0, r"guided.eps: 0\.0 is not above 0"),
    ],
)
def test_bad_parameters_are_told(name: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        Params(**{name: value})
