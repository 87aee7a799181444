"""Objects of a mask by displacements that are known: what is one object, where its box lies, and what it scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.labels import Classes
from wsipipe.nn.encoders import create_encoder
from wsipipe.pseudolabel import centres
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.methods import irnet
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE
from wsipipe.pseudolabel.methods.irnet.displacements import displacement_px, slide_displacements
from wsipipe.pseudolabel.objects import COLUMNS, Measures, Objects, number_objects, painted_cells
from wsipipe.pseudolabel.shared.slide_maps import tent
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ArraySpec
from wsipipe.store.tissue_levels import TissueLevels

CPU = torch.device("cpu")
GRID = InstanceGrid(16, 128, 2)
CELL = 8
WANTED = SimpleNamespace(displacement=True)
NONE = torch.nn.Identity()
Mask = NDArray[np.uint8]


def store_of(
    folder: Path,
    mask: Mask,
    scores: Mask,
    classes: Sequence[str] = ("gland",),
    scale: float = 2.0,
    origin: tuple[int, int] = (100, 40),
) -> SlideStore:
    """A store at 0.5 um/px, `scale` level-0 px per px and cut out at `origin`, with a mask and scores every 16 px."""
    height, width = mask.shape
    size_px0 = (int(width * scale), int(height * scale))
    grid = Grid(size_px0, (0.5, 0.5), (scale, scale), 128, 128, origin)
    store = SlideStore.create(folder / "s.zarr", grid, 0, {"slide_id": "s", "pixel_digest": "d"})
    store.write_tissue(TissueLevels(np.ones((-(-height // 8), -(-width // 8)), np.uint8), 8), {"digest": "t"})
    meta = {"digest": "key", "classes": list(classes)}
    values = {0: "none", **{k + 1: n for k, n in enumerate(classes)}, 255: "ignore"}
    shards = [(s, mask[w.y_px :, w.x_px :][: w.height_px, : w.width_px]) for s, w in shard_windows(store.mask_spec)]
    store.write_scores("irnet", 16, meta, [((0, 0), scores)])
    store.write_labels("irnet", values, meta, shards)
    return store


def pointing(field: NDArray[np.float32]) -> SimpleNamespace:
    """A method whose displacements are `field`, float [2, rows, cols]."""

    def displacements(model: object, context: object, wanted: NDArray[np.bool_]) -> Any:
        return field.copy(), np.ones(wanted.shape, bool)

    return SimpleNamespace(displacements=displacements, displacement_px=displacement_px)


def made(store: SlideStore, method: object, folder: Path, params: object = WANTED) -> Objects:
    """The objects of the mask, written."""
    how = Objects(method, params, GRID, CPU, "irnet", folder)
    how.write(NONE, store, store.attributes("labels", "irnet"))
    return how


def image_of(store: SlideStore) -> NDArray[np.uint32]:
    return np.asarray(store.objects("irnet").read(Window(0, 0, *store.grid.size_px)), np.uint32)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def discs(shape: tuple[int, int], discs: Sequence[tuple[int, int, int]]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Discs (y, x, radius) of working px: the nearest of those that hold a pixel, int [h, w], 0 none, and D to it.

    D: float32 [2, rows, cols] in cells; outside of the discs it is long and leads nowhere.
    """
    y, x = np.mgrid[: shape[0], : shape[1]]
    far = np.stack([np.hypot(y - cy, x - cx) / r for cy, cx, r in discs])
    which = np.where(far.min(0) < 1, far.argmin(0) + 1, 0)
    d = np.full((2, -(-shape[0] // CELL), -(-shape[1] // CELL)), 40, np.float32)
    for r, c in np.ndindex(*d.shape[1:]):
        here = which[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL]
        if here.any():
            cy, cx, _ = discs[np.bincount(here[here > 0]).argmax() - 1]
            d[:, r, c] = cy / CELL - 0.5 - r, cx / CELL - 0.5 - c
    return which, d


def agreement(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of pixels of the truth whose object is the one that its part of the truth mostly has."""
    same = sum(np.bincount(found[truth == i]).max() for i in np.unique(truth[truth > 0]))
    return float(same / np.count_nonzero(truth))


def test_two_discs_that_touch_are_two_objects_of_one_class(tmp_path: Path):
    which, d = discs((320, 480), [(160, 150, 96), (160, 320, 96)])
    mask = (which > 0).astype(np.uint8)
    scores = np.zeros((1, 20, 30), np.uint8)
    scores[0, 10, 9], scores[0, 10, 20] = 204, 153
    store = store_of(tmp_path, mask, scores)
    how = made(store, pointing(d), tmp_path / "run")
    image, rows = image_of(store), rows_of(how.table(store))
    assert np.unique(image).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(image > 0, mask == 1)
    assert agreement(image, which) > 0.97, "all but a seam of cells"
    assert [(r["object"], r["class"], r["score"]) for r in rows] == [("1", "gland", "0.8000"), ("2", "gland", "0.6000")]
    attributes = store.attributes("objects", "irnet")
    assert {k: attributes[k] for k in ("kind", "classes", "objects", "digest")} == {
        "kind": "objects",
        "classes": ["gland"],
        "objects": 2,
        "digest": "key",
    }
    for row in rows:
        y, x = np.nonzero(image == int(row["object"]))
        assert float(row["area_um2"]) == pytest.approx(len(y) * 0.25, abs=0.01)
        box = [float(row[c]) for c in COLUMNS[3:7]]
        assert box == [100 + 2 * x.min(), 40 + 2 * y.min(), 2 * (np.ptp(x) + 1), 2 * (np.ptp(y) + 1)]


def test_classes_part_objects_and_a_rest_that_points_to_no_centre_is_one_by_itself(tmp_path: Path):
    which, d = discs((320, 480), [(160, 160, 90)])
    mask = np.where(which > 0, np.where(np.arange(480) < 163, 1, 2), 0).astype(np.uint8)
    mask[32:64, 400:432], mask[256:288, 400:432], mask[256:288, 432:464] = 1, 2, 1
    mask[200:210, 0:20] = 255
    store = store_of(tmp_path, mask, np.full((2, 20, 30), 51, np.uint8), ("gland", "stroma"))
    how = made(store, pointing(d), tmp_path / "run")
    image = image_of(store)
    np.testing.assert_array_equal(image > 0, (mask > 0) & (mask < 255))
    holds = {i: set(mask[image == i].tolist()) for i in range(1, image.max() + 1)}
    assert all(len(v) == 1 for v in holds.values()), "no object crosses a class"
    assert [r["class"] for r in rows_of(how.table(store))] == ["gland"] * 3 + ["stroma"] * 2
    assert len({int(image[y, x]) for y, x in ((160, 120), (160, 200), (40, 410), (260, 410), (260, 440))}) == 5


def test_a_fragment_stays_an_object_with_score_zero(tmp_path: Path):
    mask = np.zeros((320, 480), np.uint8)
    mask[16:32, 16:32] = mask[160:176, 160:169] = 1
    store = store_of(tmp_path, mask, np.full((1, 20, 30), 255, np.uint8))
    how = made(store, pointing(np.zeros((2, 40, 60), np.float32)), tmp_path / "run")
    assert [(r["score"], r["area_um2"]) for r in rows_of(how.table(store))] == [
        ("1.0000", "64.00"),
        ("0.0000", "36.00"),
    ]
    assert 144 < 0.01 * 128**2 < 256, "px of the two, and of the limit"


def test_a_mask_without_any_class_has_no_objects(tmp_path: Path):
    store = store_of(tmp_path, np.zeros((320, 480), np.uint8), np.zeros((1, 20, 30), np.uint8))
    how = made(store, pointing(np.zeros((2, 40, 60), np.float32)), tmp_path / "run")
    assert not image_of(store).any()
    assert rows_of(how.table(store)) == []
    assert store.attributes("objects", "irnet")["objects"] == 0


def test_nothing_depends_on_the_blocks_of_a_slide_that_is_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    centre = [(y, x, 70) for y in range(80, 400, 110) for x in range(80, 600, 120)]
    which, d = discs((490, 660), centre)
    d += rng.normal(0, 0.3, d.shape).astype(np.float32)
    mask = np.where(which > 0, which % 2 + 1, 0).astype(np.uint8)
    scores = rng.integers(0, 256, (2, 31, 42)).astype(np.uint8)
    found = []
    for cells, chunk_px, shard_px in ((1 << 20, 256, 4096), (500, 60, 180), (4000, 64, 256)):
        monkeypatch.setattr(centres, "BLOCK", cells)
        spec = ArraySpec(mask.shape, "uint8", 255, chunk_px, shard_px)
        monkeypatch.setattr(SlideStore, "mask_spec", spec)
        store = store_of(tmp_path / str(cells), mask, scores, ("a", "b"))
        how = made(store, pointing(d), tmp_path / str(cells))
        assert store.objects("irnet").spec.shard_px == shard_px
        found.append((image_of(store), how.table(store).read_text()))
    for image, table in found[1:]:
        np.testing.assert_array_equal(image, found[0][0])
        assert table == found[0][1]
    assert agreement(found[0][0], which) > 0.9
    assert found[0][0].max() >= len(centre)


def test_cells_that_straddle_classes_and_shards_hold_both():
    mask = np.zeros((50, 70), np.uint8)
    mask[9:12, 30:33], mask[12:14, 33:40], mask[49, 69] = 1, 2, 2
    expected = np.zeros((2, 5, 7), bool)
    for y, x in np.argwhere((mask == 1) | (mask == 2)):
        expected[mask[y, x] - 1, y // 10, x // 10] = True

    def read(window: Window) -> Mask:
        return mask[window.y_px :, window.x_px :][: window.height_px, : window.width_px]

    array = SimpleNamespace(spec=ArraySpec(mask.shape, "uint8", 0, 6, 12), read=read)
    np.testing.assert_array_equal(painted_cells(array, 2, 10), expected)
    numbers, kinds = number_objects(expected, np.zeros((5, 7), np.int32))
    assert kinds == [0, 1, 1]
    np.testing.assert_array_equal(numbers > 0, expected)


def test_scores_and_boxes_of_objects_grow_over_windows():
    measures = Measures.empty(2)
    numbers, own = np.zeros((2, 3), np.uint32), np.zeros((2, 3), np.uint8)
    measures.add(Window(30, 8, 3, 2), numbers, own)
    numbers[0, 1:], own[0, 1] = 2, 51
    measures.add(Window(30, 8, 3, 2), numbers, own)
    numbers[...], own[...] = [[2, 0, 1], [0, 0, 1]], [[102, 0, 255], [0, 0, 0]]
    measures.add(Window(9, 20, 3, 2), numbers, own)
    rows = list(measures.rows(Grid((400, 400), (0.5, 0.25), (4.0, 2.0), 64, 64, (7, 9)), ["a", "b"], 3))
    cells = [tuple(row.values()) for row in rows]
    assert cells == [
        (1, "a", "0.0000", "51.0", "49.0", "4.0", "4.0", "0.25"),
        (2, "b", "0.4000", "43.0", "25.0", "96.0", "26.0", "0.38"),
    ]


def test_displacements_of_a_slide_are_means_over_windows(tmp_path: Path):
    rng = np.random.default_rng(1)
    store = store_of(tmp_path, np.zeros((200, 350), np.uint8), np.zeros((1, 13, 22), np.uint8))
    pixels = rng.integers(0, 256, (3, 200, 350)).astype(np.uint8)
    store.pixels().write_region((0, 0), pixels)
    wanted = np.zeros((25, 44), bool)
    wanted[3:5, 4], wanted[20, 8] = True, True
    calls: list[int] = []

    def displacements_of(rgb: torch.Tensor) -> torch.Tensor:
        calls.append(len(rgb))
        means = torch.nn.functional.avg_pool2d(rgb.float(), STRIDE)
        return torch.stack([means[:, 0] + means[:, 1].mean((1, 2), keepdim=True), means[:, 2]], 1)

    d, known = slide_displacements(store, GRID, wanted, displacements_of)
    assert sum(calls) == 5, "of the windows those that hold a wanted cell"
    total, weights = np.zeros((2, 25, 44)), np.zeros((25, 44))
    for r, c in ((0, 0), (8, 0), (8, 8), (9, 0), (9, 8)):
        rgb = np.moveaxis(store.read(Window(c * 8, r * 8, 128, 128)), -1, 0).astype(float)
        small = np.rint(rgb.reshape(3, 64, 2, 64, 2).mean((2, 4)) + 1e-6).reshape(3, 16, 4, 16, 4).mean((2, 4))
        total[:, r : r + 16, c : c + 16] += np.stack([small[0] + small[1].mean(), small[2]]) * tent(16)
        weights[r : r + 16, c : c + 16] += tent(16)
    np.testing.assert_array_equal(known, weights > 0)
    np.testing.assert_allclose(d, total / np.where(weights > 0, weights, 1), rtol=1e-3, atol=1e-3)


def test_irnet_gives_what_its_network_says_of_windows(tmp_path: Path):
    torch.manual_seed(0)
    params = irnet.Params(displacement=True)
    model = irnet.build(Classes(("gland",)), create_encoder("resnet18_quarter"), GRID, params)
    model.boundary.displacement_branch.mean.copy_(torch.tensor([1.0, -2.0]))
    store = store_of(tmp_path, np.zeros((128, 128), np.uint8), np.zeros((1, 8, 8), np.uint8))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    store.pixels().write_region((0, 0), pixels.repeat(2, 1).repeat(2, 2))
    d, known = irnet.displacements(model, ScoreContext(store, GRID, CPU), np.ones((16, 16), bool))
    with torch.inference_mode():
        expected = model.eval().boundary(irnet.normalise(torch.from_numpy(pixels)[None]))[1][0]
    np.testing.assert_allclose(d, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert known.all()
    assert displacement_px(GRID) == CELL


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (SimpleNamespace(), WANTED),
        (pointing(np.zeros((2, 4, 4), np.float32)), SimpleNamespace(displacement=False)),
    ],
)
def test_where_no_objects_are_wanted_only_an_old_table_goes(tmp_path: Path, method: object, params: object):
    store = store_of(tmp_path, np.zeros((64, 64), np.uint8), np.zeros((1, 4, 4), np.uint8))
    (tmp_path / "run" / "objects").mkdir(parents=True)
    table = tmp_path / "run" / "objects" / "s.csv"
    table.write_text("old")
    how = made(store, method, tmp_path / "run", params)
    assert how.current(store, "key", overwrite=False)
    assert (store.names("objects"), table.exists()) == ([], False)
    made(store, method, tmp_path / "run", params)


def test_objects_are_current_if_image_and_table_are_there(tmp_path: Path):
    store = store_of(tmp_path, np.ones((64, 64), np.uint8), np.zeros((1, 4, 4), np.uint8))
    method = pointing(np.zeros((2, 8, 8), np.float32))
    how = Objects(method, WANTED, GRID, CPU, "irnet", tmp_path / "run")
    assert not how.current(store, "key", overwrite=False)
    made(store, method, tmp_path / "run")
    assert how.current(store, "key", overwrite=False)
    assert not how.current(store, "other", overwrite=True)
    with pytest.raises(StoreError, match="labels/irnet-objects was made from other inputs"):
        how.current(store, "other", overwrite=False)
    how.table(store).unlink()
    assert not how.current(store, "key", overwrite=False)
