"""Our shard files are Zarr's: stock zarr reads what we write, and we read what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.runtime import map_threads
from wsipipe.store.layout import create_array
from wsipipe.store.shards import ArraySpec, ShardedArray, shard_file
from wsipipe.store.slide_store import shard_windows

FEW = settings(max_examples=15)


def smooth(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Values that JPEG and zstd both like, different everywhere, never 255."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    phase = np.random.default_rng(seed).uniform(0, 6)
    return (120 + 110 * np.sin(phase + sum(g / (5 + i) for i, g in enumerate(grids)))).astype(np.uint8)


def made(path: Path, shape: tuple[int, ...], quality: int = 0, fill: int = 255, dtype: str = "uint8") -> ShardedArray:
    axes = "cyx" if len(shape) == 3 else "yx"
    return create_array(path, ArraySpec(shape, dtype, fill, chunk_px=16, shard_px=64, quality=quality), axes)


def write_all(array: ShardedArray, pixels: NDArray[np.generic]) -> None:
    for shard, w in shard_windows(array.spec):
        array.write_region(shard, pixels[..., w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])


def whole(array: ShardedArray) -> Window:
    return Window(0, 0, array.spec.shape[-1], array.spec.shape[-2])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    plane = (draw(st.integers(1, 150)), draw(st.integers(1, 150)))
    return (draw(st.sampled_from([1, 3, 4])), *plane) if draw(st.booleans()) else plane


@FEW
@given(shapes(), st.integers(0, 99), st.floats(0, 1))
def test_zstd_written_here_is_exact_in_stock_zarr(tmp_path_factory, shape, seed: int, holes: float):
    array = made(tmp_path_factory.mktemp("a") / "0", shape)
    pixels = smooth(shape, seed)
    rng = np.random.default_rng(seed)
    for y in range(0, shape[-2], 16):
        for x in range(0, shape[-1], 16):
            if rng.random() < holes:
                pixels[..., y : y + 16, x : x + 16] = 255
    write_all(array, pixels)
    np.testing.assert_array_equal(zarr.open_array(str(array.path), mode="r")[...], pixels)
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)


@FEW
@given(shapes(), st.integers(0, 99))
def test_zstd_written_by_stock_zarr_is_exact_here(tmp_path_factory, shape, seed: int):
    array = made(tmp_path_factory.mktemp("a") / "0", shape)
    pixels = smooth(shape, seed)
    pixels[..., :16, :16] = 255
    zarr.open_array(str(array.path), mode="r+")[...] = pixels
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)


def through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Every 16 px chunk, filled up with 255, encoded and decoded by the library itself: uint8 [3, h, w]."""
    h, w = pixels.shape[1:]
    out = np.pad(pixels, ((0, 0), (0, -h % 16), (0, -w % 16)), constant_values=255)
    for y in range(0, h, 16):
        for x in range(0, w, 16):
            block = np.ascontiguousarray(np.moveaxis(out[:, y : y + 16, x : x + 16], 0, -1))
            decoded = imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(block, level=quality))
            out[:, y : y + 16, x : x + 16] = np.moveaxis(decoded, -1, 0)
    return out[:, :h, :w]


@FEW
@given(st.tuples(st.integers(1, 150), st.integers(1, 150)), st.integers(0, 99), st.sampled_from([75, 90]))
@example((1, 1), 1, 75)  # chroma of a single pixel drowns in its white surroundings
def test_jpeg_is_the_same_from_both_sides(tmp_path_factory, plane, seed: int, quality: int):
    shape = (3, *plane)
    ours = made(tmp_path_factory.mktemp("a") / "0", shape, quality)
    theirs = made(tmp_path_factory.mktemp("b") / "0", shape, quality)
    pixels = smooth(shape, seed)
    write_all(ours, pixels)
    zarr.open_array(str(theirs.path), mode="r+")[...] = pixels
    by_zarr = zarr.open_array(str(ours.path), mode="r")[...]
    np.testing.assert_array_equal(by_zarr, through_jpeg(pixels, quality))
    np.testing.assert_array_equal(ShardedArray(ours.path).read(whole(ours)), by_zarr)
    np.testing.assert_array_equal(ShardedArray(theirs.path).read(whole(theirs)), zarr.open_array(str(theirs.path))[...])
    inside = np.s_[:, : plane[0] // 16 * 16, : plane[1] // 16 * 16]  # zarr and we pad border chunks alike, but need not
    np.testing.assert_array_equal(ShardedArray(theirs.path).read(whole(theirs))[inside], by_zarr[inside])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "int32"])
