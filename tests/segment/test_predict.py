"""Prediction: probabilities become mask shards and area-mean scores, whatever the batch, the threads and the shards."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_colours import PATCH_PX, RedNet, SureNet, frame, paint, whole

from wsipipe.config import SegmentConfig, TileConfig
from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.geometry import Window
from wsipipe.segment import predict
from wsipipe.segment.predict import on_patches, predict_stores, predictor
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.tiling.tile import tile_slides

SMALL = SegmentConfig(score_stride_px=1)


class FakeStore:
    """As much of a store as `_Bands` asks for: a size and a tissue mask."""

    def __init__(self, tissue: np.ndarray) -> None:
        self.tissue = tissue
        self.grid = dataclasses.make_dataclass("G", ["size_px"])((tissue.shape[1], tissue.shape[0]))

    def labels(self, name: str) -> FakeStore:
        assert name == "tissue"
        return self

    def read(self, w: Window) -> np.ndarray:
        return self.tissue[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]


def slow_scores(p: np.ndarray, stride: int) -> np.ndarray:
    """Mean of the known pixels of each square, 0 where there is none: p [K, h, w] with nan -> [K, rows, cols]."""
    k, h, w = p.shape
    out = np.zeros((k, -(-h // stride), -(-w // stride)))
    for r in range(out.shape[1]):
        for c in range(out.shape[2]):
            square = p[:, r * stride : (r + 1) * stride, c * stride : (c + 1) * stride]
            if not np.isnan(square[0]).all():
                out[:, r, c] = np.nanmean(square.reshape(k, -1), axis=1)
    return out


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
def test_the_red_channel_of_the_slide_comes_back_as_scores(stores, coloured, run, checkpoint_of, overlap):
    store = stores["left"]
    config = dataclasses.replace(SMALL, overlap=overlap)
    report, done = predict_stores([store], checkpoint_of(RedNet()), config, run)
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


def test_a_network_that_is_sure_paints_all_tissue_and_scores_1_wherever_covered(stores, run, checkpoint_of):
    store = stores["left"]
    predict_stores([store], checkpoint_of(SureNet()), SMALL, run)
    known, tissue = covered(store, PATCH_PX, PATCH_PX // 2), whole(store.labels("tissue"))
    np.testing.assert_array_equal(whole(store.scores("unet"))[0], np.where(known, 255, 0))
    np.testing.assert_array_equal(whole(store.labels("unet")), np.where(known, tissue == 1, 255))
    every_patch = np.zeros(tissue.shape, bool)
    for w in store.patches().windows:
        every_patch[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px] = True
    assert known[every_patch].all()


@pytest.mark.parametrize("stride", [3, 8, 50])
def test_scores_are_area_means_on_a_real_store_of_odd_size(stores, run, checkpoint_of, stride):
    store = stores["left"]
    predict_stores([store], checkpoint_of(RedNet()), dataclasses.replace(SMALL, score_stride_px=stride), run)
    p = store.read(frame(store))[None, ..., 0] / 255.0
    p[:, ~covered(store, PATCH_PX, PATCH_PX // 2)] = np.nan
    found = whole(store.scores("unet"))
    assert store.attributes("scores", "unet")["stride_px"] == stride
    np.testing.assert_allclose(found / 255, slow_scores(p, stride), atol=0.6 / 255)


@given(st.data())
@settings(max_examples=40)
def test_bands_of_any_height_become_shards_and_mean_scores(data: st.DataObject):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    shard, stride = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    p = rng.dirichlet((1, 1, 1), (height, width)).transpose(2, 0, 1).astype(np.float32)
    p[:, rng.random((height, width)) < 0.2] = np.nan
    tissue = rng.choice([0, 1, 255], (height, width), p=[0.3, 0.6, 0.1]).astype(np.uint8)
    cuts = sorted({0, height, *(data.draw(st.integers(0, height)) for _ in range(4))})
    bands = [p[:, a:b] for a, b in pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "SHARD_PX", shard)
        made = predict._Bands(FakeStore(tissue), 2, stride)
        labels, scores = list(made.labels(iter(bands))), list(made.scores())
    expected = np.where(np.isnan(p[0]), 255, np.where(tissue == 0, 0, np.nan_to_num(p).argmax(0)))
    expected[tissue == 255] = 255
    cells = [(r, c) for r in range(-(-height // shard)) for c in range(-(-width // shard))]
    assert [cell for cell, _ in labels] == cells
    for (r, c), block in labels:
        np.testing.assert_array_equal(block, expected[r * shard : (r + 1) * shard, c * shard : (c + 1) * shard])
    means = np.rint(slow_scores(p[1:], stride) * 255)
    joined = np.zeros_like(means)
    for (r, c), block in scores:
        joined[:, r * shard : (r + 1) * shard, c * shard : (c + 1) * shard] = block
    assert np.abs(joined - means).max() <= 1


def test_a_slide_longer_than_one_shard_is_written_shard_by_shard(tmp_path, svs_writer, run, checkpoint_of):
    rgb = np.full((4600, 192, 3), 243, np.uint8)
    rgb[100:4500, 20:170] = (180, 60, 120)
    rgb[4200:4400, 20:170, 0] = 90
    svs_writer(tmp_path / "tall.svs", rgb, factors=(4,))
    config = TileConfig(patch_px=64, codec="zstd", tissue_mpp=2.0)
    report, paths = tile_slides({"tall": SlideFile(tmp_path / "tall.svs")}, config, run)
    assert report.exit_code == 0
    store = SlideStore(paths[0])
    predict_stores([store], checkpoint_of(RedNet()), SMALL, run)
    assert store.labels("unet").spec.shards == (2, 1)
    red = store.read(frame(store))[..., 0].astype(int)
    known, tissue = covered(store, 64, 32), whole(store.labels("tissue"))
    scores, mask = whole(store.scores("unet"))[0], whole(store.labels("unet"))
    assert np.abs(scores - red)[known].max() <= 1
    assert known[4100:4500, 30:160].all()
    sure = known & (tissue == 1) & (np.abs(red - 127.5) > 1)
    np.testing.assert_array_equal(mask[sure], (red[sure] > 127).astype(int))
    assert (mask[4250:4350, 40:150] == 0).all()


def test_pixels_that_could_not_be_read_stay_255(stores, run, checkpoint_of):
    store = stores["left"]
    tissue = whole(store.labels("tissue")).copy()
    tissue[100:150, 100:200] = 255
    paint(store, tissue, "tissue")
    predict_stores([store], checkpoint_of(SureNet()), SMALL, run)
    assert (whole(store.labels("unet"))[100:150, 100:200] == 255).all()
    assert whole(store.labels("unet"))[160, 150] == 1


def test_the_answer_does_not_depend_on_batch_or_threads(coloured):
    store = SlideStore(coloured / "left.zarr")
    windows = [Window(x, y, 64, 64) for y in (32, 96) for x in range(0, 437, 50)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 3, 5, padding=2).eval()
    first = predictor(net, store, torch.device("cpu"), 1, batch=16)(windows)
    assert first.shape == (len(windows), 3, 64, 64)
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-5)
    for workers, batch in ((1, 1), (2, 3), (4, 5), (2, 100)):
        again = predictor(net, store, torch.device("cpu"), workers, batch=batch)(windows)
        np.testing.assert_allclose(again, first, atol=2e-3 if bf16() else 1e-6)


def bf16() -> bool:
    """Whether this machine computes networks in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def test_maps_do_not_depend_on_the_number_of_workers(stores, run, checkpoint_of):
    found = []
    for name, workers in (("one", 1), ("four", 4)):
        config = dataclasses.replace(SMALL, name=name)
        predict_stores([stores["left"]], checkpoint_of(RedNet()), config, dataclasses.replace(run, workers=workers))
        found.append((whole(stores["left"].labels(name)), whole(stores["left"].scores(name))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_windows_are_wanted_where_patches_are(coloured):
    store = SlideStore(coloured / "left.zarr")
    wanted = on_patches(store)
    patches = store.patches().windows
    assert all(wanted(w) for w in patches)
    first = min(w.x_px for w in patches), min(w.y_px for w in patches)
    assert not wanted(Window(first[0] // 64 * 64 - 64, first[1], 64, 64))
    assert not on_patches(SlideStore(coloured / "bare.zarr"))(Window(0, 0, 437, 331))


def test_the_second_run_skips_what_the_first_one_made(stores, run, checkpoint_of):
    path = checkpoint_of(SureNet())
    both = [stores["left"], stores["right"]]
    first, done = predict_stores(both, path, SMALL, run)
    assert [r["status"] for r in first.rows] == ["done", "done"]
    shards = {p: p.stat().st_mtime_ns for s in both for p in (s.path / "labels" / "unet").rglob("*") if p.is_file()}
    second, again = predict_stores(both, path, SMALL, run)
    assert [r["status"] for r in second.rows] == ["skipped", "skipped"]
    assert again == done == [s.path for s in both]
    assert shards == {p: p.stat().st_mtime_ns for p in shards}


def test_maps_of_another_checkpoint_are_not_replaced_unasked(stores, run, checkpoint_of):
    predict_stores([stores["left"]], checkpoint_of(SureNet(), digest="one"), SMALL, run)
    before = whole(stores["left"].scores("unet"))
    report, done = predict_stores([stores["left"]], checkpoint_of(RedNet(), digest="two"), SMALL, run)
    assert (report.exit_code, done) == (1, [])
    assert "labels/unet was made from other inputs" in report.rows[0]["reason"]
    assert "--name" in report.rows[0]["reason"]
    assert "--overwrite" in report.rows[0]["reason"]
    np.testing.assert_array_equal(whole(stores["left"].scores("unet")), before)
    named = dataclasses.replace(SMALL, name="second")
    assert predict_stores([stores["left"]], checkpoint_of(RedNet(), digest="two"), named, run)[0].exit_code == 0
    report, done = predict_stores([stores["left"]], checkpoint_of(RedNet(), digest="two"), SMALL, run, overwrite=True)
    assert (report.exit_code, done) == (0, [stores["left"].path])
    assert not np.array_equal(whole(stores["left"].scores("unet")), before)


@pytest.mark.parametrize("change", [{"overlap": 0.25}, {"window_px": 32}, {"score_stride_px": 4}])
def test_other_settings_make_another_map(stores, run, checkpoint_of, change):
    path = checkpoint_of(SureNet())
    predict_stores([stores["left"]], path, SMALL, run)
    report, _ = predict_stores([stores["left"]], path, dataclasses.replace(SMALL, **change), run)
    assert "made from other inputs" in report.rows[0]["reason"]


def test_a_store_at_another_resolution_fails_alone(stores, run, checkpoint_of):
    report, done = predict_stores([stores["left"]], checkpoint_of(SureNet(), mpp=1.0), SMALL, run)
    assert (report.exit_code, done) == (1, [])
    assert report.rows[0]["status"] == "failed"
    assert "is at 0.5 um/px, the network at 1; tile with --mpp 1" in report.rows[0]["reason"]
    close = predict_stores([stores["left"]], checkpoint_of(SureNet(), mpp=0.51), SMALL, run)[0]
    assert close.exit_code == 0
    assert (Path(run.runs) / "unet" / "segment.csv").read_text().splitlines()[1].startswith("left,done")


def test_a_slide_without_tissue_gets_an_empty_map(stores, run, checkpoint_of):
    report, done = predict_stores([stores["bare"]], checkpoint_of(SureNet()), SMALL, run)
    assert (report.exit_code, done) == (0, [stores["bare"].path])
    assert (whole(stores["bare"].labels("unet")) == 255).all()
    assert (whole(stores["bare"].scores("unet")) == 0).all()


def test_a_window_that_no_network_takes_is_refused_at_once(stores, run, checkpoint_of):
    config = dataclasses.replace(SMALL, window_px=100)
    with pytest.raises(ConfigError, match=r"window of 100 px is not a multiple of 32 px.*--window"):
        predict_stores([stores["left"]], checkpoint_of(SureNet()), config, run)
    assert stores["left"].names("scores") == []


def test_a_missing_checkpoint_says_how_to_make_one(stores, run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint here; train one with: wsipipe segment"):
        predict_stores([stores["left"]], tmp_path / "none.json", SMALL, run)
