"""Prediction: probabilities become masks and scores, whatever the batch and the budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import torch
from support.stitching import bytes_of, slow_scores
from support.two_colours import PATCH_PX, CountingNet, RedNet, SureNet, frame, paint, whole
from support.types import MakePath, WriteSvs
from torch import nn

from wsipipe.config.options import RunConfig, StitchConfig, TileConfig
from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.segment import predict, stitch
from wsipipe.segment.predict import Network, predict_stores, stitching
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.store.map_writer import ResumableMapWriter
from wsipipe.tiling.stage import run as tile_slides

SMALL = StitchConfig(score_stride_px=1)


def covered(store: SlideStore, window: int, stride: int) -> np.ndarray:
    """Pixels under any window that shares a square of 64 px with a usable patch: bool [h, w]."""
    width, height = store.grid.size_px
    near, out = np.zeros((height, width), bool), np.zeros((height, width), bool)

    def outward(w: Window) -> tuple[slice, slice]:
        return (
            slice(w.y_px // 64 * 64, -(-(w.y_px + w.height_px) // 64) * 64),
            slice(w.x_px // 64 * 64, -(-(w.x_px + w.width_px) // 64) * 64),
        )

    for w in store.patches().windows:
        near[outward(w)] = True
    for y in sorted({*range(0, max(1, height - window), stride), max(0, height - window)}):
        for x in sorted({*range(0, max(1, width - window), stride), max(0, width - window)}):
            if near[outward(Window(x, y, window, window))].any():
                out[y : y + window, x : x + window] = True
    return out


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.67, 0.75])
def test_the_red_channel_of_the_slide_comes_back_as_scores(
    stores: dict[str, SlideStore], coloured: Path, run: RunConfig, checkpoint_of: MakePath, overlap: float
) -> None:
    store = stores["left"]
    config = dataclasses.replace(SMALL, overlap=overlap)
    report, done = predict_stores([store], checkpoint_of(RedNet()), config, RunContext(run))
    assert (report.exit_code, done) == (0, [store.path])
    with openslide.OpenSlide(coloured.parent / "left.svs") as slide:
        red = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))[..., 0]
    scores = whole(store.scores("unet"))[0].astype(int)
    mask, tissue = whole(store.labels("unet")), whole(store.labels("tissue"))
    known = covered(store, PATCH_PX, round(PATCH_PX * (1 - overlap)))
    assert known.any()
    assert not known.all()
    assert np.abs(scores - red)[known].max() <= 1
    assert (scores[~known] == 0).all()
    assert (mask[~known] == 255).all()
    assert (mask[known & (tissue == 0)] == 0).all()
    sure = known & (tissue == 1) & (np.abs(red - 127.5) > 1)
    np.testing.assert_array_equal(mask[sure], (red[sure] > 127).astype(int))


def test_a_network_that_is_sure_paints_all_tissue_and_scores_1_wherever_covered(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    store = stores["left"]
    predict_stores([store], checkpoint_of(SureNet()), SMALL, RunContext(run))
    known, tissue = covered(store, PATCH_PX, PATCH_PX // 2), whole(store.labels("tissue"))
    np.testing.assert_array_equal(whole(store.scores("unet"))[0], np.where(known, 255, 0))
    np.testing.assert_array_equal(whole(store.labels("unet")), np.where(known, tissue == 1, 255))
    every_patch = np.zeros(tissue.shape, bool)
    for w in store.patches().windows:
        every_patch[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px] = True
    assert known[every_patch].all()


@pytest.mark.parametrize("stride", [3, 8, 50])
def test_scores_are_area_means_on_a_real_store_of_odd_size(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath, stride: int
) -> None:
    store = stores["left"]
    predict_stores(
        [store], checkpoint_of(RedNet()), dataclasses.replace(SMALL, score_stride_px=stride), RunContext(run)
    )
    p = store.read(frame(store))[None, ..., 0] / 255.0
    p[:, ~covered(store, PATCH_PX, PATCH_PX // 2)] = np.nan
    found = whole(store.scores("unet"))
    assert store.attributes("scores", "unet")["stride_px"] == stride
    np.testing.assert_allclose(found / 255, slow_scores(p, stride), atol=0.6 / 255)


def test_a_slide_longer_than_one_shard_is_written_shard_by_shard(
    tmp_path: Path, svs_writer: WriteSvs, run: RunConfig, checkpoint_of: MakePath
) -> None:
    rgb = np.full((4600, 192, 3), 243, np.uint8)
    rgb[100:4500, 20:170] = (180, 60, 120)
    rgb[4200:4400, 20:170, 0] = 90
    svs_writer(tmp_path / "tall.svs", rgb, factors=(4,))
    config = TileConfig(patch_px=64, codec="zstd", tissue_mpp=2.0)
    report, paths = tile_slides({"tall": SlideFile(tmp_path / "tall.svs")}, config, RunContext(run))
    assert report.exit_code == 0
    store = SlideStore(paths[0])
    predict_stores([store], checkpoint_of(RedNet()), SMALL, RunContext(run))
    assert store.labels("unet").spec.shards == (2, 1)
    red = store.read(frame(store))[..., 0].astype(int)
    known, tissue = covered(store, 64, 32), whole(store.labels("tissue"))
    scores, mask = whole(store.scores("unet"))[0], whole(store.labels("unet"))
    assert np.abs(scores - red)[known].max() <= 1
    assert known[4100:4500, 30:160].all()
    sure = known & (tissue == 1) & (np.abs(red - 127.5) > 1)
    np.testing.assert_array_equal(mask[sure], (red[sure] > 127).astype(int))
    assert (mask[4250:4350, 40:150] == 0).all()


def test_pixels_that_could_not_be_read_stay_255(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    store = stores["left"]
    tissue = whole(store.labels("tissue")).copy()
    tissue[100:150, 100:200] = 255
    paint(store, tissue, "tissue")
    predict_stores([store], checkpoint_of(SureNet()), SMALL, RunContext(run))
    assert (whole(store.labels("unet"))[100:150, 100:200] == 255).all()
    assert whole(store.labels("unet"))[160, 150] == 1


def test_maps_do_not_depend_on_the_number_of_workers(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    found = []
    for name, workers in (("one", 1), ("four", 4)):
        context = RunContext(dataclasses.replace(run, workers=workers))
        predict_stores([stores["left"]], checkpoint_of(RedNet()), SMALL, context, name)
        found.append((whole(stores["left"].labels(name)), whole(stores["left"].scores(name))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def convolution(seed: int = 0) -> nn.Module:
    """A network whose answer depends on the neighbours of a pixel and on the border of the window."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(3, 2, 5, padding=2).eval()


