"""What every refinement promises: closer borders, nothing from nothing, and what is not known left alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.two_tissues import everywhere, halves, noisy_evidence, wrong

from wsipipe.pseudolabel.refinement import Refinement
from wsipipe.pseudolabel.registry import load_refinement, refinement_names

AT_MOST = {"crf": 0.6, "guided": 0.6, "slic": 0.9}
"""Fraction of the wrong cells of the evidence that may still be wrong."""


@pytest.fixture(params=refinement_names())
def refinement(request: pytest.FixtureRequest) -> Refinement:
    return load_refinement(request.param)


def test_parameters_are_frozen_and_each_says_what_it_is(refinement: Refinement):
    assert refinement.Params.__dataclass_params__.frozen
    for field in dataclasses.fields(refinement.Params):
        assert field.metadata.get("help"), field.name
        assert field.default is not dataclasses.MISSING, field.name


def test_parameters_have_the_name_of_their_refinement(refinement: Refinement):
    assert refinement.__name__ == f"wsipipe.pseudolabel.refine.{refinement.Params.NAME}"


def test_evidence_comes_closer_to_the_borders_of_the_tissue(refinement: Refinement):
    rgb, purple = halves(60, 72)
    evidence = noisy_evidence(purple)
    out = refinement.refine(evidence, rgb, everywhere(60, 72), 4.0, refinement.Params())
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert wrong(out, purple) < AT_MOST.get(refinement.__name__.rpartition(".")[2], 1) * wrong(evidence, purple)


def test_a_class_without_evidence_stays_without(refinement: Refinement):
    rgb, purple = halves(30, 36)
    out = refinement.refine(noisy_evidence(purple), rgb, everywhere(30, 36), 4.0, refinement.Params())
    assert not out[2].any()
    assert out[:2].any()


def test_what_is_not_known_comes_back_as_it_was_and_has_no_influence(refinement: Refinement):
    rgb, purple = halves(30, 36)
    known = everywhere(30, 36)
    known[5:20, 10:25] = False
    evidence = noisy_evidence(purple)
    out = refinement.refine(evidence, rgb, known, 4.0, refinement.Params())
    assert torch.equal(out[:, ~known], evidence[:, ~known])
    for fill in (1.0, float("nan")):
        other, colours = evidence.clone(), rgb.clone()
        other[:, ~known], colours[:, ~known] = fill, 0
        again = refinement.refine(other, colours, known, 4.0, refinement.Params())
        torch.testing.assert_close(again[:, known], out[:, known], atol=1e-6, rtol=0)
        assert torch.equal(again[:, ~known].nan_to_num(), other[:, ~known].nan_to_num())


def test_where_nothing_is_known_nothing_changes(refinement: Refinement):
    rgb, purple = halves(12, 14)
    evidence = noisy_evidence(purple)
    assert torch.equal(refinement.refine(evidence, rgb, ~everywhere(12, 14), 4.0, refinement.Params()), evidence)


def test_what_was_given_is_not_written_to(refinement: Refinement):
    rgb, purple = halves(20, 24)
    evidence = noisy_evidence(purple)
    before = evidence.clone(), rgb.clone()
    refinement.refine(evidence, rgb, everywhere(20, 24), 4.0, refinement.Params())
    assert torch.equal(evidence, before[0])
    assert torch.equal(rgb, before[1])
