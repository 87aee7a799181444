"""Encoders by name: known names are built, unknown ones answered with neighbours, weights fit wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.nn.checkpoint import save_weights
from wsipipe.nn.encoders import MEAN, STD, check_encoder, create_encoder, load_weights, normalise


def scrambled(name: str, seed: int = 7) -> nn.Module:
    """An encoder whose every weight and buffer differs from a fresh one."""
    encoder = create_encoder(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for value in encoder.state_dict().values():
            value.copy_(torch.rand(value.shape) * 3 if value.is_floating_point() else torch.tensor(3))
    return encoder


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18_quarter", 128), ("resnet18_half", 256), ("resnet10t", 512), ("resnet10t.c3_in1k", 512)],
)
def test_a_known_encoder_gives_one_feature_vector_an_image(name: str, width: int):
    encoder = create_encoder(name).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.parametrize(("name", "millions"), [("resnet18_half", 2.8), ("resnet18_quarter", 0.7)])
def test_the_narrow_encoders_have_the_size_that_they_claim(name: str, millions: float):
    assert sum(p.numel() for p in create_encoder(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_narrow_encoders_are_timm_models_like_any_other():
    assert timm.is_model("resnet18_half")
    assert timm.is_model("resnet18_quarter")
    features = timm.create_model("resnet18_quarter", features_only=True)
    assert [c["num_chs"] for c in features.feature_info] == [16, 16, 32, 64, 128]


def test_the_seed_decides_the_weights_from_scratch():
    states = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(create_encoder("resnet18_quarter").state_dict()["conv1.0.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("wrong", "right"), [("resnet18_hlf", "resnet18_half"), ("resnt50", "resnet50")])
def test_an_unknown_encoder_is_answered_with_the_nearest_names(wrong: str, right: str):
    with pytest.raises(ConfigError, match=f"encoder '{wrong}' is not known to timm; similar: .*{right}"):
        check_encoder(wrong)


def test_an_encoder_like_no_other_is_an_error_too():
    with pytest.raises(ConfigError, match="similar: none"):
        create_encoder("§§§§§§§§")


def test_an_encoder_of_the_hub_is_not_looked_up_among_timms_own():
    check_encoder("hf-hub:some/encoder")


def test_an_encoder_that_cannot_be_fetched_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\n to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"hf-hub:some/encoder: cannot be fetched \(no route to the hub\)"):
        create_encoder("hf-hub:some/encoder")


def test_weights_survive_the_round_trip_through_a_file(tmp_path: Path):
    saved = scrambled("resnet18_quarter")
    save_weights(tmp_path / "deep" / "encoder.safetensors", saved)
    loaded = create_encoder("resnet18_quarter", tmp_path / "deep" / "encoder.safetensors")
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["encoder.safetensors"]


def test_a_classification_head_in_the_file_is_left_out(tmp_path: Path):
    whole = timm.create_model("resnet18_quarter", num_classes=5)
    save_weights(tmp_path / "whole.safetensors", whole)
    encoder = create_encoder("resnet18_quarter", tmp_path / "whole.safetensors")
    assert torch.equal(encoder.state_dict()["conv1.0.weight"], whole.state_dict()["conv1.0.weight"])
    assert not [k for k in encoder.state_dict() if k.startswith("fc")]


def test_weights_of_another_width_are_refused_with_their_number(tmp_path: Path):
    save_weights(tmp_path / "w.safetensors", create_encoder("resnet18_half"))
    encoder = create_encoder("resnet18_quarter")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"w\.safetensors: does not fit this encoder \(0 weights missing, \d+ of another shape, first: conv1\.0",
    ):
        load_weights(encoder, tmp_path / "w.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_weights_with_a_hole_are_refused_with_the_name_of_the_hole(tmp_path: Path):
    state = {k: v.contiguous() for k, v in create_encoder("resnet18_quarter").state_dict().items()}
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"\(1 weights missing, 0 of another shape, first: layer2\.0\.conv1"):
        create_encoder("resnet18_quarter", tmp_path / "w.safetensors")


def test_a_weights_file_that_is_absent_or_of_another_kind_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such weights file"):
        create_encoder("resnet18_quarter", tmp_path / "none.safetensors")
    (tmp_path / "text.pth").write_text("these are not weights, and long enough to hold a header length")
    with pytest.raises(CheckpointError, match=r"text\.pth: not a safetensors file .*; convert it first"):
        create_encoder("resnet18_quarter", tmp_path / "text.pth")


def test_normalise_takes_out_mean_and_deviation_of_each_channel():
    rgb = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    x = normalise(rgb)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    for c in range(3):
        torch.testing.assert_close(x[:, c], (rgb[:, c].float() / 255 - MEAN[c]) / STD[c])


def test_normalise_treats_bytes_and_shares_alike():
    rgb = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(normalise(rgb), normalise(rgb.float() / 255))
