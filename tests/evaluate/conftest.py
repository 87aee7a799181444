"""Tiny stores of masks without a slide behind them, and truth images beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from support.types import MakePath

from wsipipe.geometry import Grid
from wsipipe.labels import LabelTable, read_labels
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ArraySpec

Masks = dict[str, NDArray[np.uint8]]


@pytest.fixture
def make_store(tmp_path: Path) -> MakePath:
    """`make_store(slide_id, tissue, classes, name=mask, ..)` -> path; masks uint8 [h, w] at level 0."""

    def make(
        slide_id: str, tissue: NDArray[np.uint8], classes: tuple[str, ...] = ("a",), **masks: NDArray[np.uint8]
    ) -> Path:
        height, width = tissue.shape
        grid = Grid((width, height), (0.5, 0.5), (1.0, 1.0), 16, 16)
        path = tmp_path / "stores" / f"{slide_id}.zarr"
        store = SlideStore.create(path, grid, 90, {"slide_id": slide_id, "pixel_digest": "p"})
        for name, mask in {"tissue": tissue, **masks}.items():
            meta = {"digest": "d"} if name == "tissue" or not classes else {"digest": "d", "classes": list(classes)}
            shards = (
                (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
                for shard, w in shard_windows(store.pixels().spec)
            )
            store.write_labels(name, {0: "none", 1: "a", 255: "ignore"}, meta, shards)
        return path

    return make


@pytest.fixture
def make_truth(tmp_path: Path) -> Callable[[str, NDArray[np.uint8]], Path]:
    """`make_truth(slide_id, mask)` writes `<slide_id>.truth.png`; returns its folder."""

    def make(slide_id: str, mask: NDArray[np.uint8]) -> Path:
        folder = tmp_path / "truth"
        folder.mkdir(exist_ok=True)
        (folder / f"{slide_id}.truth.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(mask)))
        return folder

    return make


@pytest.fixture
def add_scores() -> Callable[..., None]:
    """`add_scores(store path, name, values uint8 [K, h, w], stride_px, classes)` writes `scores/<name>`."""

    def add(path: Path, name: str, values: NDArray[np.uint8], stride_px: int, classes: tuple[str, ...]) -> None:
        spec = ArraySpec(values.shape, "uint8", 0)
        shards = (
            (shard, values[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
            for shard, w in shard_windows(spec)
        )
        SlideStore(path).write_scores(name, stride_px, {"digest": "d", "classes": list(classes)}, shards)

    return add


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], LabelTable]:
    """`table(text)` -> the labels of a CSV of that text."""

    def make(text: str) -> LabelTable:
        (tmp_path / "labels.csv").write_text(text)
        return read_labels(tmp_path / "labels.csv", to_fit=False)

    return make
