"""The stage: fits are reused or replaced but never mixed, labels bind what is painted, one bad store costs itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import (
    ROWS,
    SIZE,
    STRIDE,
    Csv,
    Stage,
    Stores,
    mask_of,
    picture,
    scores_of,
    statuses,
    tissue_of,
    written,
)
from support.textures import tiled_pictures

from wsipipe.config.options import PseudolabelConfig, RunConfig
from wsipipe.errors import CheckpointError, ConfigError, LabelsError, StoreError
from wsipipe.labels import IGNORE
from wsipipe.nn.checkpoint import read_checkpoint
from wsipipe.pseudolabel.method import ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import camel
from wsipipe.pseudolabel.paint import paint_mask
from wsipipe.pseudolabel.stage import PseudolabelOptions
from wsipipe.pseudolabel.stage import run as pseudolabel
from wsipipe.runtime.context import RunContext
from wsipipe.store import SlideStore


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is sure of every class everywhere."""

    def score(model: object, context: ScoreContext, params: object) -> ScoreMap:
        shape = SIZE[1] // STRIDE, SIZE[0] // STRIDE
        return ScoreMap.of_probabilities(np.stack([np.full(shape, v, np.float32) for v in (1.0, 0.9)]), STRIDE)

    monkeypatch.setattr(camel, "score", score)


def test_every_store_gets_masks_and_scores_also_unlabelled_and_held_out_ones(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    report, done = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "done")
    assert done == list(stores.values())
    assert report.exit_code == 0
    for slide_id, path in stores.items():
        meta = SlideStore(path).attributes("labels", "camel")
        assert meta["classes"] == ["a", "b"]
        assert meta["split"] == ("train" if slide_id in ("blob", "line", "both", "none") else "")
        assert set(np.unique(mask_of(path))) <= {0, 1, 2, IGNORE}
        assert scores_of(path).shape == (2, 8, 10)
    assert (Path(run.runs) / "camel" / "pseudolabel.csv").read_text().count(",done,") == 6


def test_the_run_folder_holds_the_fit_its_weights_and_its_labels(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    labels = csv()
    stage(stores, labels)
    folder = Path(run.runs) / "camel"
    names = {"fit.json", "model.safetensors", "model.json", "labels.csv", "pseudolabel.csv"}
    assert {p.name for p in folder.iterdir() if not p.name.endswith(".lock")} == names
    assert (folder / "labels.csv").read_text() == labels.read_text()
    note = read_checkpoint(folder)
    assert (note.network, note.encoder, note.classes, note.patch_px) == ("camel", "resnet18_quarter", ("a", "b"), 64)
    assert note.mpp == 0.5
    assert note.digest == json.loads((folder / "fit.json").read_text())["digest"]
    assert note.settings["selector_steps"] == 2


def test_a_second_run_skips_everything(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    stage(stores, csv())
    before, fit = written(stores), (Path(run.runs) / "camel" / "model.safetensors").stat().st_mtime_ns
    assert len(before) >= 6 * 4
    report, done = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "skipped")
    assert done == list(stores.values())
    assert written(stores) == before
    assert (Path(run.runs) / "camel" / "model.safetensors").stat().st_mtime_ns == fit


def test_a_run_that_was_cut_off_does_only_what_is_missing(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv())
    wanted = mask_of(stores["blob"])
    shutil.rmtree(stores["blob"] / "labels" / "camel")
    shutil.rmtree(stores["held"] / "scores" / "camel")
    report, _ = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "skipped") | {"blob": "done", "held": "done"}
    np.testing.assert_array_equal(mask_of(stores["blob"]), wanted)


