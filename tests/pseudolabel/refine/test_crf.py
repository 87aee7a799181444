"""Refinement by the dense CRF: the mean field of the evidence there is, in um."""

from __future__ import annotations

import pytest
import torch
from support.two_tissues import everywhere, halves, noisy_evidence

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.refine.crf import Params, refine
from wsipipe.pseudolabel.shared.crf import Kernels, mean_field, unary_of_map


def test_lengths_are_in_um():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    one = refine(evidence, rgb, known, 4.0, Params(gauss_um=8, bilateral_um=16))
    assert torch.equal(one, refine(evidence, rgb, known, 8.0, Params(gauss_um=16, bilateral_um=32)))
    assert not torch.equal(one, refine(evidence, rgb, known, 8.0, Params(gauss_um=8, bilateral_um=16)))


def test_it_is_the_mean_field_of_the_channels_with_evidence():
    rgb, purple = halves(20, 24)
    evidence, known = noisy_evidence(purple), everywhere(20, 24)
    known[3:8, :9] = False
    params = Params(6.0, 2.0, 12.0, 15.0, 7.0, 4)
    kernels = Kernels(6.0 / 4, 2.0, 12.0 / 4, 15.0, 7.0)
    q = mean_field(unary_of_map(evidence[:2]), rgb, kernels, 4, known)
    out = refine(evidence, rgb, known, 4.0, params)
    assert torch.equal(out[:2, known], q[:, known])


def test_a_class_seen_in_unknown_cells_alone_is_no_label():
    rgb, purple = halves(20, 24)
    evidence, known = noisy_evidence(purple), everywhere(20, 24)
    known[3:8, :9] = False
    evidence[2, ~known] = 0.9
    out = refine(evidence, rgb, known, 4.0, Params())
    assert not out[2, known].any()
    assert (out[2, ~known] == 0.9).all()


def test_a_single_channel_with_evidence_is_certain():
    rgb, purple = halves(12, 14)
    evidence = noisy_evidence(purple) * torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    assert torch.equal(refine(evidence, rgb, everywhere(12, 14), 4.0, Params())[1], torch.ones(12, 14))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gauss_um", 0.0, r"crf.gauss_um: 0\.0 is not above 0"),
        ("bilateral_um", -1.0, r"crf.bilateral_um: -1\.0 is not above 0"),
        ("bilateral_rgb", 0.0, r"crf.bilateral_rgb: 0\.0 is not above 0"),
        ("gauss_weight", -1.0, r"crf.gauss_weight: -1\.0 is below 0"),
        ("bilateral_weight", -1.0, r"crf.bilateral_weight: -1\.0 is below 0"),
        ("iterations", -1, "crf.iterations: -1 is below 0"),
    ],
)
def test_bad_parameters_are_told(name: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        Params(**{name: value})
