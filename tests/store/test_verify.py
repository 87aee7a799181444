"""`verify` names whatever is damaged in a store, and nothing else; it never stumbles over damage itself."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.config.options import RunConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.runtime.context import RunContext
from wsipipe.store import PatchTable, SlideStore, layout
from wsipipe.store.codec import jpeg_encode
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ShardedArray
from wsipipe.store.tissue_levels import TissueLevels
from wsipipe.store.verify import Damage, Verdict, VerifyOptions, verify
from wsipipe.store.verify import run as verify_stores

MANY = examples(40)
SIZE = (1100, 300)


def filled(path: Path, quality: int = 90) -> SlideStore:
    """A whole store with something of everything: shards of 4 x 4 chunks of 64 px, holes, two levels."""
    grid = Grid(SIZE, (0.5, 0.5), (1.0, 1.0), 64, 64)
    slide = {"path": "/x.svs", "vendor": "v", "size_px0": SIZE, "mpp0": [0.5, 0.5], "mpp_source": "slide"}
    meta = {"slide_id": path.stem, "pixel_digest": "p", "slide": slide}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsipipe.store.slide_store.SHARD_PX", 256)
        store = SlideStore.create(path, grid, quality, meta, [64] * grid.levels)
    rng = np.random.default_rng(0)
    stored: dict[str, dict[str, int]] = {}
    for level in range(grid.levels):
        array = store.pixels(level)
        for (row, col), w in shard_windows(array.spec):
            pixels = rng.integers(0, 255, (3, w.height_px, w.width_px), np.uint8)
            pixels[:, :64, 64:128] = 255
            if level or (row, col) != (1, 1):
                stored.setdefault(str(level), {})[f"{row}.{col}"] = array.write_region((row, col), pixels)
    stored["0"]["1.1"] = 0
    store.update_meta(stored=stored, copied=0.0, bad=[])
    store.write_tissue(TissueLevels(rng.integers(0, 2, (38, 138), np.uint8), 8), {"digest": "t"})
    store.write_labels("camel", {0: "none", 1: "x"}, {}, [((0, 0), rng.integers(0, 2, SIZE[::-1], np.uint8))])
    store.write_scores("camel", 16, {"classes": ["x"]}, [((0, 0), rng.integers(0, 255, (1, 19, 69), np.uint8))])
    cells = np.stack(np.divmod(np.arange(30, dtype=np.int32), 10), 1)
    store.write_patches(PatchTable(grid, cells, np.ones(30, np.float32), np.zeros(30, np.uint8)))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store that nobody changes for good."""
    return filled(tmp_path_factory.mktemp("whole") / "a.zarr").path


