"""Patches as a torch Dataset: each is what the store holds at its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wsipipe.dataset import Patches
from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Window
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

STRIDE_PX = 16


@pytest.fixture
def painted(store: SlideStore) -> SlideStore:
    """The tiled store with random masks and scores under the name `m`."""
    rng = np.random.default_rng(0)
    meta = {"classes": ["tumour", "stroma"], "digest": "d"}
    shards = [
        (shard, rng.integers(0, 3, (w.height_px, w.width_px), np.uint8)) for shard, w in shard_windows(store.mask_spec)
    ]
    store.write_labels("m", {0: "none", 1: "tumour", 2: "stroma"}, meta, shards)
    rows, cols = store.grid.cells(STRIDE_PX)
    store.write_scores("m", STRIDE_PX, meta, [((0, 0), rng.integers(0, 256, (2, rows, cols), np.uint8))])
    return SlideStore(store.path)


def labels_csv(folder: Path, text: str) -> Path:
    """A labels.csv with this text."""
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_every_patch_is_what_the_store_holds_at_its_place(painted: SlideStore) -> None:
    patches = Patches([painted.path], masks="m", scores="m")
    windows = painted.patches().windows
    assert len(patches) == len(windows) > 5
    assert patches.classes == ("tumour", "stroma")
    for index, window in enumerate(windows):
        patch = patches[index]
        assert patch["slide_id"] == "blob"
        assert patch["xy_px"].tolist() == [window.x_px, window.y_px]
        np.testing.assert_array_equal(patch["image"].permute(1, 2, 0), painted.read(window))
        np.testing.assert_array_equal(patch["mask"], painted.labels("m").read(window))
        cells = Window(window.x_px // STRIDE_PX, window.y_px // STRIDE_PX, 8, 8)
        np.testing.assert_allclose(patch["scores"], painted.scores("m").read(cells) / 255, rtol=1e-6)
        assert "label" not in patch


def test_patches_of_several_stores_follow_one_another(tiled: Path, store: SlideStore) -> None:
    one = len(Patches([tiled]))
    both = Patches([tiled, store.path])
    assert len(both) == 2 * one
    for index in (0, one - 1):
        assert torch.equal(both[index]["image"], both[one + index]["image"])
    assert torch.equal(both[-1]["xy_px"], both[2 * one - 1]["xy_px"])
    for outside in (2 * one, -2 * one - 1):
        with pytest.raises(IndexError):
            both[outside]


def test_another_lattice_of_patches(store: SlideStore) -> None:
    assert Patches([store.path], patch_px=128, stride_px=128)[0]["image"].shape == (3, 128, 128)
    with pytest.raises(StoreError, match="no patches of 64 px every 64 px"):
        Patches([store.path], patch_px=64, stride_px=64)


def test_a_row_with_a_box_wins_over_that_of_the_slide_and_where_there_is_none_the_label_is_nan(
    tiled: Path, tmp_path: Path
) -> None:
    path = labels_csv(tmp_path, "slide_id,label,x,y,width,height\nblob.svs,stroma,,,,\nblob,tumour,0,0,600,900\n")
    patches = Patches([tiled], labels=path)
    assert patches.classes == ("stroma", "tumour")
    for patch in patches:
        left = patch["xy_px"][0] + 64 < 600
        assert patch["label"].tolist() == ([0, 1] if left else [1, 0])
    boxes_only = Patches([tiled], labels=labels_csv(tmp_path, "slide_id,label,x,y,width,height\nblob,a,0,0,600,900\n"))
    assert any(torch.isnan(p["label"]).all() for p in boxes_only)
    assert any(p["label"].tolist() == [1] for p in boxes_only)


def test_a_split_keeps_its_slides_alone(tiled: Path, tmp_path: Path) -> None:
    path = labels_csv(tmp_path, "slide_id,label,split\nblob,a,test\nother,,train\n")
    assert len(Patches([tiled], labels=path, split="test")) == len(Patches([tiled]))
    with pytest.raises(ConfigError, match="none of 1 stores is in split 'train'"):
        Patches([tiled], labels=path, split="train")
    with pytest.raises(ConfigError, match="split 'test' needs labels"):
        Patches([tiled], split="test")
    with pytest.raises(ConfigError, match="no stores given"):
        Patches([])


def test_what_a_store_lacks_is_named(painted: SlideStore, tiled: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no labels/unet; found"):
        Patches([tiled], masks="unet")
    path = labels_csv(tmp_path, "slide_id,label\nblob,other\n")
    with pytest.raises(ConfigError, match="unknown class other; the classes are tumour, stroma"):
        Patches([painted.path], masks="m", labels=path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_makes_batches_in_processes_too(painted: SlideStore, tmp_path: Path, workers: int) -> None:
    path = labels_csv(tmp_path, "slide_id,tumour,stroma\nblob,1,0\n")
    patches = Patches([painted.path], masks="m", scores="m", labels=path)
    _ = patches[0]  # opens the store in this process
    spawned = {"multiprocessing_context": "spawn"} if workers else {}
    loader = DataLoader(patches, batch_size=4, num_workers=workers, **spawned)
    batches = list(loader)
    assert sum(len(b["image"]) for b in batches) == len(patches)
    first = batches[0]
    assert first["image"].shape == (4, 3, 128, 128)
    assert first["mask"].shape == (4, 128, 128)
    assert first["scores"].shape == (4, 2, 8, 8)
    assert first["label"].tolist() == [[1, 0]] * 4
    assert first["slide_id"] == ["blob"] * 4
    for i in range(4):
        assert torch.equal(first["image"][i], patches[i]["image"])