def test_a_fit_without_its_key_does_not_count(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    stage(stores, csv())
    (Path(run.runs) / "camel" / "fit.json").unlink()
    weights = Path(run.runs) / "camel" / "model.safetensors"
    weights.write_bytes(b"half")
    stage(stores, csv())
    assert weights.stat().st_size > 1000


@pytest.mark.parametrize(
    "change",
    [
        {"rows": ("blob,a,", "line,b,", "both,a,", "none,,")},
        {"seed": 1},
        {"self_train": True},
        {"encoder": "resnet18_half"},
    ],
    ids=["labels", "seed", "self_train", "encoder"],
)
def test_other_inputs_under_the_same_name_are_refused_and_overwrite_replaces(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, change: dict[str, object]
):
    stage(stores, csv())
    before = written(stores)
    more = dict(change)
    labels = csv(*more.pop("rows", ROWS))
    seed = more.pop("seed", 0)
    other = RunConfig(stores=run.stores, runs=run.runs, device="cpu", workers=1, seed=seed)
    with pytest.raises(StoreError, match=r"was made from other inputs; choose another --name, .* --overwrite"):
        stage(stores, labels, run=other, **more)
    assert written(stores) == before
    report, _ = stage(stores, labels, run=other, overwrite=True, **more)
    assert statuses(report) == dict.fromkeys(stores, "done")
    fit = json.loads((Path(run.runs) / "camel" / "fit.json").read_text())["digest"]
    assert {SlideStore(p).attributes("labels", "camel")["fit"] for p in stores.values()} == {fit}


def test_another_name_stands_beside_the_first(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    stage(stores, csv())
    before = written(stores)
    stage(stores, csv("blob,a,", "line,b,", "none,,"), name="second")
    assert written(stores) == before
    assert SlideStore(stores["blob"]).names("labels") == ["camel", "second", "tissue"]
    assert (Path(run.runs) / "second" / "fit.json").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_plain_file_name_is_refused(stores: Stores, csv: Csv, stage: Stage, name: str):
    with pytest.raises(ConfigError, match="use letters, digits"):
        stage(stores, csv(), name=name)


def test_a_new_slide_is_scored_by_the_fit_that_is_there(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    labels = csv()
    stage({k: v for k, v in stores.items() if k != "free"}, labels)
    stamp = (Path(run.runs) / "camel" / "model.safetensors").stat().st_mtime_ns
    report, done = stage({"free": stores["free"]}, labels)
    assert statuses(report) == {"free": "done"}
    assert done == [stores["free"]]
    assert (Path(run.runs) / "camel" / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_same_seed_gives_the_same_weights_to_the_bit(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    weights = []
    for i, seed in enumerate((3, 3, 4)):
        run = RunConfig(str(tmp_path), str(tmp_path / "stores"), str(tmp_path / f"runs{i}"), "cpu", 1, seed)
        torch.manual_seed(i)
        stage(stores, csv(), run=run, name=f"n{i}")
        weights.append((tmp_path / f"runs{i}" / f"n{i}" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    np.testing.assert_array_equal(scores_of(stores["free"], "n0"), scores_of(stores["free"], "n1"))


@pytest.mark.usefixtures("certain")
def test_a_class_that_a_slide_label_excludes_is_never_painted_in_it(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv())
    found = {k: set(np.unique(mask_of(p)[tissue_of(p)])) for k, p in stores.items()}
    assert found == {"blob": {1}, "line": {2}, "both": {1}, "none": {0}, "held": {1}, "free": {1}}
    tops = {k: [int(v) for v in scores_of(p).max((1, 2))] for k, p in stores.items()}
    alone = {"blob": [255, 0], "line": [0, 230], "none": [0, 0]}
    assert tops == alone | {k: [255, 230] for k in ("both", "held", "free")}


@pytest.mark.usefixtures("certain")
def test_glass_is_never_painted(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv())
    for path in stores.values():
        glass = ~tissue_of(path)
        assert glass.sum() > 50 * 256
        assert (mask_of(path)[glass] == 0).all()


@pytest.mark.usefixtures("certain")
def test_pixels_without_valid_tissue_value_are_ignored(stores: Stores, csv: Csv, stage: Stage):
    store = SlideStore(stores["blob"])
    mask = mask_of(stores["blob"], "tissue")
    mask[10:40, 20:50] = IGNORE
    store.write_labels("tissue", {0: "glass", 1: "tissue", IGNORE: "invalid"}, {}, [((0, 0), mask)])
    stage(stores, csv())
    got = mask_of(stores["blob"])
    assert (got[10:40, 20:50] == IGNORE).all()
    assert (got[40:80, 50:90] == 1).all()


@pytest.mark.usefixtures("certain")
def test_a_patch_row_binds_its_patch_and_nothing_else(stores: Stores, csv: Csv, stage: Stage):
    rows = ["blob,b,0,0,64,64,", "blob,a,64,0,64,64,", "blob,,128,128,64,64,", "line,a;b,0,0,64,64,", "none,,,,,,"]
    stage(stores, csv(*rows, header="slide_id,label,x,y,width,height,split"))
    mask = mask_of(stores["blob"])
    assert np.unique(mask[:64, :64]).tolist() == [2]
    assert np.unique(mask[:64, 64:128]).tolist() == [1]
    assert np.unique(mask[128:192, 128:192]).tolist() == [0]
    assert np.unique(mask[64:128, :192]).tolist() == [1], "no label is about these patches"
    assert np.unique(mask_of(stores["line"])[:256, :250]).tolist() == [1]


@pytest.mark.usefixtures("certain")
def test_a_region_off_the_grid_binds_all_of_its_pixels(stores: Stores, csv: Csv, stage: Stage):
    rows = ["blob,a,57,41,100,90,", "line,b,0,0,64,64,", "none,,,,,,"]
    stage(stores, csv(*rows, header="slide_id,label,x,y,width,height,split"))
    assert 2 not in mask_of(stores["blob"])[41:131, 57:157]
    rows = ["blob,b,57,41,100,90,", "line,a,0,0,64,64,", "none,,,,,,"]
    stage(stores, csv(*rows, header="slide_id,label,x,y,width,height,split"), name="second")
    assert 1 not in mask_of(stores["blob"], "second")[41:131, 57:157]


def test_stored_scores_are_the_methods_in_bytes(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    given = np.random.default_rng(0).random((2, 8, 10), np.float32)
    given[:, 3, 4] = np.nan
    monkeypatch.setattr(camel, "score", lambda *a: ScoreMap.of_probabilities(given, STRIDE))
    stage(stores, csv())
    got = scores_of(stores["free"])
    np.testing.assert_array_equal(got, np.rint(np.nan_to_num(given) * 255).astype(np.uint8))
    assert SlideStore(stores["free"]).attributes("scores", "camel")["stride_px"] == STRIDE
    assert (mask_of(stores["free"])[96:128, 128:160] == IGNORE).all()


def test_a_painted_mask_is_constant_on_the_blocks_of_its_grid(stores: Stores):
    store = SlideStore(stores["free"])
    full = np.ones((SIZE[1], SIZE[0]), np.uint8)
    store.write_labels("tissue", {0: "glass", 1: "tissue"}, {}, [((0, 0), full)])
    grid = np.random.default_rng(1).integers(0, 4, (-(-SIZE[1] // 24), -(-SIZE[0] // 24))).astype(np.uint8)
    ((shard, mask),) = paint_mask(grid, 24, store)
    assert shard == (0, 0)
    assert mask.shape == (SIZE[1], SIZE[0])
    np.testing.assert_array_equal(mask[::24, ::24], grid)
    for y, x in np.ndindex(mask.shape):
        assert mask[y, x] == grid[y // 24, x // 24]


def test_a_store_at_another_resolution_fails_alone(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    stores |= tiled_pictures(tmp_path / "coarse", {"coarse": picture(9)}, patch_px=64, mpp=1.0, mpp_override=1.0)
    report, done = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "done") | {"coarse": "failed"}
    assert "has 1 um/px, the fit was trained at 0.5; tile with --mpp 0.5" in report.of("failed")[0]["reason"]
    assert report.exit_code == 1
    assert stores["coarse"] not in done
    assert len(done) == 6


def test_stain_must_be_read_alike(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    SlideStore(stores["free"]).normalise_stain()
    report, _ = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "done") | {"free": "failed"}
    assert (
        "the fit was trained without normalised stain; tile with --no-normalise-stain"
        in report.of("failed")[0]["reason"]
    )
    SlideStore(stores["blob"]).normalise_stain()
    with pytest.raises(ConfigError, match="some training stores were tiled with --normalise-stain and some without"):
        stage(stores, csv(), name="mixed")
    for path in stores.values():
        SlideStore(path).normalise_stain()
    assert stage(stores, csv(), name="even")[0].exit_code == 0
    assert read_checkpoint(Path(run.runs) / "even").normalise_stain
    assert not read_checkpoint(Path(run.runs) / "camel").normalise_stain


def test_training_stores_must_share_patch_and_resolution(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    rows = [*ROWS, "odd,a,"]
    other = tiled_pictures(tmp_path / "odd", {"odd": picture(9)}, patch_px=32)
    with pytest.raises(ConfigError, match=r"training stores differ: .* patches of \[32, 64\] px; tile them alike"):
        stage(stores | other, csv(*rows))
    other = tiled_pictures(tmp_path / "odd2", {"odd": picture(9)}, patch_px=64, mpp=1.0, mpp_override=1.0)
    with pytest.raises(ConfigError, match=r"training stores differ: 0\.5\.\.1 um/px \(.*, odd\)"):
        stage(stores | other, csv(*rows))


def test_a_slide_without_tissue_goes_through_with_an_empty_mask(
    stores: Stores, csv: Csv, stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    glass = np.full((SIZE[1], SIZE[0], 3), 243, np.uint8)
    stores |= tiled_pictures(tmp_path / "glass", {"bare": glass, "void": glass}, patch_px=64)
    report, _ = stage(stores, csv(*ROWS, "bare,a,"))
    assert statuses(report) == dict.fromkeys(stores, "done")
    assert (mask_of(stores["void"]) == 0).all()
    assert (mask_of(stores["bare"]) == 0).all()
    assert "line 7 (bare): no tissue, skipped" in caplog.text


def test_labels_that_no_longer_differ_without_empty_bags_are_refused(
    stores: Stores, csv: Csv, stage: Stage, tmp_path: Path
):
    glass = np.full((SIZE[1], SIZE[0], 3), 243, np.uint8)
    stores |= tiled_pictures(tmp_path / "glass", {"bare": glass}, patch_px=64)
    with pytest.raises(
        ConfigError,
        match="class a: all 2 training bags with tissue have the same label",
    ):
        stage(stores, csv("blob,a,", "both,a,", "bare,,"))


def test_rows_without_a_store_and_misplaced_regions_stop_the_stage_before_it_works(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    with pytest.raises(LabelsError, match="line 7: no store for slide gone"):
        stage(stores, csv(*ROWS, "gone,a,"))
    with pytest.raises(LabelsError, match="line 3: the region starts outside slide line"):
        stage(stores, csv("blob,a,0,0,64,64", "line,,900,0,64,64", header="slide_id,label,x,y,width,height"))
    assert not Path(run.runs).exists()


def test_damaged_weights_of_a_fit_are_an_error_not_a_new_fit(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    stage(stores, csv())
    (Path(run.runs) / "camel" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        stage(stores, csv())


def test_unknown_parameters_of_a_method_are_refused_by_their_dotted_path(stores: Stores, csv: Csv, run: RunConfig):
    config = PseudolabelConfig(labels=str(csv()), encoder="resnet18_quarter", pretrain=False)
    with pytest.raises(ConfigError, match=r"pseudolabel\.camel\.latice: unknown key; did you mean 'lattice'"):
        pseudolabel(list(stores.values()), PseudolabelOptions(config, {"camel": {"latice": 4}}), RunContext(run))


def test_parameters_of_what_is_not_there_are_refused(stores: Stores, csv: Csv, run: RunConfig):
    config = PseudolabelConfig(labels=str(csv()), encoder="resnet18_quarter", pretrain=False)
    with pytest.raises(ConfigError, match="parameters of lattice, no method or refinement"):
        pseudolabel(list(stores.values()), PseudolabelOptions(config, {"lattice": {"n": 4}}), RunContext(run))


def test_two_stores_of_one_slide_are_refused(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    twin = Path(shutil.copytree(stores["blob"], tmp_path / "twin" / "blob.zarr"))
    with pytest.raises(ConfigError, match="are stores of one slide; give one of them"):
        stage(stores | {"twin": twin}, csv())


def test_the_labels_snapshot_of_a_run_can_be_its_own_labels_file(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    stage(stores, csv())
    snapshot = Path(run.runs) / "camel" / "labels.csv"
    text = snapshot.read_text()
    stage(stores, snapshot, self_train=True, overwrite=True)
    assert snapshot.read_text() == text


def test_a_run_folder_of_something_else_is_not_touched(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    other = Path(run.runs) / "unet" / "model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"weights of a segmenter")
    (other.parent / "model.json").write_text("{}")
    with pytest.raises(StoreError, match="--name"):
        stage(stores, csv(), name="unet")
    assert other.read_bytes() == b"weights of a segmenter"


def test_masks_of_another_fit_are_found_before_the_work_begins(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    """The run folder is gone, the masks are not: nothing may be fitted only to be refused store by store."""
    stage(stores, csv())
    shutil.rmtree(run.runs)
    monkeypatch.setattr(camel, "fit", lambda *a: pytest.fail("fitted for nothing"))
    with pytest.raises(StoreError, match="--name"):
        stage(stores, csv(), self_train=True)
