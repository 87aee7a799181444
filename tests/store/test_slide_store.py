"""A store is a valid OME-Zarr image that others open, and its masks and scores come whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.store import SlideStore, find_stores
from wsipipe.store.label_images import shard_windows
from wsipipe.store.tissue_levels import TissueLevels

VALUES = {0: "none", 1: "tumour", 255: "ignore"}
Shard = tuple[tuple[int, int], NDArray[np.uint8]]


def striped(store: SlideStore, seed: int = 0) -> NDArray[np.uint8]:
    width, height = store.grid.size_px
    y, x = np.mgrid[:height, :width]
    return ((x // 40 + y // 30 + seed) % 2).astype(np.uint8)


def in_shards(store: SlideStore, mask: NDArray[np.uint8]) -> Iterator[Shard]:
    for shard, w in shard_windows(store.pixels().spec):
        yield shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]


def whole(store: SlideStore, level: int = 0) -> Window:
    height, width = store.grid.level_shape(level)
    return Window(0, 0, width, height)


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def empty_store(path: Path, size: tuple[int, int]) -> SlideStore:
    grid = Grid(size, (0.5, 0.5), (1.0, 1.0), 64, 64)
    return SlideStore.create(path, grid, 0, {"slide_id": path.stem, "pixel_digest": "d"})


def test_a_store_is_a_valid_ome_zarr_image(tiled: Path) -> None:
    from ome_zarr_models.v05.image import Image

    image = Image.from_zarr(zarr.open_group(str(tiled), mode="r"))
    scales = image.attributes.ome.multiscales[0]
    assert [a.name for a in scales.axes] == ["c", "y", "x"]
    assert [a.unit for a in scales.axes[1:]] == ["micrometer", "micrometer"]
    assert len(scales.datasets) == SlideStore(tiled).grid.levels


def test_masks_are_valid_ome_zarr_label_images(store: SlideStore) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    store.write_labels("camel", VALUES, {"digest": "x"}, in_shards(store, striped(store)))
    for name in ("tissue", "camel"):
        label = ImageLabel.from_zarr(zarr.open_group(str(store.path / "labels" / name), mode="r"))
        assert len(label.attributes.ome.multiscales[0].datasets) == store.grid.levels
        assert label.attributes.ome.image_label.source.image == "../../"
    listed = Labels.from_zarr(zarr.open_group(str(store.path / "labels"), mode="r"))
    assert listed.attributes.ome.labels == ["camel", "tissue"]
    colours = json.loads((store.path / "labels/camel/zarr.json").read_text())["attributes"]["ome"]["image-label"]
    assert {c["label-value"]: c["rgba"][3] for c in colours["colors"]} == {0: 0, 1: 255, 255: 0}
    assert {p["label-value"]: p["name"] for p in colours["properties"]} == VALUES


def test_levels_of_image_and_masks_lie_on_each_other(tiled: Path) -> None:
    def transforms(path: Path) -> list[tuple[list[float], list[float]]]:
        scales = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
        found = []
        for d in scales["datasets"]:
            scale, shift = d["coordinateTransformations"]
            found.append((scale["scale"][-2:], shift["translation"][-2:]))
        return found

    image = transforms(tiled)
    assert image == transforms(tiled / "labels" / "tissue")
    assert image[0] == ([0.5, 0.5], [0, 0])
    assert image[1] == ([2.0, 2.0], [0.75, 0.75])  # the centre of the first 4 x 4 px is 1.5 px from the first centre


def test_a_fresh_python_reads_the_pixels_with_stock_zarr_alone(tiled: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy, zarr\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        "numpy.save(sys.argv[2], group['0'][:, 300:500, 500:700])\n"
        "numpy.save(sys.argv[3], group['labels/tissue/0'][...])\n"
    )
    paths = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    subprocess.run([sys.executable, "-c", code, str(tiled), *paths], check=True, cwd=tmp_path)
    store = SlideStore(tiled)
    np.testing.assert_array_equal(np.moveaxis(np.load(paths[0]), 0, -1), store.read(Window(500, 300, 200, 200)))
    np.testing.assert_array_equal(np.load(paths[1]), store.labels("tissue").read(whole(store)))


def test_what_is_known_of_the_slide_is_kept(tiled: Path, svs_path: Path) -> None:
    store = SlideStore(tiled)
    assert store.slide_id == "blob"
    assert store.grid == Grid((1200, 900), (0.5, 0.5), (1.0, 1.0), 128, 128)
    assert store.meta["slide"]["path"] == str(svs_path.resolve())
    assert store.meta["slide"]["mpp_source"] == "slide"
    assert {"kind", "schema", "pixel_digest", "versions", "tile"} <= set(store.meta)
    assert store.names("labels") == ["tissue"]
    assert store.names("scores") == []


def test_other_things_are_no_store(tmp_path: Path, tiled: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.zarr: not a store \(no zarr\.json\); make one with: wsipipe tile"):
        SlideStore(tmp_path / "none.zarr")
    (tmp_path / "file.zarr").touch()
    with pytest.raises(StoreError, match="not a store"):
        SlideStore(tmp_path / "file.zarr")
    with pytest.raises(StoreError, match="a Zarr group, but not a wsipipe store"):
        SlideStore(tiled / "labels")
    (tmp_path / "zarr.json").write_text("not json")
    with pytest.raises(StoreError, match="not readable as Zarr v3 metadata; tile this slide again"):
        SlideStore(tmp_path)


def test_another_schema_says_so(store: SlideStore) -> None:
    meta = json.loads((store.path / "zarr.json").read_text())
    meta["attributes"]["wsipipe"]["schema"] = 99
    (store.path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="store schema 99, this version reads 2; tile the slide again"):
        SlideStore(store.path)


@pytest.mark.parametrize(
    ("key", "value"), [("slide_id", None), ("pixel_digest", None), ("grid", None), ("grid", 5), ("grid", {"mpp": [1]})]
)
def test_a_root_that_says_too_little_is_damaged(store: SlideStore, key: str, value: object) -> None:
    meta = json.loads((store.path / "zarr.json").read_text())
    del meta["attributes"]["wsipipe"][key]
    if value:
        meta["attributes"]["wsipipe"][key] = value
    (store.path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=r"zarr\.json: damaged \(.*\); tile this slide again"):
        SlideStore(store.path)


@pytest.mark.parametrize("text", ["[]", "5", '{"attributes": 5}', '{"attributes": {"wsipipe": 5}}', "\ufffe"])
def test_metadata_of_any_other_shape_are_no_store(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"not readable as Zarr v3 metadata|not a wsipipe store"):
        SlideStore(tmp_path)


def test_chunks_may_have_another_side_at_each_level(tmp_path: Path) -> None:
    grid = Grid((1300, 700), (0.5, 0.5), (1.0, 1.0), 64, 64)
    store = SlideStore.create(tmp_path / "a.zarr", grid, 90, {"slide_id": "a", "pixel_digest": "p"}, (240, 512))
    assert [(a.chunk_px, a.shard_px) for a in (store.pixels(k).spec for k in range(2))] == [(240, 4080), (512, 4096)]
    assert zarr.open_group(str(store.path), mode="r")["0"].shape == (3, 700, 1300)


def test_what_is_noted_joins_the_attributes_and_stays_valid(store: SlideStore) -> None:
    before = SlideStore(store.path).meta
    store.update_meta(stored={"0": {"0.0": 7}}, more=[1])
    assert SlideStore(store.path).meta == store.meta == {**before, "stored": {"0": {"0.0": 7}}, "more": [1]}
    assert "multiscales" in zarr.open_group(str(store.path), mode="r").attrs["ome"]


def test_tiling_records_the_chunks_that_it_stored(tiled: Path) -> None:
    store = SlideStore(tiled)
    assert set(store.meta["stored"]) == {str(k) for k in range(store.grid.levels)}
    for level in range(store.grid.levels):
        assert sum(store.meta["stored"][str(level)].values()) == store.pixels(level).present().sum() > 0
        kept = store.attributes("labels", "tissue")["stored"][str(level)]
        assert sum(kept.values()) == store.labels("tissue", level).present().sum()


def test_a_batch_of_windows_is_a_channels_last_tensor(tiled: Path) -> None:
    store = SlideStore(tiled)
    windows = [Window(-20, 5, 128, 128), *store.patches().windows[:3], Window(1100, 800, 128, 128)]
    batch = store.read_batch(windows)
    assert torch.from_numpy(batch).is_contiguous(memory_format=torch.channels_last)
    assert (batch.shape, batch.dtype) == ((5, 3, 128, 128), np.uint8)
    for pixels, window in zip(batch, windows, strict=True):
        np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), store.read(window))
    assert (batch[0, :, :, :20] == 255).all()


def test_written_labels_are_read_back_at_every_level(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr", (1501, 1203))
    mask = striped(store)
    store.write_labels("camel", VALUES, {"digest": "x"}, in_shards(store, mask))
    assert store.names("labels") == ["camel"]
    stored = {str(k): {"0.0": int(store.labels("camel", k).present().sum())} for k in (0, 1)}
    assert store.attributes("labels", "camel") == {"kind": "labels", "digest": "x", "stored": stored}
    assert stored == {"0": {"0.0": 30}, "1": {"0.0": 4}}
    np.testing.assert_array_equal(store.labels("camel").read(whole(store)), mask)
    assert store.grid.levels == 2
    rows, cols = (
        np.minimum(np.arange(n) * 4 + 2, m - 1) for n, m in zip(store.grid.level_shape(1), mask.shape, strict=True)
    )
    np.testing.assert_array_equal(store.labels("camel", 1).read(whole(store, 1)), mask[np.ix_(rows, cols)])
    with pytest.raises(StoreError):
        store.labels("camel", 2)


def test_shards_that_were_not_given_are_ignore_and_those_of_no_tissue_glass(store: SlideStore) -> None:
    store.write_labels("camel", VALUES, {}, [])
    store.write_tissue(TissueLevels(np.zeros((90, 120), np.uint8), 10), {})
    assert (store.labels("camel").read(whole(store)) == 255).all()
    assert (store.labels("tissue").read(whole(store)) == 0).all()
    assert store.attributes("labels", "camel")["stored"] == {"0": {}, "1": {"0.0": 0}}
    assert store.attributes("labels", "tissue")["stored"] == {"0": {"0.0": 0}, "1": {"0.0": 0}}


def test_rewritten_labels_replace_the_old_ones(store: SlideStore) -> None:
    for seed in (0, 1):
        store.write_labels("camel", VALUES, {"digest": str(seed)}, in_shards(store, striped(store, seed)))
        np.testing.assert_array_equal(store.labels("camel").read(whole(store)), striped(store, seed))
    assert store.attributes("labels", "camel")["digest"] == "1"
    assert not [f for f in files(store.path.parent) if ".old" in f or ".partial" in f]


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_while_writing_labels_leaves_nothing_behind(store: SlideStore, existing: bool) -> None:
    if existing:
        store.write_labels("camel", VALUES, {"digest": "old"}, in_shards(store, striped(store)))
    before = files(store.path.parent)

    def crash() -> Iterator[Shard]:
        yield next(in_shards(store, striped(store, 1)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_labels("camel", VALUES, {"digest": "new"}, crash())
    assert files(store.path.parent) == before
    assert ("camel" in store.names("labels")) == existing
    if existing:
        np.testing.assert_array_equal(store.labels("camel").read(whole(store)), striped(store))


def test_what_a_killed_run_left_is_cleared_and_never_listed(store: SlideStore) -> None:
    (store.path / "labels" / ".camel.old").mkdir()
    (store.path / "labels" / ".camel.old" / "zarr.json").write_text("{}")
    aside = store.path.with_name(f".{store.path.name}.labels.camel.partial")
    aside.mkdir()
    (aside / "junk").touch()
    assert store.names("labels") == ["tissue"]
    store.write_labels("camel", VALUES, {}, in_shards(store, striped(store)))
    assert store.names("labels") == ["camel", "tissue"]
    assert not aside.exists()
    assert not (store.path / "labels" / "camel" / "junk").exists()
    assert find_stores(store.path.parent) == [store.path]


def test_scores_are_written_at_their_own_stride(store: SlideStore) -> None:
    height, width = -(-900 // 16), -(-1200 // 16)
    values = np.random.default_rng(0).integers(0, 256, (2, height, width), np.uint8)
    store.write_scores("camel", 16, {"classes": ["x", "y"], "digest": "d"}, [((0, 0), values)])
    assert store.scores("camel").spec.shape == (2, height, width)
    np.testing.assert_array_equal(store.scores("camel").read(Window(0, 0, width, height)), values)
    found = store.attributes("scores", "camel")
    assert (found["stride_px"], found["classes"], found["digest"]) == (16, ["x", "y"], "d")
    assert found["stored"] == {"0": {"0.0": 1}}
    np.testing.assert_array_equal(zarr.open_group(str(store.path / "scores/camel"), mode="r")["0"][...], values)
    ome = json.loads((store.path / "scores/camel/zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert ome["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 8, 8]
    assert store.names("scores") == ["camel"]
    assert store.names("labels") == ["tissue"]


def test_a_missing_name_says_what_there_is(store: SlideStore) -> None:
    with pytest.raises(StoreError, match="no labels/camel; found tissue"):
        store.labels("camel")
    with pytest.raises(StoreError, match="no scores/camel; found none"):
        store.scores("camel")


def test_current_tells_same_inputs_from_others(store: SlideStore) -> None:
    assert not store.can_reuse("labels", "camel", "x", overwrite=False)
    store.write_labels("camel", VALUES, {"digest": "x"}, [])
    assert store.can_reuse("labels", "camel", "x", overwrite=False)
    assert store.can_reuse("labels", "camel", "x", overwrite=True)
    assert not store.can_reuse("labels", "camel", "y", overwrite=True)
    with pytest.raises(
        StoreError, match=r"labels/camel was made from other inputs; choose another --name, .* --overwrite"
    ):
        store.can_reuse("labels", "camel", "y", overwrite=False)


def test_find_stores_lists_complete_stores_by_name(tmp_path: Path) -> None:
    for name in ("b.zarr", "a.zarr", ".c.zarr.partial", ".d.zarr", "notes.txt"):
        (tmp_path / name).mkdir()
    assert [p.name for p in find_stores(tmp_path)] == ["a.zarr", "b.zarr"]
    with pytest.raises(ConfigError, match="contains no stores; make some with: wsipipe tile SLIDES --stores"):
        find_stores(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="contains no stores"):
        find_stores(tmp_path / "missing")


def test_a_store_is_opened_by_the_text_of_its_path(store: SlideStore) -> None:
    assert SlideStore(str(store.path)).path == store.path
