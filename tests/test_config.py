"""pipeline.yaml is read strictly: each mistake names its dotted path and what would be right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
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
from wsipipe.config.yaml import build, read_yaml
from wsipipe.errors import ConfigError


@pytest.fixture
def sections(tmp_path: Path) -> Any:
    """Write a text as pipeline.yaml and read its sections."""

    def read(text: str) -> Any:
        path = tmp_path / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        return read_yaml(path)

    return read


def test_sections_are_read_and_become_options(sections: Any) -> None:
    data = sections(
        "tile:\n  mpp: 1\n  patch_px: 128\nrun:\n  max_failed: 5%\npseudolabel:\n  classes: [a, b]\nsegment:\n"
    )
    assert build(TileConfig, data["tile"], "tile") == TileConfig(mpp=1.0, patch_px=128)
    assert isinstance(build(TileConfig, data["tile"], "tile").mpp, float)
    assert build(RunConfig, data["run"], "run").max_failed == "5%"
    assert build(PseudolabelConfig, data["pseudolabel"], "pseudolabel").classes == ("a", "b")
    assert data["segment"] == {}


def test_a_number_where_text_is_meant_is_text(sections: Any) -> None:
    assert build(RunConfig, sections("run:\n  max_failed: 3\n")["run"], "run").max_failed == "3"


def test_an_empty_file_means_the_defaults(sections: Any) -> None:
    assert sections("") == {}
    assert sections("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiel:\n  mpp: 1\n", "tiel: unknown key; did you mean 'tile'?"),
        (
            "zzzz: {}\n",
            "zzzz: unknown key; known are evaluate, export, pretrain, pseudolabel, run, segment, stitch",
        ),
        ("tile: 3\n", "tile: expected keys below it, found 3"),
        ("- tile\n", "expected sections such as 'tile:', found list"),
        ("tile:\n  mpp: 1\n  mpp: 2\n", "mpp: given twice"),
        ("tile: {}\ntile: {}\n", "tile: given twice"),
        ("run: &a\n  seed: 1\ntile: *a\n", "YAML aliases (*name) are not accepted; write the value out"),
        ("tile: [1, 2\n", "not valid YAML"),
        ("tile:\n\tmpp: 1\n", "not valid YAML"),
        ("tile: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(sections: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sections(text)
    assert message in str(caught.value)
    assert "pipeline.yaml: " in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("tile: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: "):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TileConfig, {"pach_px": 1}, "tile.pach_px: unknown key; did you mean 'patch_px'?"),
        (TileConfig, {"qqqqqqq": 1}, "tile.qqqqqqq: unknown key; known are codec, "),
        (TileConfig, {"patch_px": "256"}, "tile.patch_px: expected int, found '256'"),
        (TileConfig, {"patch_px": 25.5}, "tile.patch_px: expected int, found 25.5"),
        (TileConfig, {"patch_px": True}, "tile.patch_px: expected int, found True"),
        (TileConfig, {"mpp": "half"}, "tile.mpp: expected float, found 'half'"),
        (TileConfig, {"mpp": True}, "tile.mpp: expected float, found True"),
        (TileConfig, {"codec": None}, "tile.codec: expected str, found None"),
        (PseudolabelConfig, {"pretrain": 1}, "pseudolabel.pretrain: expected bool, found 1"),
        (PseudolabelConfig, {"classes": "a"}, "pseudolabel.classes: expected a list such as [a, b], found 'a'"),
        (PseudolabelConfig, {"classes": ["a", None]}, "pseudolabel.classes: expected str, found None"),
    ],
)
def test_a_wrong_key_or_type_names_its_dotted_path(cls, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(cls, values, cls.__name__.removesuffix("Config").lower())
    assert message in str(caught.value)


def test_sections_of_methods_are_left_to_their_owner() -> None:
    values = {"method": "irnet", "irnet": {"walk": 3}}
    assert build(PseudolabelConfig, values, "pseudolabel", nested=("irnet",)).method == "irnet"
    with pytest.raises(ConfigError, match="did you mean 'irnet'"):
        build(PseudolabelConfig, {"irnett": {}}, "pseudolabel", nested=("irnet",))


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TileConfig, {"mpp": 0.04}, "tile.mpp: 0.04 um/px is outside 0.05..20"),
        (TileConfig, {"mpp": 20.1}, "outside 0.05..20"),
        (TileConfig, {"mpp": float("nan")}, "outside 0.05..20"),
        (TileConfig, {"patch_px": 15}, "tile.patch_px: 15 is too small; 16 at least"),
        (TileConfig, {"stride_px": -1}, "tile.stride_px: -1 is negative; 0 means the patch size"),
        (TileConfig, {"min_tissue": 1.1}, "tile.min_tissue: 1.1 is not a share between 0 and 1"),
        (TileConfig, {"min_tissue": -0.1}, "is not a share between 0 and 1"),
        (TileConfig, {"codec": "png"}, "tile.codec: 'png' is not jpeg or zstd"),
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
def test_a_value_out_of_range_is_refused_at_construction(cls, values: Any, message: str) -> None:
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
def test_the_ends_of_each_range_are_accepted(cls, values: Any) -> None:
    assert dataclasses.asdict(cls(**values)).items() >= values.items()


@pytest.mark.parametrize("cls", [TileConfig, PseudolabelConfig, TrainConfig, StitchConfig, EvaluateConfig, RunConfig])
def test_every_option_has_a_default_a_sentence_and_cannot_be_changed(cls) -> None:
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
