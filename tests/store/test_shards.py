"""Our shard files are Zarr's: stock zarr reads what we write, and we read what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.store.codec import jpeg_encode
from wsipipe.store.label_images import shard_windows
from wsipipe.store.layout import create_array
from wsipipe.store.shards import ArraySpec, ShardedArray, shard_file

FEW = examples(15)


def smooth(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Values that JPEG and zstd both like, different everywhere, never 255."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    phase = np.random.default_rng(seed).uniform(0, 6)
    return (120 + 110 * np.sin(phase + sum(g / (5 + i) for i, g in enumerate(grids)))).astype(np.uint8)


def made(path: Path, shape: tuple[int, ...], quality: int = 0, fill: int = 255, dtype: str = "uint8") -> ShardedArray:
    return array_of(path, ArraySpec(shape, dtype, fill, chunk_px=16, shard_px=64, quality=quality))


def array_of(path: Path, spec: ArraySpec) -> ShardedArray:
    return create_array(path, spec, "cyx" if len(spec.shape) == 3 else "yx")


def write_all(array: ShardedArray, pixels: NDArray[np.generic]) -> None:
    for shard, w in shard_windows(array.spec):
        array.write_region(shard, pixels[..., w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])


def whole(array: ShardedArray) -> Window:
    return Window(0, 0, array.spec.shape[-1], array.spec.shape[-2])


@st.composite
def specs(draw: st.DrawFn, quality: st.SearchStrategy[int]) -> ArraySpec:
    """Arrays of all kinds, chunks and shards of all sizes; the side is a few chunks, whole or not."""
    q = draw(quality)
    n = draw(st.sampled_from([8, 16, 24, 40]))
    plane = (draw(st.integers(1, 5 * n)), draw(st.integers(1, 5 * n)))
    lead = (3,) if q else draw(st.sampled_from([(), (1,), (3,), (4,)]))
    return ArraySpec((*lead, *plane), "uint8", 255, n, n * draw(st.sampled_from([1, 2, 3, 8])), q)


def with_holes(spec: ArraySpec, seed: int, holes: float) -> NDArray[np.uint8]:
    """Pixels of an array, some of whose chunks hold nothing but the fill value."""
    pixels, rng, n = smooth(spec.shape, seed), np.random.default_rng(seed), spec.chunk_px
    for y in range(0, spec.shape[-2], n):
        for x in range(0, spec.shape[-1], n):
            if rng.random() < holes:
                pixels[..., y : y + n, x : x + n] = spec.fill
    return pixels


@FEW
@given(specs(st.just(0)), st.integers(0, 99), st.floats(0, 1))
def test_zstd_written_here_is_exact_in_stock_zarr(
    tmp_path_factory: pytest.TempPathFactory, spec: ArraySpec, seed: int, holes: float
) -> None:
    array = array_of(tmp_path_factory.mktemp("a") / "0", spec)
    pixels = with_holes(spec, seed, holes)
    write_all(array, pixels)
    np.testing.assert_array_equal(zarr.open_array(str(array.path), mode="r")[...], pixels)
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)


@FEW
@given(specs(st.just(0)), st.integers(0, 99), st.floats(0, 1))
def test_zstd_written_by_stock_zarr_is_exact_here(
    tmp_path_factory: pytest.TempPathFactory, spec: ArraySpec, seed: int, holes: float
) -> None:
    array = array_of(tmp_path_factory.mktemp("a") / "0", spec)
    pixels = with_holes(spec, seed, holes)
    zarr.open_array(str(array.path), mode="r+")[...] = pixels
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)


def through_jpeg(pixels: NDArray[np.uint8], n: int, quality: int) -> NDArray[np.uint8]:
    """Every chunk of n px, filled up with 255, encoded and decoded by the library itself: uint8 [3, h, w]."""
    h, w = pixels.shape[1:]
    out = np.pad(pixels, ((0, 0), (0, -h % n), (0, -w % n)), constant_values=255)
    for y in range(0, h, n):
        for x in range(0, w, n):
            block = np.ascontiguousarray(np.moveaxis(out[:, y : y + n, x : x + n], 0, -1))
            if (block != 255).any():
                decoded = imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(block, level=quality))
                out[:, y : y + n, x : x + n] = np.moveaxis(decoded, -1, 0)
    return out[:, :h, :w]


@FEW
@given(specs(st.sampled_from([75, 90])), st.integers(0, 99), st.floats(0, 1))
@example(ArraySpec((3, 1, 1), "uint8", 255, 16, 64, 75), 1, 0)  # its chroma drowns in white surroundings
@example(ArraySpec((3, 300, 500), "uint8", 255, 240, 480, 90), 1, 0)  # tiles of many scanners
def test_jpeg_is_the_same_from_both_sides(
    tmp_path_factory: pytest.TempPathFactory, spec: ArraySpec, seed: int, holes: float
) -> None:
    ours = array_of(tmp_path_factory.mktemp("a") / "0", spec)
    theirs = array_of(tmp_path_factory.mktemp("b") / "0", spec)
    pixels = with_holes(spec, seed, holes)
    write_all(ours, pixels)
    zarr.open_array(str(theirs.path), mode="r+")[...] = pixels
    by_zarr = zarr.open_array(str(ours.path), mode="r")[...]
    np.testing.assert_array_equal(by_zarr, through_jpeg(pixels, spec.chunk_px, spec.quality))
    np.testing.assert_array_equal(ShardedArray(ours.path).read(whole(ours)), by_zarr)
    np.testing.assert_array_equal(ShardedArray(theirs.path).read(whole(theirs)), zarr.open_array(str(theirs.path))[...])
    n, (h, w) = spec.chunk_px, spec.shape[-2:]
    inside = np.s_[:, : h // n * n, : w // n * n]  # zarr and we pad border chunks alike, but need not
    np.testing.assert_array_equal(ShardedArray(theirs.path).read(whole(theirs))[inside], np.asarray(by_zarr)[inside])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "int32"])
def test_other_types_pass_through_zstd(tmp_path: Path, dtype: str) -> None:
    array = made(tmp_path / "0", (2, 40, 70), fill=0, dtype=dtype)
    pixels = smooth((2, 40, 70)).astype(dtype)
    write_all(array, pixels)
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), pixels)
    np.testing.assert_array_equal(zarr.open_array(str(array.path), mode="r")[...], pixels)


def test_what_is_not_stored_reads_as_fill_value(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (130, 130), fill=7)
    assert (array.read(whole(array)) == 7).all()
    assert array.chunk((0, 0)) is None
    blocks = [((0, 0), np.full((16, 16), 7, np.uint8)), ((1, 2), np.full((16, 16), 9, np.uint8))]
    assert array.write_blocks((0, 0), blocks) == 1
    found = array.read(whole(array))
    assert (found[16:32, 32:48] == 9).all()
    found[16:32, 32:48] = 7
    assert (found == 7).all()
    assert array.chunk((0, 0)) is None  # holds only the fill value
    assert not shard_file(array.path, array.spec, (1, 1)).exists()


def test_a_shard_of_nothing_is_no_file_even_where_one_was(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (64, 64))
    assert array.write_shard((0, 0), []) == 0
    assert not shard_file(array.path, array.spec, (0, 0)).exists()
    assert array.write_region((0, 0), smooth((64, 64))) == 16
    assert array.write_shard((0, 0), []) == 0
    assert (array.read(whole(array)) == 255).all()
    assert (ShardedArray(array.path).read(whole(array)) == 255).all()
    assert [p for p in tmp_path.rglob("*") if "partial" in p.name] == []


def test_a_rewritten_shard_is_seen_by_the_array_that_wrote_it(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (64, 64))
    for seed in (1, 2):
        array.write_region((0, 0), smooth((64, 64), seed))
        np.testing.assert_array_equal(array.read(whole(array)), smooth((64, 64), seed))


@pytest.mark.parametrize("quality", [0, 90])
def test_a_flipped_byte_in_a_chunk_is_found(tmp_path: Path, quality: int) -> None:
    array = made(tmp_path / "0", (3, 64, 64), quality)
    write_all(array, smooth((3, 64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    damaged = ShardedArray(array.path)
    with pytest.raises(StoreError, match=r"c/0/0/0 chunk 0: damaged, the checksum does not match; tile or"):
        damaged.read(whole(array))
    damaged.read(Window(16, 16, 16, 16))  # its neighbours are whole


def test_a_flipped_byte_in_the_index_is_found(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="damaged index; tile or compute it again"):
        ShardedArray(array.path).read(whole(array))


@pytest.mark.parametrize("left", [0, 10, 300])
def test_a_cut_off_shard_is_found(tmp_path: Path, left: int) -> None:
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))
    file = shard_file(array.path, array.spec, (0, 0))
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(StoreError, match="tile or compute it again"):
        ShardedArray(array.path).read(whole(array))


def replaced(array: ShardedArray, index: dict[int, tuple[int, int]]) -> ShardedArray:
    """The array, with other (offset, nbytes) of some chunks of its first shard under a checksum that is right."""
    file = shard_file(array.path, array.spec, (0, 0))
    data = file.read_bytes()
    table = np.frombuffer(data[-260:-4], "<u8").copy()
    for i, (offset, size) in index.items():
        table[2 * i : 2 * i + 2] = offset, size
    crc = int(google_crc32c.value(table.tobytes())).to_bytes(4, "little")
    file.write_bytes(data[:-260] + table.tobytes() + crc)
    return ShardedArray(array.path)


@pytest.mark.parametrize("place", [(10**9, 20), (0, 2**40), (2**63, 2**63), (0, 3), (0, 0), (5, 2**64 - 1)])
def test_an_index_that_points_nowhere_is_found(tmp_path: Path, place: tuple[int, int]) -> None:
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))
    damaged = replaced(array, {3: place})
    with pytest.raises(StoreError, match="chunk 3: damaged, the checksum does not match"):
        damaged.read(Window(48, 0, 16, 16))
    np.testing.assert_array_equal(damaged.read(Window(0, 0, 48, 64)), smooth((64, 64))[:, :48])


@pytest.mark.parametrize(
    ("quality", "body"),
    [
        (90, b"no picture"),
        (90, jpeg_encode(np.zeros((16, 8, 3), np.uint8), 90)),
        (0, b"no zstd"),
        (0, imagecodecs.zstd_encode(b"short")),
    ],
)
def test_a_chunk_that_is_intact_but_no_picture_says_so(tmp_path: Path, quality: int, body: bytes) -> None:
    array = made(tmp_path / "0", (3, 64, 64), quality)
    array.write_shard((0, 0), [((1, 2), (body,))])
    for window in (Window(32, 16, 16, 16), Window(30, 10, 9, 9)):
        with pytest.raises(StoreError, match=r"c/0/0/0 chunk \(1, 2\): the checksum matches, but decoding fails \("):
            array.read(window)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_shard(tmp_path: Path, error: type[BaseException]) -> None:
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))

    def half() -> Iterator[tuple[tuple[int, int], tuple[bytes]]]:
        for i in range(16):
            yield (i // 4, i % 4), (b"half" * 9999,)
        raise error("power cut")

    with pytest.raises(error, match="power cut"):
        array.write_shard((0, 0), half())
    for each in (array, ShardedArray(array.path)):
        np.testing.assert_array_equal(each.read(whole(array)), smooth((64, 64)))
    write_all(array, smooth((64, 64), 1))
    np.testing.assert_array_equal(array.read(whole(array)), smooth((64, 64), 1))
    assert [p for p in tmp_path.rglob("*") if "partial" in p.name] == []


@pytest.mark.parametrize("pieces", [1, 2, 700, 3000])
def test_a_chunk_may_come_in_any_number_of_pieces(tmp_path: Path, pieces: int) -> None:
    array = made(tmp_path / "0", (64, 64))
    bodies = [array.spec.encode(smooth((16, 16), i)) for i in range(4)]
    cells = [(0, 0), (3, 3), (0, 3), (1, 1)]
    parts = [[*(b[i : i + 1] for i in range(pieces - 1)), b[pieces - 1 :]] for b in bodies]
    assert array.write_shard((0, 0), zip(cells, parts, strict=True)) == 4
    stock = np.asarray(zarr.open_array(str(array.path), mode="r")[...])
    for i, (row, col) in enumerate(cells):
        np.testing.assert_array_equal(stock[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16], smooth((16, 16), i))
    np.testing.assert_array_equal(array.read(whole(array)), stock)


def test_shards_of_thousands_of_chunks(tmp_path: Path) -> None:
    spec = ArraySpec((160, 160), "uint8", 255, chunk_px=4, shard_px=160)
    array = array_of(tmp_path / "0", spec)
    assert array.write_region((0, 0), smooth((160, 160))) == 1600
    np.testing.assert_array_equal(zarr.open_array(str(array.path), mode="r")[...], smooth((160, 160)))


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_disk_that_takes_less_than_it_was_given_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    array, short = made(tmp_path / "a", (3, 64, 64), 90), made(tmp_path / "b", (3, 64, 64), 90)
    write_all(array, smooth((3, 64, 64)))
    monkeypatch.setattr(os, "writev", lambda fd, pieces: os.write(fd, b"".join(pieces)[:most]))
    write_all(short, smooth((3, 64, 64)))
    files = [shard_file(a.path, a.spec, (0, 0)).read_bytes() for a in (array, short)]
    assert files[0] == files[1]


def test_a_full_disk_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = made(tmp_path / "0", (64, 64))
    write_all(array, smooth((64, 64)))

    def full(fd: int, pieces: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        write_all(array, smooth((64, 64), 1))
    np.testing.assert_array_equal(ShardedArray(array.path).read(whole(array)), smooth((64, 64)))


def test_present_says_which_chunks_are_stored(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (3, 130, 70), 90)
    cells = {(0, 0), (3, 4), (4, 1), (8, 4)}
    for shard, _ in shard_windows(array.spec):
        inside = sorted(cells & set(array.spec.chunks_of_shard(shard)))
        array.write_shard(shard, [(c, (b"x",)) for c in inside])
    found = ShardedArray(array.path).present()
    assert (found.shape, found.dtype) == ((9, 5), bool)
    assert set(zip(*map(list, np.nonzero(found)), strict=True)) == cells


def test_spec_counts_shards_and_chunks_inside_the_array() -> None:
    spec = ArraySpec((3, 130, 70), "uint8", 0, chunk_px=16, shard_px=64)
    assert spec.shards == (3, 2)
    assert spec.chunk_shape == (3, 16, 16)
    assert spec.chunks_of_shard((0, 1)) == [(r, 4) for r in range(4)]
    assert spec.chunks_of_shard((2, 1)) == [(8, 4)]
    every = [c for s, _ in shard_windows(spec) for c in spec.chunks_of_shard(s)]
    assert sorted(every) == [(r, c) for r in range(9) for c in range(5)]


def test_shard_windows_partition_the_array() -> None:
    spec = ArraySpec((3, 130, 70), "uint8", 0, chunk_px=16, shard_px=64)
    seen = np.zeros((130, 70), int)
    for _, w in shard_windows(spec):
        seen[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px] += 1
        assert w.y_px + w.height_px <= 130
        assert w.x_px + w.width_px <= 70
    assert (seen == 1).all()


def test_an_array_of_another_writer_is_refused(tmp_path: Path) -> None:
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


def test_the_index_is_where_the_sharding_specification_puts_it(tmp_path: Path) -> None:
    array = made(tmp_path / "0", (3, 64, 64), quality=90)
    inner = json.loads((array.path / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert inner["index_location"] == "end"
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert [c["name"] for c in inner["codecs"]] == ["transpose", "imagecodecs_jpeg", "crc32c"]
