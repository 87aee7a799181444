"""The encoder of a fit: pretrained once for all, given as weights, or computed once into features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import (
    STRIDE,
    Csv,
    Stage,
    Stores,
    statuses,
)

from wsipipe.config.options import PretrainConfig, PseudolabelConfig, RunConfig
from wsipipe.errors import CheckpointError, ConfigError, StoreError
from wsipipe.geometry import Window
from wsipipe.nn.checkpoint import Checkpoint, read_checkpoint, save_weights
from wsipipe.nn.encoders import Statistics, create_encoder
from wsipipe.pretrain.stage import run as pretrain
from wsipipe.pseudolabel.method import FitContext
from wsipipe.pseudolabel.methods import camel
from wsipipe.pseudolabel.stage import PseudolabelOptions
from wsipipe.pseudolabel.stage import run as pseudolabel
from wsipipe.runtime.context import RunContext
from wsipipe.store import SlideStore

FEW = PretrainConfig(steps=2, batch=8)


def pretrained(run: RunConfig) -> list[Path]:
    """The checkpoints of encoders that fits pretrained."""
    return sorted(Path(run.runs).glob("pretrain-*/model.json"))


def test_what_a_method_refuses_is_found_before_an_encoder_is_pretrained(stores: Stores, csv: Csv, run: RunConfig):
    def progress(what: str, *rest: object) -> None:
        pytest.fail(f"{what} began")

    config = PseudolabelConfig(labels=str(csv()), method="camel,histosegnet", encoder="resnet18_quarter")
    with pytest.raises(ConfigError, match=r"histosegnet\.exempt: fat is no class; there are a, b"):
        pseudolabel(
            list(stores.values()),
            PseudolabelOptions(config, {"histosegnet": {"map_size": 8, "exempt": ["fat"]}}),
            RunContext(run, progress),
        )


def test_a_pretrained_encoder_is_shared_by_fits_and_not_made_again_after_a_stop(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    real = camel.fit

    def broken(bags: object, instance_grid: object, params: object, given: FitContext) -> None:
        given.encoder()
        raise KeyboardInterrupt

    monkeypatch.setattr(camel, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
        stage(stores, csv(), pretrain=True, pretraining=FEW)
    (path,) = pretrained(run)
    made = read_checkpoint(path)
    assert (made.encoder, made.settings["steps_done"], made.settings["input_px"]) == ("resnet18_quarter", 2, STRIDE)
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr(camel, "fit", real)
    assert stage(stores, csv(), pretrain=True, pretraining=FEW)[0].exit_code == 0
    assert stage(stores, csv(), pretrain=True, pretraining=FEW, name="again")[0].exit_code == 0
    assert pretrained(run) == [path]
    assert path.stat().st_mtime_ns == stamp


def test_a_fit_that_asks_for_no_encoder_pretrains_none(stores: Stores, csv: Csv, run: RunConfig):
    small = {"network": "x1.7", "width": 2, "map_size": 8, "steps": 2, "batch": 4, "windows": 6}
    options = PseudolabelConfig(labels=str(csv()), method="histosegnet", refine="none", encoder="resnet18_quarter")
    report, _ = pseudolabel(
        list(stores.values()), PseudolabelOptions(options, {"histosegnet": small}, FEW), RunContext(run)
    )
    assert report.exit_code == 0
    assert pretrained(run) == []


def test_pretraining_leaves_no_trace_in_what_is_made_after_it(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    drawn = []

    def drawing(bags: object, instance_grid: object, params: object, given: FitContext) -> None:
        torch.manual_seed(1)
        given.encoder()
        drawn.append(torch.rand(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(camel, "fit", drawing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stage(stores, csv(), pretrain=True, pretraining=FEW)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


def test_how_the_encoder_is_pretrained_belongs_to_the_key_of_the_fit(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv(), pretrain=True, pretraining=FEW)
    with pytest.raises(StoreError, match="was made from other inputs"):
        stage(stores, csv(), pretrain=True, pretraining=replace(FEW, method="simclr"))
    stage(stores, csv(), pretrain=False, name="scratch", pretraining=FEW)
    other = stage(stores, csv(), pretrain=False, name="scratch", pretraining=replace(FEW, steps=1))
    assert set(statuses(other[0]).values()) == {"skipped"}


def test_pretraining_sees_no_slide_that_is_held_out(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    from wsipipe.pseudolabel import fit as module

    real = module.encoder_of
    monkeypatch.setattr(module, "encoder_of", lambda s, *a: (seen.extend(x.slide_id for x in s), real(s, *a))[1])
    stage(stores, csv(), pretrain=True, pretraining=FEW)
    assert sorted(seen) == ["blob", "both", "free", "line", "none"]


def test_a_second_fit_with_the_same_encoder_reads_all_features_from_the_stores(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    from wsipipe.pseudolabel import features as module

    real, crops = module.apply_in_batches, []
    monkeypatch.setattr(
        module, "apply_in_batches", lambda model, x, *a, **k: (crops.append(len(x)), real(model, x, *a, **k))[1]
    )
    beside = module.apply_to_bags
    monkeypatch.setattr(
        module,
        "apply_to_bags",
        lambda model, bags, *a: (crops.extend(len(b.xy_px) for b in bags), beside(model, bags, *a))[1],
    )
    stage(stores, csv())
    assert sum(crops) > 0
    (features,) = {p.name for s in stores.values() for p in (s / "features").glob("[!z]*")}
    assert features.startswith("resnet18_quarter-")
    crops.clear()
    stage(stores, csv(), self_train=True, name="second")
    assert crops == []


def test_an_encoder_that_was_pretrained_by_itself_is_taken_by_its_own_name(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    config = replace(FEW, encoder="resnet18_quarter", input_px=STRIDE, shrink=1, name="mine")
    _, (path,) = pretrain(list(stores.values()), config, RunContext(run))
    assert stage(stores, csv(), encoder="", weights=str(path), pretrain=True)[0].exit_code == 0
    assert read_checkpoint(Path(run.runs) / "camel" / "model.json").encoder == "resnet18_quarter"
    assert pretrained(run) == []
    with pytest.raises(
        CheckpointError, match="weights of encoder 'resnet18_quarter', but --encoder is 'resnet18_half'"
    ):
        stage(stores, csv(), encoder="resnet18_half", weights=str(path), name="other")


def test_what_the_weights_expect_of_colours_is_kept_with_the_fit(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, tmp_path: Path
):
    """The fit is scored again from its checkpoint alone, with the same answer."""
    own = Statistics((0.7, 0.6, 0.7), (0.1, 0.2, 0.3))
    torch.manual_seed(0)
    encoder = create_encoder("resnet18_quarter")
    weights = Checkpoint("encoder", "resnet18_quarter", (), 0.5, 64, "d", own.mean, own.std, {}).save(tmp_path, encoder)
    stage(stores, csv(), weights=str(weights))
    note = read_checkpoint(Path(run.runs) / "camel" / "model.json")
    assert (note.mean, note.std) == (own.mean, own.std)
    store = SlideStore(stores["blob"])
    whole = Window(0, 0, *reversed(store.scores("camel").spec.shape[1:]))
    first = store.scores("camel").read(whole)
    shutil.rmtree(store.path / "scores" / "camel")
    stage(stores, csv(), weights=str(weights))
    np.testing.assert_array_equal(SlideStore(stores["blob"]).scores("camel").read(whole), first)


def test_given_weights_start_the_encoder_and_belong_to_the_key_of_the_fit(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, tmp_path: Path
):
    weights = tmp_path / "encoder.safetensors"
    torch.manual_seed(0)
    save_weights(weights, create_encoder("resnet18_quarter"))
    stage(stores, csv(), weights=str(weights), pretrain=True)
    assert pretrained(run) == []
    assert statuses(stage(stores, csv(), weights=str(weights), pretrain=True)[0])["blob"] == "skipped"
    torch.manual_seed(1)
    save_weights(weights, create_encoder("resnet18_quarter"))
    with pytest.raises(StoreError, match="was made from other inputs"):
        stage(stores, csv(), weights=str(weights), pretrain=True)


def test_weights_that_do_not_fit_or_are_missing_are_named(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    save_weights(tmp_path / "wide.safetensors", create_encoder("resnet18_half"))
    with pytest.raises(CheckpointError, match=r"wide\.safetensors: does not fit this encoder .* check --encoder"):
        stage(stores, csv(), weights=str(tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such weights file"):
        stage(stores, csv(), weights=str(tmp_path / "gone.safetensors"))
