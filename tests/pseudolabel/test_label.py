"""The stage: fits are reused or replaced but never mixed, labels bind what is painted, one bad store costs itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from textures import plant, tiled_pictures, tissue

from wsipipe.config import PretrainConfig, PseudolabelConfig, RunConfig
from wsipipe.errors import CheckpointError, ConfigError, LabelsError, StoreError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.nn.checkpoint import Checkpoint, read_checkpoint, save_weights
from wsipipe.nn.encoders import Statistics, create_encoder
from wsipipe.pretrain.stage import pretrain
from wsipipe.pseudolabel.label import painted, pseudolabel
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.pseudolabel.methods import camel
from wsipipe.runtime import Report
from wsipipe.store import SlideStore

Stores = dict[str, Path]
Stage = Callable[..., tuple[Report, list[Path]]]
Csv = Callable[..., Path]

BRIEF = {"lattice": 2, "selector_steps": 2, "retrain_steps": 2}
STRIDE = 32
"""Side of an instance."""

ROWS = ("blob,a,", "line,b,", "both,a;b,", "none,,", "held,,test")
SIZE = (320, 256)


def picture(seed: int, kinds: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    """Tissue left of x = 256, glass right of it."""
    rgb = np.full((SIZE[1], SIZE[0], 3), 243, np.uint8)
    rgb[:, :256] = tissue((256, SIZE[1]), seed)
    for kind in kinds:
        plant(rgb, (64, 64 * kind), 64, kind)
    return rgb


@pytest.fixture(scope="module")
def tiled_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of five labelled slides and one without a row (`free`), patches of 64 px."""
    folder = tmp_path_factory.mktemp("cohort")
    kinds = {"blob": (0,), "line": (1,), "both": (0, 1), "none": (), "held": (0,), "free": (1,)}
    tiled_pictures(folder, {n: picture(i, k) for i, (n, k) in enumerate(kinds.items())}, patch_px=64)
    return folder / "stores"


@pytest.fixture
def stores(tmp_path: Path, tiled_cohort: Path) -> Stores:
    """Copies of the cohort's stores, by slide id."""
    shutil.copytree(tiled_cohort, tmp_path / "stores")
    return {p.stem: p for p in sorted((tmp_path / "stores").glob("*.zarr"))}


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    """`csv(*rows, header=..)` writes labels.csv."""

    def write(*rows: str, header: str = "slide_id,label,split") -> Path:
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *(rows or ROWS)]) + "\n")
        return path

    return write


