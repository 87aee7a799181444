"""The stage: a checkpoint that others take, the same for the same inputs, resumed to the same bits after a stop."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wsipipe.config.options import PretrainConfig, RunConfig
from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.nn.checkpoint import read_checkpoint
from wsipipe.nn.encoders import MEAN, STD, chosen_encoder, create_encoder
from wsipipe.pretrain import stage as module
from wsipipe.pretrain.stage import run as pretrain
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.progress import silent

SMALL = PretrainConfig(encoder="resnet18_quarter", steps=4, batch=8, input_px=16)

Stage = Callable[..., Path]


@pytest.fixture
def stage(slides: dict[str, Path], run: RunConfig) -> Stage:
    """`stage(progress=..., overwrite=..., stores=..., seed=..., **options of PretrainConfig)` -> model.json."""

    def go(progress: Any = silent, overwrite: bool = False, stores: Any = None, seed: int = 0, **options: Any) -> Path:
        paths = [slides[n] for n in stores or ("big", "small")]
        report, made = pretrain(
            paths, replace(SMALL, **options), RunContext(replace(run, seed=seed), progress, overwrite)
        )
        assert report.exit_code == 0
        return made[0]

    return go


def sha(path: Path) -> str:
    return hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()


def test_what_it_writes_is_a_checkpoint_of_an_encoder_that_loads_by_its_own_name(stage: Stage, run: RunConfig) -> None:
    path = stage()
    assert path == Path(run.runs) / "pretrain" / "model.json"
    made = read_checkpoint(path)
    assert (made.network, made.encoder, made.classes) == ("encoder", "resnet18_quarter", ())
    assert (made.mpp, made.patch_px, made.mean, made.std) == (0.5, 64, MEAN, STD)
    assert made.settings["steps_done"] == 4
    for weights in (path, path.parent, path.with_suffix(".safetensors")):
        name, file = chosen_encoder("", str(weights))
        encoder = create_encoder(name, file)
        state = load_file(path.with_suffix(".safetensors"))
        assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    assert not (path.parent / "training.state").exists()


def test_the_checks_are_written_down(stage: Stage) -> None:
    path = stage(steps=6)
    with (path.parent / "checks.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(r["loss"]) > 0 and 0 < float(r["effective_rank"]) <= 4 for r in rows)


def test_a_training_without_progress_stops_before_its_last_step(stage: Stage) -> None:
    path = stage(steps=40, patience=2, lr=1e-12)
    assert int(str(read_checkpoint(path).settings["steps_done"])) < 40


@pytest.mark.parametrize("method", ["vicreg", "byol", "dino"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_training_goes_on_to_the_same_bits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0.0)
    steps: list[int] = []

    def dies(task: str, done: int, total: int, note: str = "") -> None:
        steps.append(done)
        if len(steps) == stop:
            raise KeyboardInterrupt

    whole = stage(name="whole", method=method)
    with pytest.raises(KeyboardInterrupt):
        stage(dies, name="cut", method=method)
    assert not (whole.parents[1] / "cut" / "model.json").exists()
    assert (whole.parents[1] / "cut" / "training.state").exists()
    cut = stage(lambda task, done, total, note="": steps.append(done), name="cut", method=method)
    assert steps == [1, 2, 3, 4], "some step was made twice or left out"
    assert sha(cut) == sha(whole)
    assert (cut.parent / "checks.csv").read_bytes() == (whole.parent / "checks.csv").read_bytes()


def test_the_same_inputs_are_not_trained_twice_and_others_need_another_name(stage: Stage) -> None:
    path = stage()
    stamp = path.stat().st_mtime_ns
    assert stage() == path
    assert path.stat().st_mtime_ns == stamp
    for other in ({"steps": 5}, {"seed": 1}, {"stores": ("big",)}, {"method": "simclr"}):
        with pytest.raises(CheckpointError, match="was made from other inputs; choose another --name"):
            stage(**other)
    before = sha(path)
    assert sha(stage(seed=1, overwrite=True)) != before


def test_the_state_of_another_training_is_not_gone_on_from(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0.0)

    def dies(task: str, done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(dies, name="a", seed=3)
    assert sha(stage(name="a", seed=4)) == sha(stage(name="b", seed=4))


def test_slides_that_the_labels_hold_out_are_not_seen(stage: Stage, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,split\nbig,a,train\nsmall,,test\n")
    held = stage(name="held", labels=str(labels))
    assert sha(held) == sha(stage(name="alone", stores=("big",)))
    assert sha(held) != sha(stage(name="both"))


def test_nothing_to_learn_from_is_said(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 patches to pretrain on; check what the stores hold"):
        stage(stores=("glass",))
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,split\nbig,a,test\nsmall,,test\n")
    with pytest.raises(ConfigError, match="no slide to pretrain on"):
        stage(labels=str(labels))


def test_dino_on_a_cpu_is_warned_of(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage(method="dino", steps=1)
    assert "dino needs many steps and a GPU" in caplog.text


def test_the_callers_random_numbers_are_left_alone(stage: Stage) -> None:
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    stage(steps=2)
    assert torch.equal(torch.rand(3), wanted)
