"""Checkpoints: what is saved comes back, and anything else is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from wsipipe.errors import CheckpointError
from wsipipe.nn.checkpoint import SCHEMA, Checkpoint, load_weights_of, read_checkpoint

CHECKPOINT = Checkpoint(
    network="unet",
    encoder="resnet18_half",
    classes=("stroma", "tumour"),
    mpp=0.5,
    patch_px=256,
    digest="abc",
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    settings={"window_px": 128, "list": [1, 2]},
)


def network(width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    CHECKPOINT.save(tmp_path / "run", network())
    return tmp_path / "run"


@pytest.mark.parametrize("given", ["", "model.json", "model.safetensors"])
def test_a_checkpoint_comes_back_from_its_folder_or_either_file(folder: Path, given: str) -> None:
    path = folder / given
    assert read_checkpoint(path) == CHECKPOINT
    model = network(seed=1)
    load_weights_of(path, model)
    for key, value in network().state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_saving_returns_the_json_and_leaves_nothing_beside_the_two_files(folder: Path) -> None:
    assert CHECKPOINT.save(folder, network()) == folder / "model.json"
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_checkpoint_may_have_a_name_of_its_own(folder: Path) -> None:
    path = CHECKPOINT.save(folder, network(seed=2), name="last")
    assert read_checkpoint(path) == CHECKPOINT
    model = network(seed=1)
    load_weights_of(path, model)
    assert torch.equal(model[0].weight, network(seed=2)[0].weight)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_buffers_are_saved_too(folder: Path) -> None:
    model = network()
    model[1].running_mean.fill_(3)
    CHECKPOINT.save(folder, model)
    seeded_init = network()
    load_weights_of(folder, seeded_init)
    assert seeded_init[1].running_mean.tolist() == [3] * 4


@pytest.mark.parametrize("change", [{"kind": "fit"}, {"schema": SCHEMA + 1}, {"kind": None}, {"surprise": 1}])
def test_json_of_another_kind_or_schema_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"model\.json: not a checkpoint of this version of wsipipe"):
        read_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "checkpoint"}'])
def test_json_that_is_no_checkpoint_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version of wsipipe"):
        read_checkpoint(folder)


def test_a_missing_checkpoint_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json: no checkpoint here; train one with: wsipipe segment"):
        read_checkpoint(tmp_path)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights are missing beside their JSON"):
        load_weights_of(folder, network())


@pytest.mark.parametrize("keep", [0, 5, 40, -8])
def test_truncated_weights_are_called_damaged(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_weights_of(folder, network())


def test_weights_of_another_network_do_not_fit(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights do not fit \("):
        load_weights_of(folder, network(8))
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        load_weights_of(folder, nn.Linear(2, 2))


def test_a_save_that_is_cut_off_leaves_the_old_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("wsipipe.nn.checkpoint.save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        CHECKPOINT.save(folder, network(seed=5))
    model = network(seed=1)
    load_weights_of(folder, model)
    assert torch.equal(model[0].weight, network()[0].weight)
