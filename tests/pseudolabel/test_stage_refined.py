"""The stage refines scores as asked: the mask comes from refined scores, without the classes that labels exclude."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.labelled import STRIDE, Csv, Stage, Stores, mask_of, scores_of, tissue_of
from support.textures import tiled_pictures, tissue
from torch import Tensor

from wsipipe.config.options import PseudolabelConfig, option
from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel import options as module
from wsipipe.pseudolabel.method import ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import camel
from wsipipe.pseudolabel.options import resolve_refinement
from wsipipe.pseudolabel.registry import NONE, load_method, method_names, refinement_names
from wsipipe.store import SlideStore

ODD = (203, 133)
"""Width and height in px of a slide that neither cells of scores nor those of a refinement divide."""


@dataclass(frozen=True)
class Params:
    """Parameters of a refinement that has its own will."""

    share: float = option(0.0, "evidence that every class gets")


@pytest.fixture
def wilful(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A refinement that gives all classes `share` everywhere, whatever the evidence; the evidence that it was given."""
    given: list[Tensor] = []

    def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
        given.append(evidence)
        out = torch.full_like(evidence, params.share)
        out[0] = 0.5
        return out

    monkeypatch.setattr(module, "load_refinement", lambda name: SimpleNamespace(Params=Params, refine=refine))
    return given


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that finds nothing anywhere."""

    def score(model: object, context: ScoreContext, params: object) -> ScoreMap:
        values = np.zeros((2, *context.store.grid.cells(STRIDE)), np.float32)
        return ScoreMap(values, np.full(values.shape[1:], 0.5, np.float32), STRIDE)

    monkeypatch.setattr(camel, "score", score)


@pytest.mark.usefixtures("nothing")
def test_the_mask_is_made_of_refined_scores_within_what_labels_allow(
    stores: Stores, csv: Csv, stage: Stage, wilful: list[Tensor]
):
    stage(stores, csv(), refine="slic", sections={"slic": {"share": 0.9}})
    painted = {k: set(np.unique(mask_of(p)[tissue_of(p)])) for k, p in stores.items()}
    assert painted == {"blob": {1}, "line": {2}, "both": {1}, "none": {0}, "held": {1}, "free": {1}}
    assert all(not scores_of(p).any() for p in stores.values()), "the scores stay those of the method"
    assert wilful


@pytest.mark.usefixtures("nothing", "wilful")
def test_the_parameters_of_a_refinement_are_those_of_its_section(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv(), refine="slic", sections={"slic": {"share": 0.1}})
    assert all(set(np.unique(mask_of(p)[tissue_of(p)])) == {0} for p in stores.values())


@pytest.mark.parametrize("method", method_names())
def test_a_method_is_followed_by_its_own_refinement_unless_another_is_asked_for(method: str):
    own = resolve_refinement(PseudolabelConfig(method=method), load_method(method), {})
    assert (own.name if own else NONE) == load_method(method).REFINEMENT
    assert resolve_refinement(PseudolabelConfig(method=method, refine=NONE), load_method(method), {}) is None
    for name in refinement_names():
        config = PseudolabelConfig(method=method, refine=name, refine_stride_px=4)
        step = resolve_refinement(config, load_method(method), {})
        assert step is not None
        assert (step.name, step.stride_px, step.params) == (name, 4, step.module.Params())


def test_published_refinements():
    assert {m: load_method(m).REFINEMENT for m in method_names() if load_method(m).REFINEMENT != NONE} == {
        "histosegnet": "crf"
    }


def test_wrong_parameters_of_a_refinement_are_named_by_their_section():
    with pytest.raises(ConfigError, match=r"pseudolabel\.crf"):
        resolve_refinement(PseudolabelConfig(refine="crf"), load_method("camel"), {"crf": {"nonsense": 1}})


@pytest.mark.usefixtures("nothing", "wilful")
def test_slides_that_cells_do_not_divide_are_refined_to_their_last_pixel(tmp_path: Path, csv: Csv, stage: Stage):
    stores = tiled_pictures(tmp_path / "odd", {n: tissue(ODD, i) for i, n in enumerate(("blob", "none"))}, patch_px=64)
    rows = csv("blob,a;b,", "none,,")
    stage(stores, rows, refine="slic", sections={"slic": {"share": 0.9}})
    masks = {n: SlideStore(p).labels("camel").read(Window(0, 0, *ODD)) for n, p in stores.items()}
    assert {n: set(np.unique(m)) for n, m in masks.items()} == {"blob": {1}, "none": {0}}
