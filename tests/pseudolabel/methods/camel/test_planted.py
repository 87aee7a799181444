"""CAMEL: planted textures found again from weak labels alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.textures import TILE_PX, Cohort, Tile, plant, textured_tile, tissue

from wsipipe.geometry import Window
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

Quick = Callable[..., tuple[Report, list[Path]]]


def found(cohort: Cohort, name: str = "camel") -> tuple[float, float]:
    """Share of positive patches whose planted cell is painted, and share of other cells painted in error."""
    hits, errors, others = 0, 0, 0
    for slide_id, path in cohort.stores.items():
        store = SlideStore(path)
        side = store.grid.patch_px
        for row, col, window in store.grid.windows():
            grid = store.labels(name).read(window)[:: side // 4, :: side // 4] == 1
            cell = cohort.planted.get((slide_id, row, col))
            if cell is not None:
                hits += int(grid[cell])
                grid[cell] = False
            errors, others = errors + int(grid.sum()), others + grid.size
    return hits / len(cohort.planted), errors / others


def test_a_planted_texture_is_found_in_small_patches(small_cohort: Cohort, quick: Quick):
    report, _ = quick(small_cohort.stores, small_cohort.labels(), name="planted")
    assert report.exit_code == 0
    hits, errors = found(small_cohort, "planted")
    assert hits > 0.85
    assert errors < 0.1


def grid_accuracy(stores: dict[str, Path], tiles: dict[str, list[Tile]], name: str, m: int) -> float:
    """Share of the cells of all tiles that are painted as their truth says, where most of a cell is one thing."""
    right, cells = 0, 0
    for slide_id, row in tiles.items():
        mask = SlideStore(stores[slide_id]).labels(name)
        for t, tile in enumerate(row):
            got = mask.read(Window(t * TILE_PX, 0, TILE_PX, TILE_PX))[m // 2 :: m, m // 2 :: m] == 1
            share = (tile.truth == 2).reshape(TILE_PX // m, m, TILE_PX // m, m).mean((1, 3))
            clear = (share > 0.75) | (share == 0)
            right, cells = right + int((got == (share > 0.5))[clear].sum()), cells + int(clear.sum())
    return right / cells


@pytest.mark.slow
def test_textures_on_stroma_and_glass_are_found_from_tile_labels(
    tile_pictures: Callable[..., dict[str, Path]], quick: Quick, tmp_path: Path
):
    """Tiles of 512 px with blobs of a class and of another texture; the label says only whether the class is there."""
    tiles = {f"s{s}": [textured_tile(10 * s + t, planted=(s + t) % 2 == 0) for t in range(10)] for s in range(4)}
    pictures = {s: np.concatenate([t.rgb for t in row], 1) for s, row in tiles.items()}
    stores = tile_pictures(pictures, patch_px=TILE_PX, min_tissue=0.05)
    rows = ["slide_id,label,x,y,width,height"]
    rows += [
        f"{s},{'blobs' if (t.truth == 2).any() else ''},{i * TILE_PX},0,{TILE_PX},{TILE_PX}"
        for s, row in tiles.items()
        for i, t in enumerate(row)
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows))
    method = {"lattice": 16, "shrink": 1, "selector_steps": 200, "retrain_steps": 100, "self_train_steps": 60}
    report, _ = quick(stores, labels, method | {"calibrate": True, "uncertain": 0.0}, self_train=True)
    assert report.exit_code == 0
    assert grid_accuracy(stores, tiles, "camel", 32) > 0.95
    for slide_id, row in tiles.items():
        glass = np.concatenate([t.truth == 0 for t in row], 1)
        mask = SlideStore(stores[slide_id]).labels("camel").read(Window(0, 0, glass.shape[1], TILE_PX))
        assert (mask[glass] == 1).mean() < 0.02, "glass is nothing"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_texture_is_found_in_nineteen_of_twenty_patches_from_patch_labels_alone(
    plant_cohort: Callable[..., Cohort], quick: Quick, seed: int, tmp_path: Path
):
    from wsipipe.config.options import RunConfig

    cohort = plant_cohort("planted", 2, 5, 256)
    run = RunConfig(
        stores=str(cohort.folder / "stores"), runs=str(tmp_path / "runs"), device="cpu", workers=1, seed=seed
    )
    method = {"selector_steps": 150, "retrain_steps": 80, "self_train_steps": 40}
    quick(cohort.stores, cohort.labels(), method, run=run, self_train=True)
    hits, errors = found(cohort)
    assert hits > 0.95
    assert errors < 0.05


def test_slide_labels_and_two_classes_are_learned_by_the_prevalence_rule(
    tile_pictures: Callable[..., dict[str, Path]], quick: Quick, tmp_path: Path
):
    """A slide label says `blobs` or `stripes` of a slide a third of which shows it."""
    pictures = {}
    rows = ["slide_id,label"]
    for i, label in enumerate(["blobs", "stripes", "", "blobs", "stripes", ""]):
        rgb = tissue((384, 192), seed=i)
        for k in range(10 if label else 0):
            plant(rgb, (k % 5 * 48, k // 5 * 48), 48, kind=int(label == "stripes"))
        pictures[f"s{i}"] = rgb
        rows.append(f"s{i},{label}")
    stores = tile_pictures(pictures, patch_px=192)
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows))
    report, _ = quick(stores, labels, {"prevalence": 0.25, "retrain_steps": 40})
    assert report.exit_code == 0
    means = np.zeros((6, 2))
    for i in range(6):
        scores = SlideStore(stores[f"s{i}"]).scores("camel").read(Window(0, 0, 8, 4))
        assert scores.shape == (2, 4, 8)
        planted = np.zeros((4, 8), bool)
        planted[:2, :5] = True
        means[i] = scores[:, planted].mean(1) - scores[:, ~planted].mean(1)
    assert (means[[0, 3], 0] > 30).all()
    assert (means[[1, 4], 1] > 30).all()
    assert (means[[2, 5]] == 0).all(), "a class that the label excludes has no score"
