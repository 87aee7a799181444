"""Numbered objects beside a mask: a valid label image that is never taken for a mask, and goes with its mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Window
from wsipipe.store import SlideStore
from wsipipe.store.info import describe
from wsipipe.store.label_images import shard_windows
from wsipipe.store.map_writer import ResumableMapWriter
from wsipipe.store.names import check_name
from wsipipe.store.verify import verify

VALUES = {0: "none", 1: "gland", 255: "ignore"}
META = {"digest": "x", "classes": ["gland"]}
NOT_A_MASK = "labels/irnet-objects is an image of objects, not a class mask; use irnet"


def in_shards(store: SlideStore, image: NDArray[Any]) -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
    for shard, w in shard_windows(store.mask_spec):
        yield shard, image[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]


def whole(store: SlideStore, level: int = 0) -> Window:
    height, width = store.grid.level_shape(level)
    return Window(0, 0, width, height)


def numbers_of(store: SlideStore) -> NDArray[np.uint32]:
    """Squares of 50 px, every other one with a number above what 16 bits hold."""
    width, height = store.grid.size_px
    y, x = np.mgrid[:height, :width] // 50
    return np.where((x + y) % 2, 70_000 + y * 100 + x, 0).astype(np.uint32)


def write_mask(store: SlideStore, digest: str = "x") -> None:
    mask = (numbers_of(store) > 0).astype(np.uint8)
    store.write_labels("irnet", VALUES, {**META, "digest": digest}, in_shards(store, mask))


@pytest.fixture
def both(store: SlideStore) -> SlideStore:
    """A store with a mask and its objects."""
    write_mask(store)
    store.write_objects("irnet", {**META, "objects": 200}, in_shards(store, numbers_of(store)))
    return store


def test_numbers_are_kept_and_coarser_levels_take_the_nearest(both: SlideStore) -> None:
    numbers = numbers_of(both)
    np.testing.assert_array_equal(both.objects("irnet").read(whole(both)), numbers)
    for level in range(1, both.grid.levels):
        f = 4**level
        found = both.objects("irnet", level).read(whole(both, level))
        assert found.dtype == np.uint32
        h, w = numbers.shape[0] // f, numbers.shape[1] // f
        np.testing.assert_array_equal(found[:h, :w], numbers[: h * f, : w * f][offset(f) :: f, offset(f) :: f])


def offset(f: int) -> int:
    """The pixel of f that a coarser level takes: at every step by 4 the third."""
    return sum(2 * 4**k for k in range({4: 1, 16: 2}[f]))


def test_objects_are_a_valid_ome_zarr_label_image_beside_the_mask(both: SlideStore) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    label = ImageLabel.from_zarr(zarr.open_group(str(both.path / "labels" / "irnet-objects"), mode="r"))
    assert len(label.attributes.ome.multiscales[0].datasets) == both.grid.levels
    meta = json.loads((both.path / "labels/irnet-objects/zarr.json").read_text())["attributes"]
    assert meta["ome"]["image-label"] == {"source": {"image": "../../"}}, "no empty lists, which OME-Zarr forbids"
    assert (meta["wsipipe"]["kind"], meta["wsipipe"]["classes"]) == ("objects", ["gland"])
    listed = Labels.from_zarr(zarr.open_group(str(both.path / "labels"), mode="r"))
    assert listed.attributes.ome.labels == ["irnet", "irnet-objects", "tissue"]
    array = zarr.open_array(str(both.path / "labels/irnet-objects/0"), mode="r")
    assert (str(array.dtype), array.fill_value) == ("uint32", 0)
    np.testing.assert_array_equal(array[...], numbers_of(both))


def test_objects_are_no_mask(both: SlideStore) -> None:
    assert both.names("labels") == ["irnet", "tissue"]
    assert both.names("objects") == ["irnet"]
    with pytest.raises(StoreError, match=NOT_A_MASK):
        both.labels("irnet-objects")
    with pytest.raises(StoreError, match=NOT_A_MASK):
        both.attributes("labels", "irnet-objects")
    with pytest.raises(StoreError, match="no labels/unet-objects; found irnet, tissue"):
        both.labels("unet-objects")
    with pytest.raises(StoreError, match="no labels/tissue-objects; found irnet"):
        both.objects("tissue")
    with pytest.raises(ConfigError, match="the ending -objects is reserved for objects; choose another --name"):
        check_name("irnet-objects")


def test_objects_are_current_under_the_key_that_they_were_made_with(both: SlideStore) -> None:
    assert both.can_reuse("objects", "irnet", "x", overwrite=False)
    assert not both.can_reuse("objects", "irnet", "y", overwrite=True)
    assert not both.can_reuse("objects", "unet", "x", overwrite=False)
    with pytest.raises(StoreError, match="labels/irnet-objects was made from other inputs"):
        both.can_reuse("objects", "irnet", "y", overwrite=False)


def test_objects_go_with_the_mask_that_they_were_cut_from(both: SlideStore) -> None:
    both.objects("irnet").read(whole(both))
    write_mask(both, "y")
    assert both.names("objects") == []
    assert sorted(p.name for p in (both.path / "labels").iterdir()) == ["irnet", "tissue", "zarr.json"]
    with pytest.raises(StoreError, match="no labels/irnet-objects; found none"):
        both.objects("irnet")
    listed = json.loads((both.path / "labels/zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert listed == ["irnet", "tissue"]
    assert verify(both.path).ok


def test_objects_go_with_a_mask_that_a_network_replaces(both: SlideStore) -> None:
    with ResumableMapWriter(both, "irnet", "key", 1, 16) as maps:
        maps.finish(VALUES, META)
    assert both.names("objects") == []


def test_objects_can_be_replaced_while_they_are_open_and_other_masks_keep_theirs(both: SlideStore) -> None:
    both.objects("irnet").read(whole(both))
    both.write_objects("irnet", META, in_shards(both, numbers_of(both) // 2))
    np.testing.assert_array_equal(both.objects("irnet").read(whole(both)), numbers_of(both) // 2)
    both.write_labels("camel", VALUES, META, in_shards(both, np.zeros(both.mask_spec.shape, np.uint8)))
    assert both.names("objects") == ["irnet"]


def test_writing_that_fails_leaves_nothing(both: SlideStore) -> None:
    def cut_off() -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
        yield from in_shards(both, numbers_of(both))
        raise RuntimeError("lost")

    before = both.attributes("objects", "irnet")
    with pytest.raises(RuntimeError, match="lost"):
        both.write_objects("irnet", {"digest": "y"}, cut_off())
    assert both.attributes("objects", "irnet") == before
    assert [p.name for p in both.path.parent.glob(".*.partial")] == []


def test_info_tells_of_objects(both: SlideStore) -> None:
    lines = [line for line in describe(both.path).splitlines() if line.startswith("objects ")]
    assert lines == ["objects    irnet: gland, 200 objects in labels/irnet-objects"]


@pytest.mark.parametrize("decode", [False, True])
def test_verify_checks_objects(both: SlideStore, decode: bool) -> None:
    clean = verify(both.path, decode)
    assert clean.ok, clean.damage
    file = both.path / "labels/irnet-objects/0/c/0/0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    assert [d.where for d in verify(both.path, decode).damage] == ["labels/irnet-objects/0/c/0/0"]
    file.unlink()
    assert ["missing" in d.what for d in verify(both.path, decode).damage] == [True]
    shutil.rmtree(both.path / "labels/irnet-objects")
    assert [d.where for d in verify(both.path).damage] == ["labels/irnet-objects/zarr.json"]


def test_a_kill_while_objects_are_dropped_leaves_a_store_that_is_whole(
    both: SlideStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsipipe.store.slide_store.replace_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        write_mask(both, "y")
    left = SlideStore(both.path)
    assert (left.names("labels"), left.names("objects")) == (["irnet", "tissue"], [])
    assert left.attributes("labels", "irnet")["digest"] == "x"
    assert verify(left.path).ok
