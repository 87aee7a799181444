"""What every method promises: parameters with help, scores in range, known mask values, the same for the same seed."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from support.textures import Cohort

from wsipipe.config.options import fitted_with
from wsipipe.labels import IGNORE, Classes, read_labels
from wsipipe.nn.encoders import create_encoder
from wsipipe.pseudolabel.bags import make_bags
from wsipipe.pseudolabel.features import embed
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, Method, ScoreContext, ScoreMap
from wsipipe.pseudolabel.refinement import RefinementStep, refine_scores
from wsipipe.pseudolabel.registry import load_method, load_refinement, method_names, refinement_names
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=method_names())
def method(request: pytest.FixtureRequest) -> Method:
    return load_method(request.param)


@pytest.fixture(scope="module")
def fit(method: Method, small_cohort: Cohort) -> Fit:
    """A fit of a few steps with its instance grid and parameters."""
    torch.manual_seed(1)
    return fitted(method, small_cohort)


def short(method: Method, **others: Any) -> Any:
    """The default parameters but `others`, with every schedule cut to two steps and one view scored."""
    short = {"steps": 2, "views": 1}
    names = [f.name for f in dataclasses.fields(method.Params)]
    return method.Params(**{n: short[n.split("_")[-1]] for n in names if n.split("_")[-1] in short}, **others)


Fit = tuple[torch.nn.Module, InstanceGrid, Any]


def fitted(method: Method, cohort: Cohort, seed: int = 0, **others: Any) -> Fit:
    params = short(method, **others)
    stores = {k: SlideStore(p) for k, p in cohort.stores.items()}
    instance_grid = method.instance_grid(192, params)
    table = read_labels(cohort.labels())
    bags, _ = make_bags(table, table.rows, stores, instance_grid, 0.5)

    def encoder() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create_encoder("resnet18_quarter")

    compute = ComputeContext(CPU, seed)
    context = FitContext(
        table.classes,
        encoder,
        True,
        compute,
        lambda bags, instance_grid: embed(encoder(), bags, instance_grid, compute),
    )
    model = method.fit(bags, instance_grid, params, context)
    return model, instance_grid, params


@pytest.mark.parametrize("function", ["instance_grid", "build", "fit", "score", "mask"])
def test_a_method_has_the_functions_of_the_protocol_with_their_parameters(method: Method, function: str):
    wanted = list(inspect.signature(getattr(Method, function)).parameters)[1:]
    assert list(inspect.signature(getattr(method, function)).parameters) == wanted


def test_parameters_are_frozen_and_each_says_what_it_is(method: Method):
    assert dataclasses.is_dataclass(method.Params)
    assert method.Params.__dataclass_params__.frozen
    for field in dataclasses.fields(method.Params):
        assert field.metadata.get("help"), field.name
        assert field.default is not dataclasses.MISSING, field.name


def test_parameters_have_the_name_of_their_method_and_a_tissue_gate(method: Method):
    assert method.__name__ == f"wsipipe.pseudolabel.methods.{method.Params.NAME}"
    assert 0 < method.Params().min_tissue <= 1


def test_the_default_parameters_fit_the_default_patch(method: Method):
    instance_grid = method.instance_grid(256, method.Params())
    assert instance_grid.seen_px >= instance_grid.instance_px
    assert 256 % instance_grid.instance_px == 0


def test_a_fit_is_the_same_for_the_same_seed_whatever_was_drawn_before(method: Method, fit: Fit, small_cohort: Cohort):
    torch.manual_seed(2)
    again, *_ = fitted(method, small_cohort)
    a, b = (m.state_dict() for m in (fit[0], again))
    assert all(torch.equal(a[k], b[k]) for k in a)


WORDS: dict[str, Any] = {
    **{"unexplained": "background", "activation": "layercam", "background": "brightness", "other_evidence": "absence"},
    **{"exempt": ("blobs",), "other": ()},
}
"""Other values of the parameters that are words."""


def another(name: str, value: Any) -> Any:
    """A value that a parameter does not have by default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1 if value > 1 else value + 1
    return value / 2 + 0.01 if isinstance(value, float) else WORDS[name]


def test_a_fit_depends_on_no_parameter_that_is_used_afterwards_alone(method: Method, fit: Fit, small_cohort: Cohort):
    params = method.Params()
    said = {f.name for f in dataclasses.fields(params)} - set(fitted_with(params))
    again, *_ = fitted(method, small_cohort, **{n: another(n, getattr(params, n)) for n in said})
    a, b = (m.state_dict() for m in (fit[0], again))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_seed_gives_another_fit(method: Method, fit: Fit, small_cohort: Cohort):
    other, *_ = fitted(method, small_cohort, seed=1)
    assert not all(torch.equal(v, other.state_dict()[k]) for k, v in fit[0].state_dict().items())


def test_scores_are_shares_or_unknown_and_the_same_each_time(method: Method, fit: Fit, small_cohort: Cohort):
    model, instance_grid, params = fit
    store = SlideStore(small_cohort.stores["s0"])
    scores, again = (method.score(model, ScoreContext(store, instance_grid, CPU), params) for _ in range(2))
    assert scores.values.dtype == np.float32
    width, height = store.grid.size_px
    assert scores.values.shape == (1, -(-height // scores.stride_px), -(-width // scores.stride_px))
    known = scores.values[~np.isnan(scores.values)]
    assert known.size
    assert known.min() >= 0
    assert known.max() <= 1
    np.testing.assert_array_equal(scores.values, again.values)


@pytest.mark.parametrize("refine", refinement_names())
def test_any_refinement_follows_and_its_masks_hold_what_is_known(
    method: Method, fit: Fit, small_cohort: Cohort, refine: str
):
    model, instance_grid, params = fit
    store = SlideStore(small_cohort.stores["s0"])
    scores = method.score(model, ScoreContext(store, instance_grid, CPU), params)
    module = load_refinement(refine)
    assert module is not None
    sharp = refine_scores(scores, store, RefinementStep(refine, module, module.Params(), 4), CPU)
    assert sharp.stride_px == 4
    factor = scores.stride_px // sharp.stride_px
    np.testing.assert_array_equal(sharp.known, scores.known.repeat(factor, 0).repeat(factor, 1))
    mask = method.mask(sharp, params)
    assert mask.shape == sharp.background.shape
    assert set(np.unique(mask)) <= {0, 1, IGNORE}
    assert (mask[~sharp.known] == IGNORE).all()


def test_the_weights_of_a_fit_load_into_a_fresh_network(method: Method, fit: Fit, small_cohort: Cohort):
    model, instance_grid, params = fit
    fresh = method.build(Classes(("blobs",)), create_encoder("resnet18_quarter"), instance_grid, params)
    fresh.load_state_dict(model.state_dict())
    store = SlideStore(small_cohort.stores["s1"])
    a, b = (method.score(m, ScoreContext(store, instance_grid, CPU), params) for m in (model, fresh.eval()))
    np.testing.assert_array_equal(a.values, b.values)


def test_masks_hold_classes_background_or_ignore_and_no_class_where_its_score_is_zero(method: Method):
    values = np.random.default_rng(0).random((3, 20, 30), np.float32)
    values[1] = 0
    values[:, :5] = np.nan
    values[:, 5:7] = 0
    mask = method.mask(ScoreMap.of_probabilities(values, 16), short(method))
    assert mask.dtype == np.uint8
    assert mask.shape == (20, 30)
    assert set(np.unique(mask)) <= {0, 1, 3, IGNORE}
    assert not np.isin(mask[:5], (1, 2, 3)).any(), "nothing was scored there"
    assert (mask[5:7] == 0).all(), "no class is there"
