"""DRS: the truth table of its masks, its parameters and its instance grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsipipe.errors import ConfigError
from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.pseudolabel.methods import drs
from wsipipe.pseudolabel.methods.drs import Params, mask

NAN = float("nan")
PUBLISHED: dict[str, Any] = {"fusion": "max", "weigh": False, "absence": False, "suppress_from": 1}
"""As published, but for `network` and `prevalence`."""


def column(*values: float, background: float = 0.0) -> ScoreMap:
    """One cell with these maps."""
    return ScoreMap(np.array(values, np.float32).reshape(-1, 1, 1), np.full((1, 1), background, np.float32), 8)


@pytest.mark.parametrize(
    ("scores", "painted"),
    [
        (column(1, 1, 1, background=1), 0),  # glass, whatever the maps
        (column(0, 0, 0, background=1), 0),
        (column(0.95, 0, 0, background=1), 0),
        (column(0.19, 0.1, 0, background=0), IGNORE),  # tissue with all maps below alpha
        (column(0, 0, 0, background=0), IGNORE),
        (column(0.21, 0.1, 0, background=0), 1),  # tissue with one map at alpha or above
        (column(0.1, 0.2, 0, background=0), 2),
        (column(0.5, 0.7, 0.6, background=0), 2),  # several: the highest, the first of equals
        (column(0.7, 0.7, 0.1, background=0), 1),
        (column(0.95, 0.93, 0, background=0), 1),  # two that are certain are no conflict
        (column(0.95, 0.93, 0.91, background=0), IGNORE),
        (column(0.96, 0.95, 0.2, background=0.92), IGNORE),  # the background counts too
        (column(0.9, 0.9, 0.9, background=0), 1),  # none exceeds the level
        (column(NAN, NAN, NAN, background=NAN), IGNORE),
    ],
)
def test_the_truth_table_of_a_mask_as_published(scores: ScoreMap, painted: int):
    assert mask(scores, Params(**PUBLISHED)).tolist() == [[painted]]


@pytest.mark.parametrize(
    ("scores", "values", "painted"),
    [
        (column(0.6, background=0.7), {}, 0),  # the background wins
        (column(0.6, background=0.6), {}, 0),
        (column(0.6, background=0.5), {}, 1),
        (column(0.05, background=0.21), {}, 0),
        (column(0.05, background=0.05), {}, IGNORE),
        (column(0.15, background=0.05), {"alpha": 0.1}, 1),
        (column(0.05, background=0.05), {"unexplained": "background"}, 0),
        (column(0.95, 0.95), {"conflict": 1}, IGNORE),  # the natural reading: two classes are a conflict
        (column(0.85, 0.85), {"conflict": 1}, 1),
        (column(0.85, 0.85), {"conflict": 1, "conflict_level": 0.8}, IGNORE),
        (column(NAN, background=NAN), {"unexplained": "background"}, IGNORE),
    ],
)
def test_the_rules_on_tissue(scores: ScoreMap, values: dict[str, Any], painted: int):
    assert mask(scores, Params(**values)).tolist() == [[painted]]


SCORES = arrays(np.float32, (4, 3, 5), elements=st.sampled_from([0, 0.05, 0.15, 0.3, 0.5, 0.92, 0.95, 1])).map(
    lambda a: ScoreMap(a[1:], a[0], 8)
)


@given(SCORES, st.floats(0.01, 0.98), st.floats(0.01, 0.98), st.sampled_from(["ignore", "background"]))
def test_a_higher_alpha_adds_no_class_anywhere(scores: ScoreMap, a: float, b: float, unexplained: str):
    low, high = (mask(scores, Params(alpha=v, unexplained=unexplained)) for v in sorted((a, b)))
    painted = (high > 0) & (high != IGNORE)
    assert (low[painted] == high[painted]).all()


@given(SCORES, st.integers(0, 2))
def test_a_class_without_evidence_is_never_painted(scores: ScoreMap, absent: int):
    scores.values[absent] = 0
    assert not (mask(scores, Params()) == absent + 1).any()


def test_the_instance_grid_scores_cells_and_sees_whole_patches():
    assert drs.instance_grid(256, Params()) == InstanceGrid(16, 256, 2)
    with pytest.raises(ConfigError, match=r"drs.map_size: 16 does not divide a patch of 250 px"):
        drs.instance_grid(250, Params())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("network", ["resnet18"]),
        ("suppression", ["learned"]),
        ("fusion", ["sum"]),
        ("unexplained", ["other"]),
        ("refiner_from", ["scratch"]),
        ("delta", [0.0, 1.1, NAN]),
        ("suppress_from", [0]),
        ("stride", [0]),
        ("conflict", [0]),
        ("refiner_steps", [0]),
        ("refiner_batch", [0]),
        ("refiner_lr", [0.0]),
        ("alpha", [0.0, 1.0, NAN]),
        ("conflict_level", [0.0, 1.1]),
        ("scales", [(), (0.1,), (1.0, 5.0)]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[Any]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"drs\.{field}: "):
            Params(**{field: value})
