"""Maps that grow beside a store: kept when a run dies, gone on with under the same key, put in place together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.store import SlideStore
from wsipipe.store.map_writer import ResumableMapWriter, remove_finished
from wsipipe.store.verify import verify

VALUES = {0: "none", 1: "tumour", 2: "stroma", 255: "not predicted"}
META = {"digest": "k", "classes": ["tumour", "stroma"]}
SIZE = (600, 530)


def empty_store(path: Path, size: tuple[int, int] = SIZE) -> SlideStore:
    return SlideStore.create(
        path, Grid(size, (0.5, 0.5), (1.0, 1.0), 64, 64), 0, {"slide_id": "a", "pixel_digest": "d"}
    )


def drawn(size: tuple[int, int], stride: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A mask uint8 [h, w] and scores uint8 [2, rows, cols] of a whole slide."""
    rng = np.random.default_rng(seed)
    (w, h), shape = size, (2, -(-size[1] // stride), -(-size[0] // stride))
    return rng.integers(0, 3, (h, w), np.uint8), rng.integers(1, 256, shape, np.uint8)


def put(maps: ResumableMapWriter, shard: tuple[int, int], mask: np.ndarray, scores: np.ndarray) -> None:
    n, (rows, cols) = maps.spec.shard_px, maps.cells(shard)
    y, x = shard[0] * n, shard[1] * n
    maps.write(shard, mask[y : y + n, x : x + n], scores[:, rows, cols])


def every_shard(maps: ResumableMapWriter) -> list[tuple[int, int]]:
    return [(r, c) for r in range(maps.spec.shards[0]) for c in range(maps.spec.shards[1])]


def files(store: SlideStore, name: str = "unet") -> dict[str, bytes]:
    folders = [store.path / kind / name for kind in ("labels", "scores")]
    return {str(p.relative_to(store.path)): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}


def damage_of_maps(store: SlideStore) -> list[str]:
    """What `verify` finds in masks and scores; the store itself was never tiled."""
    return [str(d) for d in verify(store.path).damage if d.where.startswith(("labels/", "scores/")) and "/" in d.where]


@pytest.mark.parametrize("stride", [1, 7, 8, 50])
def test_what_is_written_by_shard_is_read_as_a_whole(tmp_path: Path, stride: int) -> None:
    store = empty_store(tmp_path / "a.zarr")
    mask, scores = drawn(SIZE, stride)
    with ResumableMapWriter(store, "unet", "k", 2, stride, 256) as maps:
        for shard in reversed(every_shard(maps)):
            put(maps, shard, mask, scores)
        maps.finish(VALUES, META)
    np.testing.assert_array_equal(store.labels("unet").read(Window(0, 0, *SIZE)), mask)
    whole = Window(0, 0, scores.shape[2], scores.shape[1])
    np.testing.assert_array_equal(store.scores("unet").read(whole), scores)
    assert store.attributes("scores", "unet")["stride_px"] == stride
    assert store.attributes("labels", "unet")["digest"] == "k"
    assert damage_of_maps(store) == []
    assert [p.name for p in tmp_path.iterdir() if ".maps." in p.name] == []


def test_the_result_is_that_of_the_writers_of_whole_arrays(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr", (5000, 300))
    mask, scores = drawn((5000, 300), 8)
    with ResumableMapWriter(store, "unet", "k", 2, 8) as maps:
        for shard in every_shard(maps):
            put(maps, shard, mask, scores)
        maps.finish(VALUES, META)
    store.write_labels("plain", VALUES, META, [((0, 0), mask[:, :4096]), ((0, 1), mask[:, 4096:])])
    store.write_scores("plain", 8, META, [((0, 0), scores)])
    grown = {
        k.replace("/unet/", "/plain/"): v.replace(b'"name": "unet"', b'"name": "plain"')
        for k, v in files(store).items()
    }
    plain = files(store, "plain")
    assert set(grown) == set(plain)
    assert {k: v for k, v in grown.items() if "/c/" in k} == {k: v for k, v in plain.items() if "/c/" in k}
    for kind in ("labels", "scores"):
        assert store.attributes(kind, "unet") == store.attributes(kind, "plain")


@given(st.data())
@examples(10)
def test_a_run_that_dies_anywhere_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("growing")
    mask, scores = drawn(SIZE, 8)
    found = []
    for name, cuts in (("whole", 0), ("cut", 2)):
        store = empty_store(folder / name / "a.zarr")
        for _ in range(cuts):
            with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
                left = [s for s in every_shard(maps) if s not in maps.written]
                for shard in left[: data.draw(st.integers(0, len(left)))]:
                    put(maps, shard, mask, scores)
        with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
            for shard in every_shard(maps):
                if shard not in maps.written:
                    put(maps, shard, mask, scores)
            maps.finish(VALUES, META)
        found.append(files(store))
    assert found[0] == found[1]


def begun(store: SlideStore, key: str = "k") -> ResumableMapWriter:
    mask, scores = drawn(SIZE, 8)
    with ResumableMapWriter(store, "unet", key, 2, 8, 256) as maps:
        put(maps, (0, 0), mask, scores)
        put(maps, (1, 2), mask, scores)
    return maps


def test_another_key_begins_anew(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    begun(store)
    with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
        assert maps.written == {(0, 0), (1, 2)}
    with ResumableMapWriter(store, "unet", "l", 2, 8, 256) as maps:
        assert maps.written == frozenset()
        assert not list((maps.folder / "labels").rglob("c/*"))


def test_shards_that_were_not_written_are_255_and_score_0(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    begun(store)
    with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
        maps.finish(VALUES, META)
    mask, scores = drawn(SIZE, 8)
    expected, its_scores = np.full_like(mask, 255), np.zeros_like(scores)
    for y, x in ((0, 0), (256, 512)):
        expected[y : y + 256, x : x + 256] = mask[y : y + 256, x : x + 256]
        part = np.s_[:, y // 8 : y // 8 + 32, x // 8 : x // 8 + 32]
        its_scores[part] = scores[part]
    np.testing.assert_array_equal(store.labels("unet").read(Window(0, 0, *SIZE)), expected)
    np.testing.assert_array_equal(store.scores("unet").read(Window(0, 0, 75, 67)), its_scores)
    assert store.attributes("labels", "unet")["stored"]["0"] == {"0.0": 1, "1.2": 1}
    assert damage_of_maps(store) == []


@pytest.mark.parametrize("damage", ["empty", "flip", "cut"])
def test_a_record_that_a_loss_of_power_cut_off_is_as_if_it_was_not_there(tmp_path: Path, damage: str) -> None:
    store = empty_store(tmp_path / "a.zarr")
    file = begun(store).folder / "written" / "0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"empty": b"", "flip": bytes(data), "cut": bytes(data[:-9])}[damage])
    with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
        assert maps.written == {(1, 2)}


def test_files_that_a_killed_writer_left_half_written_are_cleared(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    folder = begun(store).folder
    for place in ("labels/0/c/0/.1.partial", "written/.0.1.partial", "labels/0/.zarr.json.partial"):
        (folder / place).write_bytes(b"half")
    with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
        assert not list(folder.rglob("*.partial"))
        assert maps.written == {(0, 0), (1, 2)}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    with (
        ResumableMapWriter(store, "unet", "k", 2, 8),
        pytest.raises(StoreError, match=r"labels/unet is locked by process \d+"),
        ResumableMapWriter(SlideStore(store.path), "unet", "k", 2, 8),
    ):
        pass
    with ResumableMapWriter(store, "unet", "k", 2, 8), ResumableMapWriter(store, "other", "k", 2, 8):
        pass


def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ResumableMapWriter(empty_store(tmp_path / "a.zarr"), "../a", "k", 2, 8)


def test_what_was_there_stays_until_the_new_maps_are_complete(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    begun(store)
    with ResumableMapWriter(store, "unet", "k", 2, 8, 256) as maps:
        maps.finish(VALUES, META)
    before = files(store)
    begun(store, "new")
    assert files(store) == before
    with ResumableMapWriter(store, "unet", "new", 2, 8, 256) as maps:
        maps.finish(VALUES, {**META, "digest": "new"})
    assert store.attributes("labels", "unet")["digest"] == "new"


def test_only_the_rest_of_finished_maps_is_forgotten(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "a.zarr")
    folder = begun(store).folder
    remove_finished(store, "unet")
    assert folder.exists()
    (folder / "complete").touch()
    shutil.rmtree(folder / "labels")
    remove_finished(store, "unet")
    assert not folder.exists()
    remove_finished(store, "never")
