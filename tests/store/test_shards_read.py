"""Windows are read in batches: each chunk decoded once, by any number of threads, with a bounded number of files."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.runtime.executor import map_in_threads
from wsipipe.store import shards
from wsipipe.store.label_images import shard_windows
from wsipipe.store.layout import create_array
from wsipipe.store.shards import MAX_OPEN, ArraySpec, ShardedArray

FEW = examples(40)
POOL = ThreadPoolExecutor(3)
OPEN_FILES = Path("/proc/self/fd")


def open_below(folder: Path) -> int:
    """Files below a folder that this process has open."""
    links = []
    for link in OPEN_FILES.iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(link))
    return sum(link.startswith(str(folder)) for link in links)


def filled(path: Path, spec: ArraySpec, seed: int = 0, holes: float = 0.2) -> ShardedArray:
    """An array of random pixels, a share of whose chunks is not stored."""
    array = create_array(path, spec, "cyx" if len(spec.shape) == 3 else "yx")
    rng = np.random.default_rng(seed)
    for shard, _ in shard_windows(spec):
        cells = [c for c in spec.chunks_of_shard(shard) if rng.random() >= holes]
        array.write_blocks(shard, [(c, rng.integers(0, 255, spec.chunk_shape, np.uint8)) for c in cells])
    return ShardedArray(path)


def crops(array: ShardedArray, windows: list[Window]) -> NDArray[np.uint8]:
    """What stock zarr has in the windows, the fill value around it: [n, ..., h, w]."""
    whole, margin = np.asarray(zarr.open_array(str(array.path), mode="r")[...]), 400
    around = [(0, 0)] * (whole.ndim - 2) + [(margin, margin)] * 2
    padded = np.pad(whole, around, constant_values=array.spec.fill)
    at = ((w, w.y_px + margin, w.x_px + margin) for w in windows)
    return np.stack([padded[..., y : y + w.height_px, x : x + w.width_px] for w, y, x in at])


@st.composite
def batches(draw: st.DrawFn) -> tuple[ArraySpec, list[Window]]:
    """An array and windows of one size: over the border, beyond it, twice the same, exactly a chunk."""
    n = draw(st.sampled_from([8, 16, 24]))
    quality = draw(st.sampled_from([0, 90]))
    plane = (draw(st.integers(1, 6 * n)), draw(st.integers(1, 6 * n)))
    lead = (3,) if quality else draw(st.sampled_from([(), (1,), (3,)]))
    spec = ArraySpec((*lead, *plane), "uint8", 255, n, n * draw(st.sampled_from([1, 2, 4])), quality)
    side = st.one_of(st.just(n), st.integers(1, 4 * n))
    height, width = draw(side), draw(side)
    place = st.one_of(st.integers(-2, 6).map(lambda i: i * n), st.integers(-5 * n, 8 * n))
    corners = draw(st.lists(st.tuples(place, place), min_size=1, max_size=6))
    corners += draw(st.lists(st.sampled_from(corners), max_size=2))
    return spec, [Window(x, y, width, height) for x, y in corners]


SMALL = ArraySpec((3, 100, 130), "uint8", 255, 16, 64)


@FEW
@given(batches(), st.booleans(), st.sampled_from([0.0, 0.3, 1.0]))
@example((SMALL, [Window(133, 10, 9, 9), Window(10, 105, 9, 9)]), False, 0.0)  # beyond the border, in the last chunks
@example((SMALL, [Window(-30, -30, 14, 14)]), True, 0.0)
def test_a_batch_is_the_crops_that_stock_zarr_has(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any, pooled: bool, holes: float
) -> None:
    spec, windows = drawn
    array = filled(tmp_path_factory.mktemp("a") / "0", spec, holes=holes)
    found = array.read_batch(windows, POOL if pooled else None)
    assert (found.shape, found.dtype) == ((len(windows), *spec.shape[:-2], *found.shape[-2:]), np.uint8)
    np.testing.assert_array_equal(found, crops(array, windows))
    np.testing.assert_array_equal(found, np.stack([array.read(w) for w in windows]))


@pytest.mark.parametrize("at", [(-999, 5), (5, -999), (999, 5), (5, 999), (130, 0), (0, 100), (-9, 0), (0, -9)])
def test_a_window_far_away_is_fill_value(tmp_path: Path, at: tuple[int, int]) -> None:
    array = filled(tmp_path / "0", SMALL)
    assert (array.read(Window(*at, 9, 9)) == 255).all()


@pytest.mark.parametrize("quality", [0, 90])
@pytest.mark.parametrize("side", [16, 21])
def test_a_batch_is_a_channels_last_tensor_without_a_copy(tmp_path: Path, quality: int, side: int) -> None:
    array = filled(tmp_path / "0", ArraySpec((3, 100, 130), "uint8", 255, 16, 64, quality))
    found = array.read_batch([Window(16 * i, 16, side, side) for i in range(5)])
    tensor = torch.from_numpy(found)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor.data_ptr() == found.__array_interface__["data"][0]
    assert np.moveaxis(array.read(Window(0, 0, side, side)), 0, -1).flags.c_contiguous


@pytest.mark.parametrize("quality", [0, 90])
@pytest.mark.parametrize("pool", [None, POOL])
def test_each_chunk_is_decoded_once_in_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quality: int, pool: ThreadPoolExecutor | None
) -> None:
    array = filled(tmp_path / "0", ArraySpec((3, 128, 128), "uint8", 255, 16, 64, quality), holes=0)
    decoded: Counter[bytes] = Counter()
    plain = ArraySpec.decode

    def counted(spec: ArraySpec, body: bytes, out: Any = None) -> NDArray[np.generic]:
        decoded[body] += 1
        return plain(spec, body, out)

    monkeypatch.setattr(ArraySpec, "decode", counted)
    windows = [Window(x, y, 40, 40) for x in range(-8, 96, 8) for y in range(-8, 96, 8)]
    found = array.read_batch([*windows, *windows], pool)
    assert set(decoded.values()) == {1}
    assert len(decoded) == 64
    np.testing.assert_array_equal(found[: len(windows)], found[len(windows) :])


def test_a_window_that_is_a_chunk_is_decoded_straight_into_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = filled(tmp_path / "0", ArraySpec((3, 100, 100), "uint8", 255, 16, 64, 90), holes=0)
    expected = crops(array, windows := [Window(x, 16, 16, 16) for x in (0, 16, 16, 8, 96)])
    kept: list[NDArray[np.generic]] = []
    plain = ArraySpec.decode

    def spy(spec: ArraySpec, body: bytes, out: Any = None) -> NDArray[np.generic]:
        kept.append(plain(spec, body, out))
        return kept[-1]

    monkeypatch.setattr(ArraySpec, "decode", spy)
    found = array.read_batch(windows)
    np.testing.assert_array_equal(found, expected)
    assert sum(np.shares_memory(found, chunk) for chunk in kept) == 2  # (1, 0) and (1, 1); none that is cut


def test_windows_of_two_sizes_are_a_mistake(tmp_path: Path) -> None:
    array = filled(tmp_path / "0", SMALL)
    with pytest.raises(ValueError, match="windows of one size expected"):
        array.read_batch([Window(0, 0, 8, 8), Window(0, 0, 8, 9)])


@pytest.mark.parametrize("quality", [0, 90])
def test_several_threads_read_the_same_as_one_while_files_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quality: int
) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    array = filled(tmp_path / "0", ArraySpec((3, 150, 150), "uint8", 255, 16, 32, quality))
    windows = [Window(x, y, 40, 30) for x in range(0, 140, 12) for y in range(0, 140, 12)]
    expected = crops(array, windows)
    found: dict[int, NDArray[np.generic]] = {}
    map_in_threads(lambda i: array.read(windows[i]), range(len(windows)), 8, found.__setitem__)
    np.testing.assert_array_equal(np.stack([found[i] for i in range(len(windows))]), expected)
    assert len(array._open) == 2


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="needs /proc")
def test_a_bounded_number_of_files_is_open_and_all_are_closed_in_the_end(tmp_path: Path) -> None:
    array = filled(tmp_path / "0", ArraySpec((16, 16 * 100), "uint8", 255, 16, 16), holes=0)
    for _ in range(2):
        array.read(Window(0, 0, 1600, 16))
        assert open_below(tmp_path) == MAX_OPEN
    array.present()
    array.read_batch([Window(x, 0, 16, 16) for x in range(0, 1600, 16)], POOL)
    gc.collect()
    assert open_below(tmp_path) == MAX_OPEN
    del array
    gc.collect()
    assert open_below(tmp_path) == 0


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="needs /proc")
def test_damaged_and_rewritten_shards_leave_no_file_open(tmp_path: Path) -> None:
    array = filled(tmp_path / "0", ArraySpec((16, 64), "uint8", 255, 16, 16), holes=0)
    for _ in range(50):
        array.write_blocks((0, 0), [((0, 0), np.zeros((16, 16), np.uint8))])
        array.read(Window(0, 0, 16, 16))
    (tmp_path / "0/c/0/1").write_bytes(b"cut")
    for _ in range(50):
        with pytest.raises(StoreError, match="damaged index"):
            array.read(Window(16, 0, 16, 16))
    gc.collect()
    assert open_below(tmp_path) <= 1


def test_a_reader_keeps_its_shard_while_another_takes_its_place(tmp_path: Path) -> None:
    array = filled(tmp_path / "0", ArraySpec((64, 64), "uint8", 255, 16, 64), holes=0)
    pictures = [np.full((64, 64), v, np.uint8) for v in range(40)]
    array.write_region((0, 0), pictures[0])
    stop = threading.Event()

    def look() -> int:
        seen = 0
        while not stop.is_set():
            values = np.unique(array.read(Window(0, 0, 16, 16)))
            assert len(values) == 1
            seen += 1
        return seen

    with ThreadPoolExecutor(2) as readers:
        looks = [readers.submit(look) for _ in range(2)]
        for picture in pictures[1:]:
            array.write_region((0, 0), picture)
        stop.set()
        assert all(each.result() >= 0 for each in looks)
    assert (ShardedArray(array.path).read(Window(0, 0, 64, 64)) == 39).all()