@pytest.fixture
def copy(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def files(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def names(verdict: Verdict, file: str) -> bool:
    """Whether the file, or the column that it is a chunk of, is named, and nothing else is."""
    return {file} == {file if file.startswith(d.where + "/") else d.where for d in verdict.damage}


def checked(path: Path, file: str, content: bytes) -> Verdict | str:
    """What `verify` says, or the StoreError that it raises, while `file` has another content."""
    original = (path / file).read_bytes()
    try:
        (path / file).write_bytes(content)
        return verify(path, decode=True)
    except StoreError as error:
        return str(error)
    finally:
        (path / file).write_bytes(original)


def same_meaning(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


@pytest.mark.parametrize("quality", [0, 90])
@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_store_has_no_damage_and_every_chunk_is_read(tmp_path: Path, quality: int, decode: bool) -> None:
    store = filled(tmp_path / "a.zarr", quality)
    verdict = verify(store.path, decode)
    assert (verdict.damage, verdict.leftovers, verdict.ok) == ((), (), True)
    arrays = [store.pixels(0), store.pixels(1), store.scores("camel")]
    arrays += [store.labels(name, level) for name in ("camel", "tissue") for level in (0, 1)]
    assert verdict.chunks == sum(int(a.present().sum()) for a in arrays) > 100


def test_a_store_as_tiling_makes_it_is_whole(tiled: Path) -> None:
    assert verify(tiled, decode=True) == Verdict(tiled, verify(tiled).chunks, (), ())


def test_threads_find_the_same(copy: Path) -> None:
    for file in ("0/c/0/0/0", "0/c/0/0/2", "labels/camel/0/c/0/0"):
        data = bytearray((copy / file).read_bytes())
        data[5] ^= 1
        (copy / file).write_bytes(data)
    alone = verify(copy)
    assert len(alone.damage) == 3
    assert verify(copy, workers=4) == alone


@examples(100)
@given(st.data())
def test_one_changed_byte_anywhere_is_noticed_and_its_file_is_named(whole: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files(whole)))
    original = (whole / file).read_bytes()
    at, bits = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[at] ^= bits
    found = checked(whole, file, bytes(changed))
    assert isinstance(found, Verdict)
    if file.endswith("zarr.json") and same_meaning(original, bytes(changed)):
        assert found.ok  # white space
    else:
        assert names(found, file), found.damage


@MANY
@given(st.data())
def test_a_file_of_anything_else_is_noticed(whole: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files(whole)))
    original = (whole / file).read_bytes()
    cut = st.integers(0, len(original) - 1).map(lambda n: original[:n])
    extended = st.binary(min_size=1, max_size=9).map(lambda more: original + more)
    texts = st.sampled_from([b"", b"{}", b"[]", b"null", b"5", b'{"attributes": 5}', b'{"attributes": {"wsipipe": 5}}'])
    content = data.draw(st.one_of(cut, extended, st.binary(max_size=99), texts))
    found = checked(whole, file, content)
    if file.endswith("zarr.json") and same_meaning(original, content):
        assert isinstance(found, Verdict)
        assert found.ok
    elif isinstance(found, str):
        assert file == "zarr.json"  # nothing says any more that this was a store
        assert str(whole) in found
    else:
        assert names(found, file), found.damage


def test_every_file_that_is_gone_is_named(copy: Path) -> None:
    for file in files(copy):
        if file == "zarr.json":
            continue
        data = (copy / file).read_bytes()
        (copy / file).unlink()
        assert names(verify(copy), file), file
        (copy / file).write_bytes(data)
    assert verify(copy).ok


@pytest.mark.parametrize("gone", ["0", "1", "labels", "labels/camel", "labels/camel/1", "patches", "patches/64_64"])
def test_a_folder_that_is_gone_is_noticed(copy: Path, gone: str) -> None:
    shutil.rmtree(copy / gone)
    damage = verify(copy).damage
    assert damage
    assert all(d.where.startswith(gone) for d in damage)


def test_damage_is_told_in_words(copy: Path) -> None:
    (copy / "0/c/0/0/0").unlink()
    (copy / "0/c/0/0/1").write_bytes((copy / "0/c/0/0/1").read_bytes()[:-1])
    data = bytearray((copy / "0/c/0/0/2").read_bytes())
    data[3] ^= 1
    (copy / "0/c/0/0/2").write_bytes(data)
    shutil.copy(copy / "0/c/0/0/3", copy / "0/c/0/1/1")
    array = ShardedArray(copy / "0")
    kept = array.read(Window(768, 0, 64, 64))
    array.write_blocks((0, 3), [((0, 12), kept)])
    (copy / "0/c/0/0/4").unlink()
    (copy / "0/c/0/0/4").mkdir()
    assert verify(copy).damage == (
        Damage("0/c/0/0/0", "missing (15 chunks)"),
        Damage("0/c/0/0/1", "damaged index: none of its chunks can be read"),
        Damage("0/c/0/0/2", "chunk (0, 8): the checksum does not match"),
        Damage("0/c/0/0/3", "1 chunk, expected 15"),
        Damage("0/c/0/0/4", "cannot be read (Is a directory)"),
        Damage("0/c/0/1/1", "not listed in the store (15 chunks)"),
    )


def test_of_many_damaged_chunks_some_are_named(copy: Path) -> None:
    file = copy / "0/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[:-260:50] = bytes(len(data[:-260:50]))
    file.write_bytes(data)
    (damage,) = verify(copy).damage
    assert damage.what == ("chunks (0, 0), (0, 2), (0, 3), (1, 0), (1, 1) and 10 more: the checksum does not match")


MIDWAY = jpeg_encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), 90)
"""A whole stream; of its pixels, decoders return what is left when some bytes in the middle are lost."""


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"no picture\xff\xd9", "the checksum matches, but decoding fails"),
        (jpeg_encode(np.zeros((64, 64, 3), np.uint8), 90)[:-2], "the checksum matches, but decoding fails"),
        (MIDWAY[:-200] + bytes(100) + MIDWAY[-100:], "the checksum matches, but decoding fails"),
        (jpeg_encode(np.zeros((32, 64, 3), np.uint8), 90), "the checksum matches, but decoding fails"),
    ],
)
def test_a_stream_that_came_damaged_shows_when_it_is_decoded(copy: Path, body: bytes, what: str) -> None:
    array = ShardedArray(copy / "0")
    shard = array.shard((0, 0))
    assert shard
    cells = [(i // 4, i % 4) for i in shard.present()]
    bodies = [shard.body(i) or b"" for i in shard.present()]
    array.write_shard(
        (0, 0), [(c, (body if i == 6 else b,)) for i, (c, b) in enumerate(zip(cells, bodies, strict=True))]
    )
    assert verify(copy).ok
    (damage,) = verify(copy, decode=True).damage
    assert damage.where == "0/c/0/0/0"
    assert damage.what.startswith(f"chunk {cells[6]}: {what}")


def test_a_lossless_chunk_that_does_not_decode_is_found(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.zarr", quality=0)
    array = store.labels("camel", 1)
    count = len(list(array.spec.chunks_of_shard((0, 0))))
    array.write_shard((0, 0), [(c, (b"no zstd",)) for c in array.spec.chunks_of_shard((0, 0))])
    damage = verify(store.path, decode=True).damage
    assert [d.where for d in damage] == ["labels/camel/1/c/0/0"]
    assert "decoding fails" in damage[0].what
    assert count == 2


def test_what_is_not_listed_is_named_and_what_was_left_over_is_no_damage(copy: Path) -> None:
    (copy / "labels" / ".camel.old").mkdir()
    (copy / "labels" / ".camel.old" / "zarr.json").write_text("{}")
    (copy / "0/c/0/0/.1.partial").write_bytes(b"half")
    (copy / ".zarr.json.partial").touch()
    (copy / "empty").mkdir()
    verdict = verify(copy)
    assert verdict.ok
    assert sorted(verdict.leftovers) == [".zarr.json.partial", "0/c/0/0/.1.partial", "labels/.camel.old"]
    (copy / "0/c/0/7").mkdir()
    (copy / "0/c/0/7/0").write_bytes(b"beyond the border")
    (copy / "extras/deep").mkdir(parents=True)
    (copy / "extras/deep/x").touch()
    (copy / "note.txt").touch()
    what = "not listed in the store"
    assert verify(copy).damage == tuple(Damage(w, what) for w in ("0/c/0/7", "extras", "note.txt"))


def test_columns_of_different_lengths_are_found(copy: Path) -> None:
    shutil.rmtree(copy / "patches/64_64/status")
    layout.create_table(copy.parent / "t", {"status": np.zeros(29, np.uint8)}, {})
    shutil.move(copy.parent / "t/status", copy / "patches/64_64/status")
    assert verify(copy).damage == (Damage("patches/64_64", "columns of different lengths: [29, 30]"),)


def test_a_store_that_was_never_finished_says_so(tmp_path: Path) -> None:
    grid = Grid((300, 200), (0.5, 0.5), (1.0, 1.0), 64, 64)
    SlideStore.create(tmp_path / "b.zarr", grid, 90, {"slide_id": "b", "pixel_digest": "p"})
    found = {str(d) for d in verify(tmp_path / "b.zarr").damage}
    assert "zarr.json: the list of stored chunks is missing" in found
    assert "patches/64_64/zarr.json: missing or cannot be read (No such file or directory)" in found


def test_an_empty_store_is_whole(tmp_path: Path) -> None:
    grid = Grid((300, 200), (0.5, 0.5), (1.0, 1.0), 64, 64)
    store = SlideStore.create(tmp_path / "b.zarr", grid, 90, {"slide_id": "b", "pixel_digest": "p"})
    store.update_meta(stored={"0": {}})
    store.write_tissue(TissueLevels(np.zeros((25, 38), np.uint8), 8), {})
    store.write_patches(PatchTable(grid, np.zeros((0, 2), np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8)))
    assert verify(store.path) == Verdict(store.path, 0, (), ())


def test_what_is_no_store_of_this_version_is_an_error(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(StoreError, match=r"not a store \(no zarr\.json\)"):
        verify(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="a Zarr group, but not a wsipipe store"):
        verify(copy / "labels")
    old = layout.read_attributes(copy)
    old["wsipipe"]["schema"] = 1
    layout.write_group(copy, old)
    with pytest.raises(StoreError, match="store schema 1, this version reads 2; tile the slide again"):
        verify(copy)
    (copy / "zarr.json").write_bytes(b"")
    with pytest.raises(StoreError, match="not readable as Zarr v3 metadata"):
        verify(copy)


def test_a_damaged_root_costs_only_what_it_told(copy: Path) -> None:
    text = (copy / "zarr.json").read_text()
    (copy / "zarr.json").write_text(text.replace('"slide-store"', '"slide-storf"'))
    data = bytearray((copy / "0/c/0/0/2").read_bytes())
    data[3] ^= 1
    (copy / "0/c/0/0/2").write_bytes(data)
    (copy / "labels/tissue/0/c/0/0").unlink()
    assert [d.where for d in verify(copy).damage] == ["0/c/0/0/2", "labels/tissue/0/c/0/0", "zarr.json", "zarr.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is hidden from root")
def test_a_file_that_may_not_be_read_is_named(copy: Path) -> None:
    (copy / "0/c/0/0/0").chmod(0)
    (copy / "1/zarr.json").chmod(0)
    assert [d.where for d in verify(copy).damage] == ["0/c/0/0/0", "1/zarr.json"]


def test_one_chunk_is_in_memory_at_a_time(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.zarr")
    array = store.labels("camel")
    body = np.random.default_rng(0).bytes(500_000)
    array.write_shard((0, 0), ((c, (body,)) for c in array.spec.chunks_of_shard((0, 0))))
    verify(store.path)
    tracemalloc.start()
    verify(store.path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (store.path / "labels/camel/0/c/0/0").stat().st_size > 5e6
    assert peak < 3e6


def test_progress_counts_shards(copy: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(copy, progress=lambda task, done, total, note="": seen.append((task, done, total)))
    total = 2 * 5 + 2 + 2 + 2 + 1
    assert seen == [("verify a", i, total) for i in range(1, total + 1)]


def test_stores_are_checked_one_by_one_and_the_ledger_says_what_is_wrong(
    tmp_path: Path, whole: Path, copy: Path
) -> None:
    copy = copy.rename(copy.with_name("b.zarr"))
    (copy / "0/c/0/0/0").unlink()
    report, good = verify_stores(
        [whole, copy, tmp_path / "none.zarr"], VerifyOptions(), RunContext(RunConfig(runs=str(tmp_path / "runs")))
    )
    assert good == [whole]
    assert report.exit_code == 1
    with (tmp_path / "runs" / "verify.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["item"], r["status"]) for r in rows] == [("a", "done"), ("b", "failed"), ("none", "failed")]
    assert rows[1]["reason"] == "0/c/0/0/0: missing (15 chunks)"
    assert "not a store" in rows[2]["reason"]


def test_leftovers_and_damage_are_logged(copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / ".x.partial").touch()
    (copy / "0/c/0/0/0").unlink()
    with caplog.at_level("INFO"):
        verify_stores([copy], VerifyOptions(), RunContext(RunConfig(runs=str(tmp_path / "runs"))))
    assert f"{copy}: .x.partial is a leftover of an interrupted run and may be deleted" in caplog.text
    assert f"{copy}: 0/c/0/0/0: missing (15 chunks)" in caplog.text


def iterate(path: Path) -> Iterator[bytes]:
    yield from ((path / f).read_bytes() for f in files(path))


def test_nothing_is_changed_by_looking(whole: Path) -> None:
    before = list(iterate(whole))
    verify(whole, decode=True)
    assert list(iterate(whole)) == before
