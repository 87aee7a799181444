"""The chain: options by precedence, everything checked before the first slide, and one bad slide costs only itself."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_chain import SLIDES, add_broken_slide, make_folder
from support.types import DrawTissue, WriteSvs

from wsipipe import pipeline
from wsipipe.cli.template import template
from wsipipe.config.options import SECTIONS, PseudolabelConfig, TileConfig, TrainConfig
from wsipipe.config.yaml import build, read_yaml
from wsipipe.errors import ConfigError, LabelsError, SlideError
from wsipipe.pipeline import expand, read_settings, run_chain
from wsipipe.pseudolabel.registry import load_method, load_refinement, method_names, refinement_names
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

SHIPPED = Path(__file__).resolve().parents[1] / "pipeline.yaml"


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory: pytest.TempPathFactory, svs_writer: WriteSvs, tissue_drawer: DrawTissue) -> Path:
    """A folder of tiny slides in which nothing has run. Read only."""
    return make_folder(tmp_path_factory.mktemp("fresh") / "work", svs_writer, tissue_drawer)


@pytest.fixture
def here(tmp_path: Path, fresh_folder: Path) -> Iterator[Path]:
    """A copy of it, as the current folder."""
    folder = Path(shutil.copytree(fresh_folder, tmp_path / "work"))
    with contextlib.chdir(folder):
        yield folder


def settings(**flags: dict[str, Any]) -> pipeline.Settings:
    """Settings of ./pipeline.yaml for all slides, with `flags` over them."""
    flags["run"] = {"slides": ("slides",), **flags.get("run", {})}
    return read_settings(None, flags)


def run_all(settings: pipeline.Settings) -> tuple[Report, list[Path]]:
    """Run the chain of these settings."""
    return run_chain(settings, settings.context())


# --- pipeline.yaml -----------------------------------------------------------------------------------------------


def test_the_shipped_file_is_the_one_that_the_options_make() -> None:
    assert SHIPPED.read_text() == template(), "write it anew: wsipipe config > pipeline.yaml"


def test_the_shipped_file_holds_every_option_at_its_default() -> None:
    given = read_yaml(SHIPPED)
    assert sorted(given) == sorted(SECTIONS)
    for section, config in SECTIONS.items():
        fields = {f.name for f in dataclasses.fields(config)}
        assert set(given[section]) - {*method_names(), *refinement_names()} == fields, section
        assert build(config, given[section], section, (*method_names(), *refinement_names())) == config()


def test_the_shipped_file_holds_every_parameter_of_every_method_at_its_default() -> None:
    given = read_yaml(SHIPPED)["pseudolabel"]
    for name, load in [
        *((n, load_method) for n in method_names()),
        *((n, load_refinement) for n in refinement_names()),
    ]:
        params = load(name).Params
        assert set(given[name]) == {f.name for f in dataclasses.fields(params)}
        assert build(params, given[name], name) == params()


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "any.yaml"
    file.write_text("tile: {patch_px: 64, quality: 50}\npseudolabel: {camel: {lattice: 2, shrink: 1}}\n")
    flags = {"tile": {"quality": 70}, "pseudolabel": {"camel": {"shrink": 4}}}
    found = read_settings(file, flags)
    assert found.tile == TileConfig(patch_px=64, quality=70)
    assert found.sections == {"camel": {"lattice": 2, "shrink": 4}}
    assert read_settings(file, {}).tile == TileConfig(patch_px=64, quality=50)


def test_pipeline_yaml_of_the_current_folder_is_read_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("tile: {patch_px: 64}\n")
    (tmp_path / "other.yaml").write_text("tile: {patch_px: 96}\n")
    with contextlib.chdir(tmp_path):
        assert read_settings(None, {}).tile.patch_px == 64
        assert read_settings(Path("other.yaml"), {}).tile.patch_px == 96
    (tmp_path / "sub").mkdir()
    with contextlib.chdir(tmp_path / "sub"):
        assert read_settings(None, {}).tile == TileConfig()


@pytest.mark.parametrize("section", list(SECTIONS))
def test_a_mistyped_key_names_its_dotted_path_and_the_right_one(tmp_path: Path, section: str) -> None:
    for field in dataclasses.fields(SECTIONS[section]):
        (tmp_path / "p.yaml").write_text(f"{section}: {{{field.name}x: 1}}\n")
        with pytest.raises(ConfigError) as caught:
            read_settings(tmp_path / "p.yaml", {})
        assert f"p.yaml: {section}.{field.name}x: unknown key; did you mean " in str(caught.value)
        assert f"{field.name!r}" in str(caught.value)


def test_a_mistake_is_said_of_the_file_only_if_it_stands_there(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("tile: {patch_px: 64}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "p.yaml", {"tile": {"patch_px": 3}})
    assert str(caught.value).startswith("tile.patch_px: 3 is below 16")
    (tmp_path / "p.yaml").write_text("tile: {patch_px: 3}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "p.yaml", {})
    assert str(caught.value).startswith(f"{tmp_path / 'p.yaml'}: tile.patch_px: 3 is below 16")


@pytest.mark.parametrize("below", ["3", "[1]", "text"])
def test_a_method_section_that_holds_no_keys_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "p.yaml").write_text(f"pseudolabel: {{camel: {below}}}\n")
    with pytest.raises(ConfigError, match=r"p\.yaml: pseudolabel\.camel: expected keys below it, found"):
        read_settings(tmp_path / "p.yaml", {})
    (tmp_path / "p.yaml").write_text("pseudolabel:\n  camel:\n")
    assert read_settings(tmp_path / "p.yaml", {}).sections == {}


def test_patterns_are_expanded_in_order_and_a_name_with_brackets_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("b.svs", "a.svs", "c[1].svs"):
        (tmp_path / name).write_text("")
    with contextlib.chdir(tmp_path):
        assert expand(("c[1].svs", "[ab].svs", "x.svs")) == [Path(p) for p in ("c[1].svs", "a.svs", "b.svs", "x.svs")]
        with pytest.raises(ConfigError, match=r"\*\.ndpi: matches no file"):
            expand(("*.ndpi",))


# --- everything is checked first ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"run": {"slides": ()}}, "no slides; name them after the command, or as run.slides"),
        ({"run": {"slides": ("none",)}}, "none: no such file"),
        ({"run": {"device": "cuda:77"}}, "device cuda:77"),
        ({"pseudolabel": {"labels": "none.csv"}}, "none.csv: no such file"),
        ({"pseudolabel": {"classes": ("stroma",)}}, "unknown class tumour"),
        ({"pseudolabel": {"encoder": "resnet1"}}, "encoder 'resnet1' is not known to timm"),
        ({"pseudolabel": {"weights": "none.safetensors"}}, "none.safetensors: no such file"),
        ({"pseudolabel": {"camel": {"latice": 4}}}, "pseudolabel.camel.latice: unknown key; did you mean 'lattice'"),
        ({"pseudolabel": {"camel": {"lattice": 5}}}, "lattice: 5 does not divide a patch of 128 px"),
        ({"pseudolabel": {"camel": {"uncertain": 0.5}}}, "camel.uncertain: 0.5 is outside"),
        ({"pseudolabel": {"name": "../x"}}, "name '../x': use letters"),
        ({"pseudolabel": {"name": "tissue"}}, "reserved by wsipipe"),
        ({"pseudolabel": {"name": "other"}}, "segment.masks: 'camel', but pseudolabel makes 'other'"),
        ({"segment": {"masks": "drs"}}, "segment.masks: 'drs', but pseudolabel makes 'camel'"),
        ({"segment": {"name": "camel"}}, "segment.name: 'camel' is also the name of the pseudo-masks"),
        ({"segment": {"architecture": "vnet"}}, "architecture 'vnet' is not known; choose one of"),
        ({"segment": {"encoder": "resnet1"}}, "encoder 'resnet1' is not known to timm"),
        ({"stitch": {"window_px": 100}}, "window of 100 px is not a multiple of 32"),
        ({"segment": {"labels": "none.csv"}}, "none.csv: cannot be read"),
        ({"segment": {"labels": "elsewhere.csv"}}, "segment.labels: elsewhere.csv: trains on no slide"),
    ],
)
def test_a_mistake_in_any_stage_stops_the_chain_before_the_first_slide(here: Path, flags: Any, message: str) -> None:
    (here / "elsewhere.csv").write_text("slide_id,split\nother,train\npos,test\n")
    with pytest.raises(ConfigError) as caught:
        run_all(settings(**flags))
    assert message in str(caught.value)
    assert not (here / "stores").exists()
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ghost,tumour\n", "line 4: no store for slide ghost"),
        ("pos,\n", "lines 2 and 4: slide pos has two rows"),
        (",tumour\n", "line 4: slide_id is empty"),
    ],
)
def test_a_bad_row_of_labels_stops_the_chain_before_the_first_slide(here: Path, row: str, message: str) -> None:
    with (here / "labels.csv").open("a") as f:
        f.write(row)
    with pytest.raises(LabelsError, match=message):
        run_all(settings())
    assert not (here / "stores").exists()


# --- slides that fail --------------------------------------------------------------------------------------------


def test_the_chain_maps_every_slide_and_a_second_run_skips_all(here: Path) -> None:
    report, stores = run_all(settings())
    assert report.exit_code == 0
    assert stores == [Path("stores") / f"{name}.zarr" for name in sorted(SLIDES)]
    assert all("unet" in SlideStore(p).names("scores") for p in stores)
    again, same = run_all(settings())
    assert same == stores
    assert [r["status"] for r in again.rows] == ["skipped"] * 3


def test_one_bad_slide_within_what_is_allowed_is_left_out_with_its_labels(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_broken_slide(here)
    allowed = settings(run={"max_failed": "1"})
    report, stores = run_all(allowed)
    assert report.exit_code == 0
    assert [r["item"] for r in report.of("failed")] == ["broken"]
    assert [p.stem for p in stores] == sorted(SLIDES)
    assert "skipped 1 of 3 rows: their slides could not be tiled" in caplog.text
    assert (here / "runs/camel/labels.csv").read_text() == (here / "labels.csv").read_text()
    assert (here / "labels.csv").read_text().endswith("broken,tumour\n")
    again, same = run_all(allowed)
    assert (again.exit_code, same) == (0, stores)


def test_one_bad_slide_too_many_stops_the_chain_after_tiling(here: Path) -> None:
    add_broken_slide(here)
    report, stores = run_all(settings())
    assert report.exit_code == 1
    assert [p.stem for p in stores] == sorted(SLIDES)
    assert not (here / "runs" / "camel").exists()


def fails_for(slide_id: str, real: Any) -> Any:
    """A stage function of one store that fails for one slide."""

    def stage(*args: Any, **kwargs: Any) -> Any:
        stores = [a if isinstance(a, SlideStore) else getattr(a, "store", None) for a in args]
        if any(isinstance(s, SlideStore) and s.slide_id == slide_id for s in stores):
            raise SlideError(f"{slide_id}: cannot be decoded")
        return real(*args, **kwargs)

    return stage


@pytest.mark.parametrize(("allowed", "code"), [("1", 0), ("0", 1), ("34%", 0), ("33%", 1)])
def test_a_slide_that_fails_later_is_counted_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, code: int
) -> None:
    from wsipipe.pseudolabel.labeller import SlideLabeller

    monkeypatch.setattr(SlideLabeller, "label", fails_for("extra", SlideLabeller.label))
    report, stores = run_all(settings(run={"max_failed": allowed}))
    assert report.exit_code == code
    assert [(r["item"], r["status"]) for r in report.rows] == [("extra", "failed"), ("neg", "done"), ("pos", "done")]
    if code == 0:
        assert [p.stem for p in stores] == ["neg", "pos"]
        assert "unet" not in SlideStore(here / "stores" / "extra.zarr").names("labels")
    else:
        assert not (here / "runs" / "unet").exists()


def test_failures_of_two_stages_add_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_broken_slide(here)
    from wsipipe.segment import predict

    monkeypatch.setattr(predict._Job, "_stitch", fails_for("extra", predict._Job._stitch))
    report, stores = run_all(settings(run={"max_failed": "1"}))
    assert report.exit_code == 1
    assert sorted(r["item"] for r in report.of("failed")) == ["broken", "extra"]
    assert [p.stem for p in stores] == ["neg", "pos"]


def test_when_every_slide_fails_as_was_allowed_nothing_else_is_tried(here: Path) -> None:
    for path in (here / "slides").iterdir():
        path.write_bytes(b"no slide")
    report, stores = run_all(settings(run={"max_failed": "100%"}))
    assert (report.exit_code, stores) == (0, [])
    assert len(report.of("failed")) == 3


# --- the helpers of the above ------------------------------------------------------------------------------------


def test_labels_of_which_too_little_is_left_are_refused(here: Path) -> None:
    add_broken_slide(here)
    (here / "slides" / "pos.svs").write_bytes(b"no slide")
    (here / "labels.csv").write_text("slide_id,label\npos,tumour\nneg,\n")
    with pytest.raises(LabelsError, match="have the same label"):
        run_all(settings(run={"max_failed": "2"}))


def test_defaults_fit_together() -> None:
    """The chain of defaults passes its own check of names."""
    assert TrainConfig().masks == (PseudolabelConfig().name or PseudolabelConfig().method)
    with SHIPPED.open() as f:
        assert next(csv.reader(f))  # not empty
