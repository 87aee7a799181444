"""Training: the loss by its formula, the right slides, the same inputs only once, and a network that learns."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from support.two_colours import colour_mask, frame, paint, whole
from torch import Tensor, nn

from wsipipe.config.options import RunConfig, StitchConfig, TrainConfig
from wsipipe.errors import CheckpointError, ConfigError, StoreError
from wsipipe.nn.checkpoint import Checkpoint, read_checkpoint
from wsipipe.nn.encoders import MEAN, STD, Statistics, create_encoder, statistics_of
from wsipipe.nn.segmenters import encoder_of
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.progress import silent
from wsipipe.segment import learn
from wsipipe.segment import train as module
from wsipipe.segment.model import load_model
from wsipipe.segment.predict import predict_stores
from wsipipe.segment.slides import held_out, training_stores
from wsipipe.segment.stage import SegmentOptions
from wsipipe.segment.stage import run as segment
from wsipipe.segment.train import train
from wsipipe.store import SlideStore

TINY = TrainConfig(masks="truth", encoder="resnet18_quarter", steps=2, batch=2)


def ids(stores: dict[str, SlideStore]) -> list[str]:
    return [s.slide_id for s in stores]


def resplit(store: SlideStore, split: str) -> None:
    paint(store, colour_mask(store.read(frame(store))), split=split)


def test_masks_without_a_recorded_split_are_all_trained_on_but_empty_slides_are_not(
    stores: dict[str, SlideStore],
) -> None:
    assert ids(training_stores(list(stores.values()), TINY)) == ["left", "right"]


def test_the_split_that_the_masks_record_chooses_the_slides(stores: dict[str, SlideStore]) -> None:
    resplit(stores["left"], "train")
    resplit(stores["right"], "")
    assert ids(training_stores(list(stores.values()), TINY)) == ["left"]


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,split\nleft,test\nright,train\n",
        "\ufeffslide,split\nleft, val \nright, train\n",
        "slide_id,split\nleft,test\nright,\n",  # an empty split is train, as in labels.csv
    ],
)
def test_a_splits_file_wins_over_the_record(stores: dict[str, SlideStore], tmp_path: Path, text: str) -> None:
    resplit(stores["left"], "train")
    (tmp_path / "splits.csv").write_text(text, encoding="utf-8")
    config = dataclasses.replace(TINY, labels=str(tmp_path / "splits.csv"))
    assert ids(training_stores(list(stores.values()), config)) == ["right"]


def test_a_splits_file_may_look_as_labels_csv_may(stores: dict[str, SlideStore], tmp_path: Path) -> None:
    """Semicolons, capitals in the header, blank lines, ids with the suffix of their file."""
    (tmp_path / "splits.csv").write_text("Slide_ID;split\n\nleft.svs;test\nright.svs;Train\n;\n", encoding="utf-8")
    config = dataclasses.replace(TINY, labels=str(tmp_path / "splits.csv"))
    assert ids(training_stores(list(stores.values()), config)) == ["right"]


def test_a_splits_file_that_cannot_serve_is_refused(stores: dict[str, SlideStore], tmp_path: Path) -> None:
    bad = {
        "none.csv": None,
        "cols.csv": "slide_id,fold\nleft,train\n",
        "empty.csv": "",
        "all.csv": "slide_id,split\nleft,test\n",
        "both.csv": "slide_id,split\nleft,test\nright,train\nleft,train\n",
    }
    expected = {"none.csv": "--labels", "cols.csv": "split", "empty.csv": "split", "all.csv": "check the splits"}
    expected["both.csv"] = "left: in train and in another split"
    for name, text in bad.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=expected[name]):
            training_stores(list(stores.values()), dataclasses.replace(TINY, labels=str(tmp_path / name)))
    (tmp_path / "latin.csv").write_bytes("slide_id,split\nl\xe9ft,train\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.csv"):
        training_stores(list(stores.values()), dataclasses.replace(TINY, labels=str(tmp_path / "latin.csv")))


def test_without_masks_the_error_names_the_commands_that_make_them(stores: dict[str, SlideStore]) -> None:
    with pytest.raises(StoreError, match=r"no store has labels/camel; make it with: wsipipe pseudolabel, or: .*import"):
        training_stores(list(stores.values()), dataclasses.replace(TINY, masks="camel"))


def test_stores_that_disagree_on_the_classes_are_refused(stores: dict[str, SlideStore], run: RunConfig) -> None:
    paint(stores["right"], np.ones((331, 437), np.uint8), classes=["purple", "pink"])
    with pytest.raises(ConfigError, match="labels/truth names different classes"):
        train(list(stores.values()), TINY, RunContext(run, silent, False))


def test_a_patch_that_no_network_takes_is_refused_before_any_training(
    tmp_path: Path, coloured: Path, run: RunConfig
) -> None:
    from wsipipe.config.options import TileConfig
    from wsipipe.slides import SlideFile
    from wsipipe.store import SlideStore
    from wsipipe.tiling.stage import run as tile_slides

    config = TileConfig(patch_px=100, tissue_mpp=2.0, min_area_um2=100.0)
    _, paths = tile_slides({"left": SlideFile(coloured.parent / "left.svs")}, config, RunContext(run))
    store = SlideStore(paths[0])
    resplit(store, "train")
    with pytest.raises(ConfigError, match="patch or window of 100 px is not a multiple of 32 px"):
        train([store], TINY, RunContext(run, silent, False))


def test_the_checkpoint_says_what_it_is_for(stores: dict[str, SlideStore], run: RunConfig) -> None:
    path = train(list(stores.values()), TINY, RunContext(run, silent, False))
    assert path == Path(run.runs) / "unet" / "model.json"
    data = json.loads(path.read_text())
    assert data["classes"] == ["pink", "purple"]
    assert (data["mpp"], data["patch_px"]) == (0.5, 64)
    assert (data["network"], data["encoder"]) == ("unet", "resnet18_quarter")
    assert len(data["digest"]) == 32
    assert data["settings"]["steps"] == 2
    checkpoint, model = load_model(path)
    assert checkpoint == read_checkpoint(path)
    assert not model.training
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def first_layer(model: nn.Module) -> Tensor:
    return next(encoder_of(model).parameters()).detach()


def test_given_weights_start_the_encoder_name_it_and_belong_to_the_key(
    stores: dict[str, SlideStore], run: RunConfig, tmp_path: Path
) -> None:
    both = list(stores.values())
    own = Statistics((0.7, 0.6, 0.7), (0.1, 0.2, 0.3))
    torch.manual_seed(5)
    encoder = create_encoder("resnet18_quarter")
    weights = Checkpoint("encoder", "resnet18_quarter", (), 0.5, 64, "d", own.mean, own.std, {}).save(tmp_path, encoder)
    still = dataclasses.replace(TINY, lr=1e-12, encoder="", weights=str(weights))
    path = train(both, still, RunContext(run, silent, False))
    checkpoint, model = load_model(path)
    assert checkpoint.encoder == "resnet18_quarter"
    torch.testing.assert_close(first_layer(model), next(encoder.parameters()).detach())
    assert statistics_of(encoder_of(model)) == own
    assert train(both, still, RunContext(run, silent, False)) == path
    Checkpoint("encoder", "resnet18_quarter", (), 0.5, 64, "d", own.mean, own.std, {}).save(
        tmp_path, create_encoder("resnet18_quarter")
    )
    with pytest.raises(CheckpointError, match="was made from other inputs"):
        train(both, still, RunContext(run, silent, False))
    with pytest.raises(CheckpointError, match="weights of encoder 'resnet18_quarter', but --encoder is 'resnet18'"):
        train(both, dataclasses.replace(still, encoder="resnet18"), RunContext(run, silent, True))
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such weights file"):
        train(both, dataclasses.replace(still, weights="none.safetensors"), RunContext(run, silent, True))


def test_without_weights_the_encoder_starts_from_the_fit_of_the_masks_if_that_has_one(
    stores: dict[str, SlideStore], run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    both = list(stores.values())
    still = dataclasses.replace(TINY, lr=1e-12)
    folder = Path(run.runs) / "truth"
    torch.manual_seed(5)
    fitted = nn.ModuleDict({"encoder": create_encoder("resnet18_quarter"), "head": nn.Linear(1, 1)})
    note = Checkpoint("camel", "resnet18_quarter", ("pink", "purple"), 0.5, 64, "d", MEAN, STD, {})
    note.save(folder, fitted)
    _, model = load_model(train(both, still, RunContext(run, silent, False)))
    torch.testing.assert_close(first_layer(model), next(fitted["encoder"].parameters()).detach())
    note.save(folder, nn.Linear(1, 1))
    train(both, still, RunContext(run, silent, True))  # trained before: no new start
    _, model = load_model(train(both, dataclasses.replace(still, name="other"), RunContext(run, silent, False)))
    assert "starts from scratch, not from the fit of the masks" in caplog.text


def test_the_same_inputs_are_not_trained_twice_and_others_not_over_them(
    stores: dict[str, SlideStore], run: RunConfig
) -> None:
    both = list(stores.values())
    steps: list[str] = []

    def progress(task: str, done: int, total: int, note: str = "") -> None:
        steps.append(task)

    path = train(both, TINY, RunContext(run, progress, False))
    weights = path.with_suffix(".safetensors").read_bytes()
    assert steps.count("train") == 2
    assert train(both, TINY, RunContext(run, progress, False)) == path
    logged = dataclasses.replace(TINY, tensorboard=True)  # changes no weight
    assert train(both, logged, RunContext(run, progress, False)) == path
    assert steps.count("train") == 2
    for config, seed in ((dataclasses.replace(TINY, lr=1e-4), 0), (TINY, 1)):
        with pytest.raises(CheckpointError, match=r"made from other inputs; choose another --name.*--overwrite"):
            train(both, config, RunContext(dataclasses.replace(run, seed=seed), progress, False))
    resplit(stores["left"], "train")
    paint(stores["right"], np.ones((331, 437), np.uint8), split="train", digest="new")
    with pytest.raises(CheckpointError, match="made from other inputs"):
        train(both, TINY, RunContext(run, progress, False))
    assert path.with_suffix(".safetensors").read_bytes() == weights
    assert train(both, TINY, RunContext(run, progress, True)) == path
    assert path.with_suffix(".safetensors").read_bytes() != weights
    other = train(both, dataclasses.replace(TINY, name="second"), RunContext(run, progress, False))
    assert other == Path(run.runs) / "second" / "model.json"


def test_the_same_seed_gives_the_same_weights(stores: dict[str, SlideStore], run: RunConfig, tmp_path: Path) -> None:
    first = train(list(stores.values()), TINY, RunContext(run, silent, False))
    torch.manual_seed(123)
    second = train(
        list(stores.values()), TINY, RunContext(dataclasses.replace(run, runs=str(tmp_path / "b")), silent, False)
    )
    assert first.with_suffix(".safetensors").read_bytes() == second.with_suffix(".safetensors").read_bytes()


def test_slides_are_held_out_by_patient(stores: dict[str, SlideStore]) -> None:
    both = [stores["left"], stores["right"]]
    assert held_out(both, "truth", 0.0, 0) == (both, [])
    own, aside = held_out(both, "truth", 0.1, 0)
    assert len(own) == len(aside) == 1
    assert {ids(held_out(both, "truth", 0.5, seed)[1])[0] for seed in range(8)} == {"left", "right"}
    for store in both:
        paint(store, colour_mask(store.read(frame(store))), patient="p")
    with pytest.raises(ConfigError, match=r"segment.validation: 0.5 of 1 patients leaves none to learn from"):
        held_out(both, "truth", 0.5, 0)


def test_a_training_with_all_that_there_is_runs_and_leaves_its_curves(
    stores: dict[str, SlideStore], run: RunConfig
) -> None:
    config = dataclasses.replace(
        TINY,
        steps=20,
        self_training_rounds=2,
        gce_q=0.7,
        mosaic_prob=0.5,
        validation=0.5,
        patience=3,
        lr=1e-3,
        teacher_threshold=0.6,
    )
    path = train(list(stores.values()), config, RunContext(run, silent, False))
    folder = path.parent
    made = ["model.json", "model.safetensors", "training.csv", "training.png"]
    assert sorted(p.name for p in folder.iterdir()) == made
    with (folder / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == [str(i + 1) for i in range(len(rows))]
    assert len([r for r in rows if r["held_out_loss"]]) == len(rows)
    assert all(float(r["held_out_auc"] or "nan") != 0 for r in rows)
    assert imagecodecs.png_decode((folder / "training.png").read_bytes()).shape[1] == 840


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(
    stores: dict[str, SlideStore], run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(learn, "segmentation_loss", lambda logits, mask, q: logits.mean() * 0 + next(values))
    with pytest.raises(CheckpointError, match=r"loss is nan at step 2; .*last good weights are in .*last-good\.json"):
        train(list(stores.values()), dataclasses.replace(TINY, steps=4), RunContext(run, silent, False))
    _, model = load_model(Path(run.runs) / "unet" / "last-good.json")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not (Path(run.runs) / "unet" / "model.json").exists()


def test_what_is_kept_is_the_average_unless_it_is_left_out(stores: dict[str, SlideStore], run: RunConfig) -> None:
    both = list(stores.values())
    config = dataclasses.replace(TINY, steps=6, lr=1e-2)
    _, averaged = load_model(train(both, config, RunContext(run, silent, False)))
    _, last = load_model(
        train(both, dataclasses.replace(config, ema=False, name="last"), RunContext(run, silent, False))
    )
    assert not torch.equal(first_layer(averaged), first_layer(last))


@pytest.mark.slow
def test_two_processes_learn_the_same_network_together(coloured: Path, tmp_path: Path) -> None:
    """Under torchrun: one checkpoint, written once, and near what one process learns (normalised by half batches)."""
    code = (
        "import sys; from pathlib import Path; from wsipipe.config.options import RunConfig, TrainConfig; "
        "from wsipipe.runtime.context import RunContext; from wsipipe.segment.train import train; "
        "from wsipipe.store import SlideStore; "
        "stores = [SlideStore(Path(sys.argv[1]) / f'{n}.zarr') for n in ('left', 'right')]; "
        "config = TrainConfig(masks='truth', encoder='resnet18_quarter', steps=4, batch=4, validation=0.5); "
        "print(train(stores, config, RunContext(RunConfig(runs=sys.argv[2], device='cpu', workers=1))))"
    )
    script = tmp_path / "go.py"
    script.write_text(code)
    for name, launch in {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }.items():
        command = [*launch, str(script), str(coloured), str(tmp_path / name)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model.json") == (1 if name == "one" else 2)
    one, two = (load_model(tmp_path / n / "unet")[1] for n in ("one", "two"))
    assert not torch.equal(first_layer(one), first_layer(two)), "batches were not shared"
    torch.testing.assert_close(first_layer(one), first_layer(two), atol=0.02, rtol=0)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_training_goes_on_to_the_same_bits(
    stores: dict[str, SlideStore], run: RunConfig, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0.0)
    config = dataclasses.replace(TINY, steps=4, self_training_rounds=1, mosaic_prob=0.5, teacher_threshold=0.5)
    steps: list[int] = []

    def dies(task: str, done: int, total: int, note: str = "") -> None:
        steps.append(done)
        if len(steps) == stop:
            raise KeyboardInterrupt

    whole_run = train(list(stores.values()), dataclasses.replace(config, name="whole"), RunContext(run, silent, False))
    cut = dataclasses.replace(config, name="cut")
    with pytest.raises(KeyboardInterrupt):
        train(list(stores.values()), cut, RunContext(run, dies, False))
    folder = Path(run.runs) / "cut"
    assert [p.name for p in folder.iterdir()] == ["training.state"]
    path = train(
        list(stores.values()), cut, RunContext(run, lambda task, done, total, note="": steps.append(done), False)
    )
    assert steps == [1, 2, 3, 4], "some step was made twice or left out"
    assert path.with_suffix(".safetensors").read_bytes() == whole_run.with_suffix(".safetensors").read_bytes()
    assert not (folder / "training.state").exists()


@pytest.mark.parametrize("name", ["tissue", "truth", "../out", ""])
def test_a_name_that_would_take_something_elses_place_is_refused(
    stores: dict[str, SlideStore], run: RunConfig, name: str
) -> None:
    config = dataclasses.replace(TINY, name=name, architecture="unet" if name else "tissue")
    with pytest.raises(ConfigError, match="name"):
        segment([s.path for s in stores.values()], SegmentOptions(config), RunContext(run))
    assert not (Path(run.runs)).exists()


def test_without_stitch_the_checkpoint_is_what_was_made(stores: dict[str, SlideStore], run: RunConfig) -> None:
    report, made = segment([s.path for s in stores.values()], SegmentOptions(TINY), RunContext(run))
    assert (report.exit_code, made) == (0, [Path(run.runs) / "unet" / "model.json"])
    assert stores["left"].names("scores") == []


def test_a_short_training_learns_two_colours(stores: dict[str, SlideStore], run: RunConfig) -> None:
    """Trained on one slide, right on more than 90 % of the tissue of the other."""
    resplit(stores["left"], "train")
    resplit(stores["right"], "")
    config = dataclasses.replace(TINY, steps=40, batch=8, lr=3e-3)
    report, made = segment([s.path for s in stores.values()], SegmentOptions(config, StitchConfig()), RunContext(run))
    assert report.exit_code == 0
    assert sorted(p.stem for p in made) == ["bare", "left", "right"]
    store = stores["right"]
    tissue = whole(store.labels("tissue")) == 1
    truth, answer = whole(store.labels("truth"))[tissue], whole(store.labels("unet"))[tissue]
    judged = (truth != 0) & (answer != 255)
    assert judged.mean() > 0.8
    assert (truth == answer)[judged].mean() > 0.9
    again, _ = predict_stores([store], Path(run.runs) / "unet", StitchConfig(), RunContext(run))
    assert again.rows[0]["status"] == "skipped"


def test_the_log_for_tensorboard_holds_the_curves(stores: dict[str, SlideStore], run: RunConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(TINY, tensorboard=True, steps=3)
    path = train(list(stores.values()), config, RunContext(run, silent, False))
    log = EventAccumulator(str(path.parent / "tensorboard")).Reload()
    with (path.parent / "training.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert [e.step for e in log.Scalars("loss")] == [1, 2, 3]
    assert [e.value for e in log.Scalars("loss")] == pytest.approx(losses, rel=1e-5)
    assert all(e.value > 0 for e in log.Scalars("patches/s"))
