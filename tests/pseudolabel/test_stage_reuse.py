"""The pseudolabel stage fits once for all that a fit serves: other names, refinements, and what is used afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.labelled import BRIEF, Csv, Stage, Stores, mask_of, scores_of, statuses, tissue_of

from wsipipe.config.options import RunConfig
from wsipipe.errors import StoreError
from wsipipe.labels import IGNORE
from wsipipe.pseudolabel import fit as module
from wsipipe.pseudolabel.methods import camel


def test_a_fit_of_the_same_inputs_serves_another_name(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    stage(stores, csv())
    monkeypatch.setattr(camel, "fit", lambda *a: pytest.fail("fitted twice"))
    stage(stores, csv(), name="second", refine="none")
    np.testing.assert_array_equal(mask_of(stores["free"], "second"), mask_of(stores["free"]))
    first, second = ((Path(run.runs) / n / "model.safetensors").read_bytes() for n in ("camel", "second"))
    assert first == second


def test_what_is_used_after_the_fit_alone_is_changed_without_fitting_again(
    stores: Stores, csv: Csv, quick: Stage, run: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    quick(stores, csv(), BRIEF | {"uncertain": 0.0})
    weights = (Path(run.runs) / "camel" / "model.safetensors").read_bytes()
    sure = scores_of(stores["free"])
    monkeypatch.setattr(camel, "fit", lambda *a: pytest.fail("fitted twice"))
    with pytest.raises(StoreError, match="--overwrite"):
        quick(stores, csv(), BRIEF | {"uncertain": 0.4})
    report, _ = quick(stores, csv(), BRIEF | {"uncertain": 0.4}, overwrite=True)
    assert statuses(report) == dict.fromkeys(stores, "done")
    assert (Path(run.runs) / "camel" / "model.safetensors").read_bytes() == weights
    np.testing.assert_array_equal(scores_of(stores["free"]), sure)
    assert (mask_of(stores["free"])[tissue_of(stores["free"])] == IGNORE).any()


def test_a_fit_of_an_older_cache_version_counts_as_made_from_other_inputs(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    stage(stores, csv())
    monkeypatch.setattr(module, "CACHE_VERSION", module.CACHE_VERSION + 1)
    with pytest.raises(StoreError, match="was made from other inputs"):
        stage(stores, csv())
    report, _ = stage(stores, csv(), overwrite=True)
    assert statuses(report) == dict.fromkeys(stores, "done")