def test_an_answer_does_not_depend_on_the_batch() -> None:
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 64, 64), np.uint8))
    network = Network(convolution(), torch.device("cpu"))
    p = network(rgb)()
    assert (p.shape, p.dtype) == ((7, 2, 64, 64), np.float32)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    for some in ([0, 1, 2], [6], [5, 4, 3, 2]):
        np.testing.assert_allclose(network(rgb[some])(), p[some], atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_answers_of_the_cpu() -> None:
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 64, 64), np.uint8))
    expected = Network(convolution(), torch.device("cpu"), 4)(rgb)()
    on = torch.device("cuda")
    network = Network(convolution().to(on), on, 4, batch=8)
    pending = [network(network.pixels(rgb[i:].numpy())) for i in range(7)]
    for i, answer in enumerate(pending):
        np.testing.assert_allclose(answer(), expected[i:], atol=2e-2)


@pytest.mark.parametrize("memory_mb", [12, 3, 2])
def test_the_budget_of_memory_does_not_change_a_byte(
    stores: dict[str, SlideStore],
    run: RunConfig,
    checkpoint_of: MakePath,
    monkeypatch: pytest.MonkeyPatch,
    memory_mb: int,
) -> None:
    store, net = stores["left"], convolution()
    monkeypatch.setattr(predict, "SHARD_PX", 256)
    predict_stores([store], checkpoint_of(net), SMALL, RunContext(run))
    narrow = dataclasses.replace(SMALL, memory_mb=memory_mb)
    chosen = stitch.fit_to_budget(stitching(narrow, predict.load_model(None)[0]), 2, 64, 256)
    assert chosen != (64, 512)
    predict_stores([store], checkpoint_of(net), narrow, RunContext(run), "small")
    small = {k.replace("/small/", "/unet/"): v for k, v in bytes_of(store, "small").items() if "/c/" in k}
    assert small == {k: v for k, v in bytes_of(store, "unet").items() if "/c/" in k}