def test_other_types_pass_through_zstd(tmp_path: Path, dtype: str):
    array = made(tmp_path / "0", (2, 40, 70), fill=0, dtype=dtype)
    pixels = smooth((2, 40, 70)).astype(dtype)
    write_all(array, pixels)
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)
    np.testing.assert_array_equal(zarr.open_array(str(array.path), mode="r")[...], pixels)


@FEW
@given(
    st.tuples(st.integers(-30, 160), st.integers(-30, 160)),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
)
@example((133, 10), (9, 9))  # beyond the border, in the last chunk
@example((10, 105), (9, 9))
@example((-30, -30), (14, 14))
def test_any_window_is_the_crop_of_the_whole_with_fill_around(tmp_path_factory, at, size):
    array = made(tmp_path_factory.mktemp("a") / "0", (3, 100, 130))
    pixels = smooth((3, 100, 130))
    write_all(array, pixels)
    padded = np.full((3, 600, 600), 255, np.uint8)
    padded[:, 200:300, 200:330] = pixels
    (x, y), (w, h) = at, size
    found = array.read(Window(x, y, w, h))
    np.testing.assert_array_equal(found, padded[:, 200 + y : 200 + y + h, 200 + x : 200 + x + w])


def test_what_is_not_stored_reads_as_fill_value(tmp_path: Path):
    array = made(tmp_path / "0", (130, 130), fill=7)
    assert (array.read(whole(array)) == 7).all()
    assert array.chunk((0, 0)) is None
    array.write_blocks((0, 0), {(1, 2): np.full((16, 16), 9, np.uint8), (0, 0): np.full((16, 16), 7, np.uint8)})
    found = array.read(whole(array))
    assert (found[16:32, 32:48] == 9).all()
    found[16:32, 32:48] = 7
    assert (found == 7).all()
    assert array.chunk((0, 0)) is None  # holds only the fill value
    assert not shard_file(array.path, array.spec, (1, 1)).exists()


def test_a_shard_of_nothing_is_no_file_even_where_one_was(tmp_path: Path):
    array = made(tmp_path / "0", (64, 64))
    array.write_shard((0, 0), [])
    assert not shard_file(array.path, array.spec, (0, 0)).exists()
    array.write_region((0, 0), smooth((64, 64)))
    array.write_shard((0, 0), [])
    assert (array.read(whole(array)) == 255).all()
    assert (ShardedArray(array.path).read(whole(array)) == 255).all()
    assert [p for p in tmp_path.rglob("*") if "partial" in p.name] == []


def test_a_rewritten_shard_is_seen_by_the_array_that_wrote_it(tmp_path: Path):
    array = made(tmp_path / "0", (64, 64))
    for seed in (1, 2):
        array.write_region((0, 0), smooth((64, 64), seed))
        np.testing.assert_array_equal(array.read(whole(array)), smooth((64, 64), seed))


def test_jpeg_chunks_lie_in_memory_channels_last(tmp_path: Path):
    array = made(tmp_path / "0", (3, 64, 64), quality=90)
    write_all(array, smooth((3, 64, 64)))
    chunk = array.chunk((0, 0))
    assert chunk is not None
    assert chunk.shape == (3, 16, 16)
    assert np.moveaxis(chunk, 0, -1).flags.c_contiguous


