"""pipeline.yaml is read strictly: each mistake names its dotted path and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsipipe.config.options import PseudolabelConfig, RunConfig, TileConfig
from wsipipe.config.yaml import build, read_yaml, scalar, written
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
        ("tile:\n  mpp: 1\n  mpp: 2\n", "mpp: appears twice in the section at line 2"),
        ("tile: {}\ntile: {}\n", "tile: appears twice in the section at line 1"),
        ("run: &a\n  seed: 1\ntile: *a\n", "YAML aliases (*name) are not allowed; repeat the value"),
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
def test_a_wrong_key_or_type_names_its_dotted_path(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(cls, values, cls.__name__.removesuffix("Config").lower())
    assert message in str(caught.value)


def test_sections_of_methods_are_left_to_their_owner() -> None:
    values = {"method": "irnet", "irnet": {"walk": 3}}
    assert build(PseudolabelConfig, values, "pseudolabel", nested=("irnet",)).method == "irnet"
    with pytest.raises(ConfigError, match="did you mean 'irnet'"):
        build(PseudolabelConfig, {"irnett": {}}, "pseudolabel", nested=("irnet",))


@pytest.mark.parametrize("value", [1, 0.5, 1e-3, True, "", "a b", "5%", ["a", "b"], [], ("a",)])
def test_a_written_value_is_one_line_that_is_read_back(value: object) -> None:
    text = written(value)
    assert "\n" not in text
    assert scalar(text) == (list(value) if isinstance(value, tuple) else value)


def test_text_that_is_no_yaml_stays_text() -> None:
    assert scalar("a: [") == "a: ["


def test_an_old_key_names_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"tile\.even_stain was renamed; use tile\.normalise_stain"):
        build(TileConfig, {"even_stain": True}, "tile")
