"""Encoders by name: known names are built, unknown ones answered with neighbours, weights fit wholly or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.nn.checkpoint import Checkpoint, save_weights
from wsipipe.nn.encoders import (
    MEAN,
    STD,
    Statistics,
    check_encoder,
    chosen_encoder,
    create_encoder,
    load_weights,
    normalise,
    statistics_of,
    tokens,
    width_of,
)


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
def test_a_known_encoder_gives_one_feature_vector_an_image(name: str, width: int) -> None:
    encoder = create_encoder(name).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.parametrize(("name", "millions"), [("resnet18_half", 2.8), ("resnet18_quarter", 0.7)])
def test_the_narrow_encoders_have_the_size_that_they_claim(name: str, millions: float) -> None:
    assert sum(p.numel() for p in create_encoder(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_narrow_encoders_are_timm_models_like_any_other() -> None:
    assert timm.is_model("resnet18_half")
    assert timm.is_model("resnet18_quarter")
    features = timm.create_model("resnet18_quarter", features_only=True)
    assert [c["num_chs"] for c in features.feature_info] == [16, 16, 32, 64, 128]


def test_the_seed_decides_the_weights_from_scratch() -> None:
    states = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(create_encoder("resnet18_quarter").state_dict()["conv1.0.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("wrong", "right"), [("resnet18_hlf", "resnet18_half"), ("resnt50", "resnet50")])
def test_an_unknown_encoder_is_answered_with_the_nearest_names(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder '{wrong}' is not known to timm; similar: .*{right}"):
        check_encoder(wrong)


def test_an_encoder_like_no_other_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match="similar: none"):
        create_encoder("§§§§§§§§")


def test_an_encoder_of_the_hub_is_not_looked_up_among_timms_own() -> None:
    check_encoder("hf-hub:some/encoder")
    with pytest.raises(ConfigError, match="encoder 'some/encoder' is not known to timm"):
        check_encoder("some/encoder")


def test_an_encoder_that_cannot_be_fetched_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\n to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"hf-hub:some/encoder: cannot be fetched \(no route to the hub\)"):
        create_encoder("hf-hub:some/encoder")


def test_weights_survive_the_round_trip_through_a_file(tmp_path: Path) -> None:
    saved = scrambled("resnet18_quarter")
    save_weights(tmp_path / "deep" / "encoder.safetensors", saved)
    loaded = create_encoder("resnet18_quarter", tmp_path / "deep" / "encoder.safetensors")
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["encoder.safetensors"]


def test_a_classification_head_in_the_file_is_left_out(tmp_path: Path) -> None:
    whole = timm.create_model("resnet18_quarter", num_classes=5)
    save_weights(tmp_path / "whole.safetensors", whole)
    encoder = create_encoder("resnet18_quarter", tmp_path / "whole.safetensors")
    assert torch.equal(encoder.state_dict()["conv1.0.weight"], whole.state_dict()["conv1.0.weight"])
    assert not [k for k in encoder.state_dict() if k.startswith("fc")]


def test_weights_of_another_width_are_refused_with_their_number(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", create_encoder("resnet18_half"))
    encoder = create_encoder("resnet18_quarter")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"w\.safetensors: does not fit this encoder \(0 weights missing, \d+ of another shape, first: conv1\.0",
    ):
        load_weights(encoder, tmp_path / "w.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_weights_with_a_hole_are_refused_with_the_name_of_the_hole(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in create_encoder("resnet18_quarter").state_dict().items()}
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"\(1 weights missing, 0 of another shape, first: layer2\.0\.conv1"):
        create_encoder("resnet18_quarter", tmp_path / "w.safetensors")


def test_a_weights_file_that_is_absent_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such weights file"):
        create_encoder("resnet18_quarter", tmp_path / "none.safetensors")
    (tmp_path / "text.pth").write_text("these are not weights, and long enough to hold a header length")
    with pytest.raises(CheckpointError, match=r"text\.pth: not a safetensors file .*; convert it first"):
        create_encoder("resnet18_quarter", tmp_path / "text.pth")


def test_normalise_takes_out_mean_and_deviation_of_each_channel() -> None:
    rgb = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    x = normalise(rgb)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    for c in range(3):
        torch.testing.assert_close(x[:, c], (rgb[:, c].float() / 255 - MEAN[c]) / STD[c])


def test_normalise_treats_bytes_and_shares_alike() -> None:
    rgb = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(normalise(rgb), normalise(rgb.float() / 255))


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_encoder(name).eval()


@pytest.mark.parametrize("name", ["resnet18_quarter", "test_convnext", "test_vit", "test_vit2"])
@pytest.mark.parametrize("side", [64, 96])
def test_an_encoder_gives_one_vector_of_an_image_or_a_grid_of_features(name: str, side: int) -> None:
    encoder = small(name)
    x = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        vector, grid = encoder(x), tokens(encoder, x)
    n = side // (16 if "vit" in name else 32)
    assert grid.shape == (2, n, n, vector.shape[1])
    assert width_of(encoder, side) == vector.shape[1]


def test_the_grid_of_a_convolutional_network_is_the_map_that_its_vector_is_the_mean_of() -> None:
    encoder = small("resnet18_quarter")
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(tokens(encoder, x).mean((1, 2)), encoder(x))
        assert tokens(encoder, x).shape[1:3] == (3, 2)


def test_the_grid_of_a_transformer_is_its_normalised_patch_tokens_row_by_row_without_the_class_token() -> None:
    encoder = small("test_vit")
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        every = encoder.forward_features(x)
        got = tokens(encoder, x)
    assert got.shape == (2, 6, 4, 64)
    torch.testing.assert_close(got.reshape(2, 24, 64), every[:, encoder.num_prefix_tokens :])


def test_a_transformer_takes_images_that_do_not_divide_into_its_patches() -> None:
    encoder = small("test_vit")
    with torch.inference_mode():
        assert tokens(encoder, torch.randn(1, 3, 70, 64)).shape == (1, 5, 4, 64)


def test_an_encoder_without_a_grid_says_so() -> None:
    with pytest.raises(ConfigError, match="encoder Flatten gives no grid of features"):
        tokens(nn.Flatten(), torch.zeros(1, 3, 4, 4))


OTHER = Statistics((0.5, 0.5, 0.5), (0.5, 0.4, 0.3))


@pytest.mark.parametrize("name", ["resnet18_quarter", "test_vit"])
def test_an_encoder_of_other_statistics_sees_images_as_its_weights_expect_them(name: str) -> None:
    house = small(name)
    torch.manual_seed(0)
    own = create_encoder(name, statistics=OTHER).eval()
    rgb = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OTHER.mean, OTHER.std))
    with torch.inference_mode():
        torch.testing.assert_close(own(normalise(rgb)), house((rgb - mean) / std), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(tokens(own, normalise(rgb)), tokens(house, (rgb - mean) / std), atol=1e-4, rtol=1e-3)
    assert statistics_of(own) == OTHER
    assert statistics_of(house) == Statistics()
    assert own.state_dict().keys() == house.state_dict().keys()


def test_bare_weights_of_a_known_model_expect_what_timm_says_of_it(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", small("vit_tiny_patch16_224"))
    encoder = create_encoder("vit_tiny_patch16_224", tmp_path / "w.safetensors")
    assert statistics_of(encoder) == Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert statistics_of(small("vit_tiny_patch16_224")) == Statistics()


def test_weights_in_the_layout_of_a_hub_expect_what_its_configuration_says(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", small("test_vit"))
    config = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.7, 0.6, 0.5], "std": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = Statistics((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        assert statistics_of(create_encoder("test_vit", weights)) == wanted


def test_a_folder_in_the_layout_of_a_hub_is_an_encoder_by_its_name(tmp_path: Path) -> None:
    whole = small("test_vit")
    save_weights(tmp_path / "model.safetensors", whole)
    published = {"mean": [0.7, 0.6, 0.5], "std": [0.1, 0.2, 0.3], "input_size": [3, 160, 160], "num_classes": 0}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": published}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = create_encoder(f"local-dir:{tmp_path}").eval()
    assert statistics_of(encoder) == Statistics((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
    assert torch.equal(encoder.state_dict()["cls_token"], whole.state_dict()["cls_token"])
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        create_encoder(f"local-dir:{tmp_path / 'none'}")


def checkpoint(folder: Path, encoder: str = "resnet18_quarter", statistics: Statistics = OTHER) -> Path:
    own = statistics
    return Checkpoint("encoder", encoder, (), 0.5, 256, "d", own.mean, own.std, {}).save(folder, small(encoder))


def test_a_checkpoint_names_its_encoder_and_what_it_expects(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run")
    for weights in (path, path.parent, path.with_suffix(".safetensors")):
        name, file = chosen_encoder("", str(weights))
        assert name == "resnet18_quarter"
        assert chosen_encoder("resnet18_quarter", str(weights)) == (name, file)
        encoder = create_encoder(name, file)
        assert statistics_of(encoder) == OTHER
        assert torch.equal(encoder.state_dict()["bn1.weight"], small(name).state_dict()["bn1.weight"])
        with pytest.raises(CheckpointError, match="weights of encoder 'resnet18_quarter', but --encoder is 'resnet18'"):
            chosen_encoder("resnet18", str(weights))


def test_without_a_checkpoint_the_name_is_the_given_or_the_usual_one(tmp_path: Path) -> None:
    assert chosen_encoder("", "") == ("resnet18_half", None)
    assert chosen_encoder("test_vit", "") == ("test_vit", None)
    assert chosen_encoder("", str(tmp_path / "w.pth")) == ("resnet18_half", tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"encoder.{k}": v for k, v in s.items()} | {"head.weight": torch.zeros(2)},
        lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {
            "teacher": {f"backbone.{k}": v for k, v in s.items()},
            "student": {f"backbone.{k}": v * 0 for k, v in s.items()},
        },
        lambda s: s | {f"ema.{k}": v * 0 for k, v in s.items()},
    ],
    ids=["bare", "encoder", "nested", "teacher and student", "beside another"],
)
def test_weights_are_found_under_any_beginning_in_a_state_dict_of_torch(
    tmp_path: Path, wrap: Callable[[dict], dict]
) -> None:
    saved = small("resnet18_quarter")
    torch.save(wrap(dict(saved.state_dict())), tmp_path / "w.pth")
    torch.manual_seed(5)
    loaded = create_encoder("resnet18_quarter", tmp_path / "w.pth").eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), saved(x))


def test_two_encoders_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    state = small("resnet18_quarter").state_dict()
    torch.save({"a": dict(state), "b": dict(state)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: holds several encoders \(a\., b\.\)"):
        create_encoder("resnet18_quarter", tmp_path / "w.pt")


def test_what_is_missing_under_a_beginning_is_named(tmp_path: Path) -> None:
    state = {f"net.{k}": v for k, v in small("resnet18_quarter").state_dict().items()}
    del state["net.layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"1 weights missing under 'net\.', .* first: layer1\.0\.conv1\.weight"):
        create_encoder("resnet18_quarter", tmp_path / "w.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("gotcha",)

    torch.save({"conv": Evil()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not a safetensors file or a plain state dict of torch"):
        create_encoder("resnet18_quarter", tmp_path / "w.pth")


def test_width_is_the_length_of_the_features_and_asking_changes_nothing() -> None:
    encoder = create_encoder("resnet18_quarter").train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert width_of(encoder, 16) == 128
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