@pytest.mark.parametrize("quality", [0, 90])
def test_a_flipped_byte_in_a_chunk_is_found(tmp_path: Path, quality: int):
    array = made(tmp_path / "0", (3, 64, 64), quality)
    write_all(array, smooth((3, 64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    damaged = ShardedArray(array.path)
    with pytest.raises(StoreError, match=r"chunk \(0, 0\): the checksum does not match, the file is damaged"):
        damaged.read(whole(array))
    damaged.read(Window(16, 16, 16, 16))  # its neighbours are whole


def test_a_flipped_byte_in_the_index_is_found(tmp_path: Path):
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="the index is damaged; tile or compute it again"):
        ShardedArray(array.path).read(whole(array))


@pytest.mark.parametrize("left", [0, 10, 300])
def test_a_cut_off_shard_is_found(tmp_path: Path, left: int):
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(StoreError, match="tile or compute it again"):
        ShardedArray(array.path).read(whole(array))


@pytest.mark.parametrize("quality", [0, 90])
def test_several_threads_read_the_same_as_one(tmp_path: Path, quality: int):
    array = made(tmp_path / "0", (3, 150, 150), quality)
    write_all(array, smooth((3, 150, 150)))
    windows = [Window(x, y, 40, 30) for x in range(0, 140, 12) for y in range(0, 140, 12)]
    alone = [ShardedArray(array.path).read(w) for w in windows]
    shared = ShardedArray(array.path)
    found: dict[int, NDArray[np.generic]] = {}
    map_threads(lambda i: shared.read(windows[i]), range(len(windows)), 4, found.__setitem__)
    for i, pixels in enumerate(alone):
        np.testing.assert_array_equal(found[i], pixels)


def test_a_writer_that_fails_leaves_the_old_shard(tmp_path: Path):
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))

    def half():
        yield (0, 0), b"half"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        array.write_shard((0, 0), half())
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), smooth((64, 64)))


def test_spec_counts_shards_and_chunks_inside_the_array():
    spec = ArraySpec((3, 130, 70), "uint8", 0, chunk_px=16, shard_px=64)
    assert spec.shards == (3, 2)
    assert spec.chunk_shape == (3, 16, 16)
    assert spec.chunks_of_shard((0, 1)) == [(r, 4) for r in range(4)]
    assert spec.chunks_of_shard((2, 1)) == [(8, 4)]
    every = [c for s, _ in shard_windows(spec) for c in spec.chunks_of_shard(s)]
    assert sorted(every) == [(r, c) for r in range(9) for c in range(5)]


def test_shard_windows_partition_the_array():
    spec = ArraySpec((3, 130, 70), "uint8", 0, chunk_px=16, shard_px=64)
    seen = np.zeros((130, 70), int)
    for _, w in shard_windows(spec):
        seen[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px] += 1
        assert w.y_px + w.height_px <= 130
        assert w.x_px + w.width_px <= 70
    assert (seen == 1).all()


def test_an_array_of_another_writer_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="no array here"):
        ShardedArray(tmp_path)
    zarr.create_array(store=str(tmp_path / "plain"), shape=(8, 8), chunks=(8, 8), dtype="uint8")
    with pytest.raises(StoreError, match="not an array written by wsipipe"):
        ShardedArray(tmp_path / "plain")
    made(tmp_path / "ours", (64, 64))
    meta = json.loads((tmp_path / "ours" / "zarr.json").read_text())
    meta["codecs"][0]["configuration"]["codecs"][1]["name"] = "gzip"
    (tmp_path / "ours" / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="expected the JPEG or zstd chain of wsipipe"):
        ShardedArray(tmp_path / "ours")
    (tmp_path / "ours" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="not an array written by wsipipe"):
        ShardedArray(tmp_path / "ours")


def test_the_index_is_where_the_sharding_specification_puts_it(tmp_path: Path):
    array = made(tmp_path / "0", (3, 64, 64), quality=90)
    inner = json.loads((array.path / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert inner["index_location"] == "end"
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert [c["name"] for c in inner["codecs"]] == ["transpose", "imagecodecs_jpeg", "crc32c"]