def test_views_and_weights_are_part_of_what_a_map_is_made_of(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    path = checkpoint_of(convolution())
    predict_stores([stores["left"]], path, SMALL, RunContext(run))
    first = whole(stores["left"].scores("unet"))
    for options in ({"views": 8}, {"blend": "constant"}):
        changed = dataclasses.replace(SMALL, **options)
        report, _ = predict_stores([stores["left"]], path, changed, RunContext(run))
        assert "made from other inputs" in report.rows[0]["reason"]
        predict_stores([stores["left"]], path, changed, RunContext(run, overwrite=True))
        assert not np.array_equal(whole(stores["left"].scores("unet")), first)


def test_the_ledger_and_the_log_say_how_fast_it_went(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath, caplog: pytest.LogCaptureFixture
) -> None:
    net = CountingNet()
    told: list[tuple[str, int, int]] = []
    with caplog.at_level("INFO"):
        report, _ = predict_stores(
            [stores["left"]],
            checkpoint_of(net),
            SMALL,
            RunContext(run, lambda task, i, n, note="": told.append((task, i, n))),
        )
    row = report.rows[0]
    assert int(row["windows"]) == net.windows > 50
    assert float(row["per_s"]) > 0
    assert 0 < float(row["busy"]) <= 1
    assert int(row["peak_mib"]) > 50
    assert f"left: {net.windows} windows" in caplog.text
    assert ("stitch left", net.windows, net.windows) in told


def test_a_map_that_another_process_makes_is_not_touched(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    store = stores["left"]
    with ResumableMapWriter(store, "unet", "other", 1, 8):
        report, done = predict_stores([store], checkpoint_of(RedNet()), SMALL, RunContext(run))
    assert (report.exit_code, done) == (1, [])
    assert "labels/unet is locked by process" in report.rows[0]["reason"]


def test_a_slide_smaller_than_a_window_is_mapped_whole(
    tmp_path: Path, svs_writer: WriteSvs, run: RunConfig, checkpoint_of: MakePath
) -> None:
    rgb = np.full((50, 70, 3), 243, np.uint8)
    rgb[5:45, 5:65] = (180, 60, 120)
    svs_writer(tmp_path / "tiny.svs", rgb, factors=())
    config = TileConfig(patch_px=32, codec="zstd", tissue_mpp=1.0, min_area_um2=10.0)
    _, (path,) = tile_slides({"tiny": SlideFile(tmp_path / "tiny.svs")}, config, RunContext(run))
    store = SlideStore(path)
    report, _ = predict_stores(
        [store], checkpoint_of(RedNet()), dataclasses.replace(SMALL, window_px=128), RunContext(run)
    )
    assert report.exit_code == 0, report.rows
    red = store.read(frame(store))[..., 0].astype(int)
    assert np.abs(whole(store.scores("unet"))[0] - red).max() <= 1
    assert (whole(store.labels("unet")) != 255).all()


def test_the_second_run_skips_what_the_first_one_made(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    path = checkpoint_of(SureNet())
    both = [stores["left"], stores["right"]]
    first, done = predict_stores(both, path, SMALL, RunContext(run))
    assert [r["status"] for r in first.rows] == ["done", "done"]
    shards = {p: p.stat().st_mtime_ns for s in both for p in (s.path / "labels" / "unet").rglob("*") if p.is_file()}
    second, again = predict_stores(both, path, SMALL, RunContext(run))
    assert [r["status"] for r in second.rows] == ["skipped", "skipped"]
    assert again == done == [s.path for s in both]
    assert shards == {p: p.stat().st_mtime_ns for p in shards}


def test_maps_of_another_checkpoint_are_not_replaced_unasked(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    predict_stores([stores["left"]], checkpoint_of(SureNet(), digest="one"), SMALL, RunContext(run))
    before = whole(stores["left"].scores("unet"))
    report, done = predict_stores([stores["left"]], checkpoint_of(RedNet(), digest="two"), SMALL, RunContext(run))
    assert (report.exit_code, done) == (1, [])
    assert "labels/unet was made from other inputs" in report.rows[0]["reason"]
    assert "--name" in report.rows[0]["reason"]
    assert "--overwrite" in report.rows[0]["reason"]
    np.testing.assert_array_equal(whole(stores["left"].scores("unet")), before)
    other, _ = predict_stores([stores["left"]], checkpoint_of(RedNet(), digest="two"), SMALL, RunContext(run), "second")
    assert other.exit_code == 0
    report, done = predict_stores(
        [stores["left"]], checkpoint_of(RedNet(), digest="two"), SMALL, RunContext(run, overwrite=True)
    )
    assert (report.exit_code, done) == (0, [stores["left"].path])
    assert not np.array_equal(whole(stores["left"].scores("unet")), before)


@pytest.mark.parametrize("change", [{"overlap": 0.25}, {"window_px": 32}, {"score_stride_px": 4}])
def test_other_settings_make_another_map(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath, change: Any
) -> None:
    path = checkpoint_of(SureNet())
    predict_stores([stores["left"]], path, SMALL, RunContext(run))
    report, _ = predict_stores([stores["left"]], path, dataclasses.replace(SMALL, **change), RunContext(run))
    assert "made from other inputs" in report.rows[0]["reason"]


def test_a_store_at_another_resolution_fails_alone(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    report, done = predict_stores([stores["left"]], checkpoint_of(SureNet(), mpp=1.0), SMALL, RunContext(run))
    assert (report.exit_code, done) == (1, [])
    assert report.rows[0]["status"] == "failed"
    assert "has 0.5 um/px, the network was trained at 1; tile with --mpp 1" in report.rows[0]["reason"]
    close = predict_stores([stores["left"]], checkpoint_of(SureNet(), mpp=0.51), SMALL, RunContext(run))[0]
    assert close.exit_code == 0
    assert (Path(run.runs) / "unet" / "segment.csv").read_text().splitlines()[1].startswith("left,done")


def test_a_store_whose_stain_is_read_otherwise_fails_alone(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    stores["left"].normalise_stain()
    report, _ = predict_stores(list(stores.values())[:2], checkpoint_of(SureNet()), SMALL, RunContext(run))
    assert [r["status"] for r in report.rows] == [
        "failed" if s.slide_id == "left" else "done" for s in list(stores.values())[:2]
    ]
    assert "the network was trained without normalised stain" in report.of("failed")[0]["reason"]


def test_a_slide_without_tissue_gets_an_empty_map(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    report, done = predict_stores([stores["bare"]], checkpoint_of(SureNet()), SMALL, RunContext(run))
    assert (report.exit_code, done) == (0, [stores["bare"].path])
    assert (whole(stores["bare"].labels("unet")) == 255).all()
    assert (whole(stores["bare"].scores("unet")) == 0).all()


def test_a_window_that_no_network_takes_is_refused_at_once(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath
) -> None:
    config = dataclasses.replace(SMALL, window_px=100)
    with pytest.raises(ConfigError, match=r"window of 100 px is not a multiple of 32 px.*--window"):
        predict_stores([stores["left"]], checkpoint_of(SureNet()), config, RunContext(run))
    assert stores["left"].names("scores") == []


def test_a_missing_checkpoint_says_how_to_make_one(
    stores: dict[str, SlideStore], run: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint here; train one with: wsipipe segment"):
        predict_stores([stores["left"]], tmp_path / "none.json", SMALL, RunContext(run))