@pytest.fixture
def stage(quick: Stage) -> Stage:
    """`stage(stores, labels, ..)`: the stage with two steps of everything."""

    def go(stores: Stores, labels: Path, **more: object) -> tuple[Report, list[Path]]:
        return quick(stores, labels, BRIEF, **more)

    return go


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is sure of every class everywhere."""

    def score(model: object, store: SlideStore, lattice: object, params: object, on: object) -> ScoreMap:
        shape = SIZE[1] // STRIDE, SIZE[0] // STRIDE
        return ScoreMap(np.stack([np.full(shape, v, np.float32) for v in (1.0, 0.9)]), STRIDE)

    monkeypatch.setattr(camel, "score", score)


def mask_of(path: Path, name: str = "camel") -> NDArray[np.uint8]:
    return SlideStore(path).labels(name).read(Window(0, 0, *SIZE))


def scores_of(path: Path, name: str = "camel") -> NDArray[np.uint8]:
    return SlideStore(path).scores(name).read(Window(0, 0, SIZE[0] // STRIDE, SIZE[1] // STRIDE))


def tissue_of(path: Path) -> NDArray[np.bool_]:
    return mask_of(path, "tissue") == 1


def statuses(report: Report) -> dict[str, str]:
    return {r["item"]: r["status"] for r in report.rows}


def written(stores: Stores) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for p in stores.values() for f in p.rglob("camel/**/*") if f.is_file()}


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
    assert {p.name for p in folder.iterdir()} == names
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
    with pytest.raises(StoreError, match=r"holds a fit of other inputs; choose another --name, .* --overwrite"):
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
def test_a_class_that_a_slide_label_denies_is_never_painted_in_it(stores: Stores, csv: Csv, stage: Stage):
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
    assert np.unique(mask[64:128, :192]).tolist() == [1], "no label speaks of these patches"
    assert np.unique(mask_of(stores["line"])[:256, :250]).tolist() == [1]


@pytest.mark.usefixtures("certain")
def test_a_region_off_the_lattice_binds_all_of_its_pixels(stores: Stores, csv: Csv, stage: Stage):
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
    monkeypatch.setattr(camel, "score", lambda *a: ScoreMap(given, STRIDE))
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
    ((shard, mask),) = painted(grid, 24, store)
    assert shard == (0, 0)
    assert mask.shape == (SIZE[1], SIZE[0])
    np.testing.assert_array_equal(mask[::24, ::24], grid)
    for y, x in np.ndindex(mask.shape):
        assert mask[y, x] == grid[y // 24, x // 24]


def test_a_store_at_another_resolution_fails_alone(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    stores |= tiled_pictures(tmp_path / "coarse", {"coarse": picture(9)}, patch_px=64, mpp=1.0, mpp_override=1.0)
    report, done = stage(stores, csv())
    assert statuses(report) == dict.fromkeys(stores, "done") | {"coarse": "failed"}
    assert "is at 1 um/px, the fit at 0.5; tile it with --mpp 0.5" in report.of("failed")[0]["reason"]
    assert report.exit_code == 1
    assert stores["coarse"] not in done
    assert len(done) == 6


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
    assert "line 7 (bare): no tissue, left out" in caplog.text


def test_labels_that_no_longer_differ_without_empty_bags_are_refused(
    stores: Stores, csv: Csv, stage: Stage, tmp_path: Path
):
    glass = np.full((SIZE[1], SIZE[0], 3), 243, np.uint8)
    stores |= tiled_pictures(tmp_path / "glass", {"bare": glass}, patch_px=64)
    with pytest.raises(ConfigError, match="class a: after leaving out empty bags all training bags say the same"):
        stage(stores, csv("blob,a,", "both,a,", "bare,,"))


def test_rows_without_a_store_and_misplaced_regions_stop_the_stage_before_it_works(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig
):
    with pytest.raises(LabelsError, match="line 7: no store for slide gone"):
        stage(stores, csv(*ROWS, "gone,a,"))
    with pytest.raises(LabelsError, match="line 3: the region starts outside slide line"):
        stage(stores, csv("blob,a,0,0,64,64", "line,,900,0,64,64", header="slide_id,label,x,y,width,height"))
    assert not Path(run.runs).exists()


FEW = PretrainConfig(steps=2, batch=8)


def pretrained(run: RunConfig) -> list[Path]:
    """The checkpoints of encoders that fits pretrained."""
    return sorted(Path(run.runs).glob("pretrain-*/model.json"))


def test_a_pretrained_encoder_is_shared_by_fits_and_not_made_again_after_a_stop(
    stores: Stores, csv: Csv, stage: Stage, run: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    real = camel.fit

    def broken(bags: object, lattice: object, params: object, given: object) -> None:
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


def test_how_the_encoder_is_pretrained_belongs_to_the_key_of_the_fit(stores: Stores, csv: Csv, stage: Stage):
    stage(stores, csv(), pretrain=True, pretraining=FEW)
    with pytest.raises(StoreError, match="holds a fit of other inputs"):
        stage(stores, csv(), pretrain=True, pretraining=replace(FEW, method="simclr"))
    stage(stores, csv(), pretrain=False, name="scratch", pretraining=FEW)
    other = stage(stores, csv(), pretrain=False, name="scratch", pretraining=replace(FEW, steps=1))
    assert set(statuses(other[0]).values()) == {"skipped"}


def test_pretraining_sees_no_slide_that_is_held_out(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    from wsipipe.pseudolabel import label

    real = label.encoder_of
    monkeypatch.setattr(label, "encoder_of", lambda s, *a: (seen.extend(x.slide_id for x in s), real(s, *a))[1])
    stage(stores, csv(), pretrain=True, pretraining=FEW)
    assert sorted(seen) == ["blob", "both", "free", "line", "none"]


def test_a_second_fit_with_the_same_encoder_reads_all_features_from_the_stores(
    stores: Stores, csv: Csv, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    from wsipipe.pseudolabel import embed as module

    real, crops = module.apply_in_batches, []
    monkeypatch.setattr(
        module, "apply_in_batches", lambda model, x, *a, **k: (crops.append(len(x)), real(model, x, *a, **k))[1]
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
    _, (path,) = pretrain(list(stores.values()), config, run)
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
    with pytest.raises(StoreError, match="holds a fit of other inputs"):
        stage(stores, csv(), weights=str(weights), pretrain=True)


def test_weights_that_do_not_fit_or_are_missing_are_named(stores: Stores, csv: Csv, stage: Stage, tmp_path: Path):
    save_weights(tmp_path / "wide.safetensors", create_encoder("resnet18_half"))
    with pytest.raises(CheckpointError, match=r"wide\.safetensors: does not fit this encoder .* check --encoder"):
        stage(stores, csv(), weights=str(tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such weights file"):
        stage(stores, csv(), weights=str(tmp_path / "gone.safetensors"))


def test_damaged_weights_of_a_fit_are_an_error_not_a_new_fit(stores: Stores, csv: Csv, stage: Stage, run: RunConfig):
    stage(stores, csv())
    (Path(run.runs) / "camel" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        stage(stores, csv())


def test_unknown_parameters_of_a_method_are_refused_by_their_dotted_path(stores: Stores, csv: Csv, run: RunConfig):
    config = PseudolabelConfig(labels=str(csv()), encoder="resnet18_quarter", pretrain=False)
    with pytest.raises(ConfigError, match=r"pseudolabel\.camel\.latice: unknown key; did you mean 'lattice'"):
        pseudolabel(list(stores.values()), config, {"latice": 4}, run)


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
