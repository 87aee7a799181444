"""Options: defaults, ranges and the texts of their errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wsipipe.config.options import (
    SECTIONS,
    EvaluateConfig,
    PretrainConfig,
    PseudolabelConfig,
    RunConfig,
    StitchConfig,
    TileConfig,
    TrainConfig,
)
from wsipipe.config.yaml import build
from wsipipe.errors import ConfigError


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TileConfig, {"mpp": 0.04}, "tile.mpp: 0.04 um/px is outside 0.05..20"),
        (TileConfig, {"mpp": 20.1}, "outside 0.05..20"),
        (TileConfig, {"mpp": float("nan")}, "outside 0.05..20"),
        (TileConfig, {"patch_px": 15}, "tile.patch_px: 15 is below 16"),
        (TileConfig, {"stride_px": -1}, "tile.stride_px: -1 is negative; 0 means the patch size"),
        (TileConfig, {"min_tissue": 1.1}, "tile.min_tissue: 1.1 is outside 0..1"),
        (TileConfig, {"min_tissue": -0.1}, "is outside 0..1"),
        (TileConfig, {"codec": "png"}, "tile.codec: 'png' is neither jpeg nor zstd"),
        (TileConfig, {"quality": 0}, "tile.quality: 0 is outside 1..100"),
        (TileConfig, {"quality": 101}, "tile.quality: 101 is outside 1..100"),
        (TileConfig, {"mpp_override": 0.01}, "tile.mpp_override: 0.01 um/px is outside 0.05..20"),
        (TileConfig, {"mpp_override": -0.5}, "tile.mpp_override: -0.5 um/px is outside 0.05..20"),
        (PretrainConfig, {"steps": 0}, "pretrain.steps: 0 is below 1"),
        (PretrainConfig, {"method": "moco"}, "pretrain.method: 'moco' is not one of vicreg, simclr, byol, dino"),
        (PretrainConfig, {"batch": 1}, "pretrain.batch: 1 is below 2"),
        (PretrainConfig, {"lr": -1.0}, "pretrain.lr: -1.0 is negative"),
        (PretrainConfig, {"input_px": 15}, "pretrain.input_px: 15 is below 16"),
        (PretrainConfig, {"shrink": 0}, "pretrain.shrink: 0 is below 1"),
        (PretrainConfig, {"patience": -1}, "pretrain.patience: -1 is negative; 0 means never to stop early"),
        (TrainConfig, {"border_px": -1}, "segment.border_px: -1 is negative; 0 means none"),
        (TrainConfig, {"steps": 0}, "segment.steps: 0 is below 1"),
        (TrainConfig, {"batch": 1}, "segment.batch: 1 is below 2"),
        (StitchConfig, {"overlap": 0.91}, "stitch.overlap: 0.91 is outside 0..0.9"),
        (StitchConfig, {"overlap": -0.1}, "stitch.overlap: -0.1 is outside 0..0.9"),
        (StitchConfig, {"score_stride_px": 0}, "stitch.score_stride_px: 0 is below 1"),
        (RunConfig, {"max_failed": "some"}, "run.max_failed: 'some' is neither a number nor a percentage such as 5%"),
        (RunConfig, {"max_failed": "-1"}, "neither a number nor a percentage"),
        (RunConfig, {"max_failed": ""}, "neither a number nor a percentage"),
        (RunConfig, {"workers": -1}, "run.workers: -1 is negative; 0 means one per processor"),
    ],
)
def test_a_value_out_of_range_is_refused_at_construction(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TileConfig, {"mpp": 0.05, "patch_px": 16, "stride_px": 0, "min_tissue": 0.0, "quality": 1}),
        (TileConfig, {"mpp": 20.0, "min_tissue": 1.0, "codec": "zstd", "quality": 100, "mpp_override": 0.05}),
        (TrainConfig, {"steps": 1, "batch": 2}),
        (StitchConfig, {"overlap": 0.9, "score_stride_px": 1}),
        (StitchConfig, {"overlap": 0.0}),
        (RunConfig, {"max_failed": "0"}),
        (RunConfig, {"max_failed": "100%", "workers": 64}),
    ],
)
def test_the_ends_of_each_range_are_accepted(cls: type[Any], values: Any) -> None:
    assert dataclasses.asdict(cls(**values)).items() >= values.items()


@pytest.mark.parametrize("cls", [TileConfig, PseudolabelConfig, TrainConfig, StitchConfig, EvaluateConfig, RunConfig])
def test_every_option_has_a_default_a_sentence_and_cannot_be_changed(cls: type[Any]) -> None:
    config = cls()
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, None)


def test_every_section_builds_from_nothing() -> None:
    for name, cls in SECTIONS.items():
        assert build(cls, {}, name) == cls()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"glass": "gone"}, "evaluate.glass: 'gone' is not known; choose one of given, scored, ignored"),
        ({"slide_top": 1.5}, "evaluate.slide_top: 1.5 is not a share between 0 and 1"),
        ({"nms_um": 0.0}, "evaluate.nms_um: 0.0 um is outside 0..100000"),
    ],
)
def test_an_evaluation_is_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EvaluateConfig, values, "evaluate")
