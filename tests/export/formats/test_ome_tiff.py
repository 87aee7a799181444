"""OME-TIFF: every pixel, size, position and name comes back, through tifffile and OpenSlide; damage is noticed."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.errors import ConfigError, StoreError
from wsipipe.export.formats import ome_tiff
from wsipipe.export.formats.ome_tiff import COLOURS as COLOURS_NS
from wsipipe.export.formats.ome_tiff import NAMES, SLIDE, verify_ome_tiff, write_ome_tiff
from wsipipe.export.values import label_values
from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.layout import COLOURS

VALUES = {0: "none", 1: "stroma", 2: "tumour <&\"{}> µ", 255: "ignore"}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """Where a mask lies: um/px, level-0 px per px, and its corner in level-0 px."""

    mpp: tuple[float, float] = (0.5, 0.5)
    scale: tuple[float, float] = (1.0, 1.0)
    origin_px0: tuple[int, int] = (0, 0)


def make_store(
    path: Path, mask: NDArray[np.uint8], frame: Frame | None = None, values: dict[int, str] | None = None
) -> SlideStore:
    """A store without pixels that holds `mask` as labels/net."""
    f, (height, width) = frame or Frame(), mask.shape
    size_px0 = (round(width * f.scale[0]), round(height * f.scale[1]))
    grid = Grid(size_px0, f.mpp, f.scale, 64, 64, f.origin_px0)
    assert grid.size_px == (width, height)
    store = SlideStore.create(path, grid, 0, {"slide_id": path.stem, "pixel_digest": "p"})
    shards = (
        (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
        for shard, w in shard_windows(store.mask_spec)
    )
    store.write_labels("net", values or VALUES, {"digest": "d", "method": "camel"}, shards)
    return store


def draw(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of 0, 1, 2 and 255 with single pixels strewn in."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array([0, 1, 2, 255], np.uint8), (-(-height // 50), -(-width // 50)))
    mask = blocks.repeat(50, 0).repeat(50, 1)[:height, :width].copy()
    mask[rng.integers(0, height, 40), rng.integers(0, width, 40)] = rng.choice(np.array([0, 1, 2, 255]), 40)
    return mask


def maps(path: Path) -> dict[str, dict[str, str]]:
    """Namespace -> keys and values of the map annotations."""
    found = ome(path)["StructuredAnnotations"]["MapAnnotation"]

    def pairs(entries: Any) -> dict[str, str]:
        listed = entries if isinstance(entries, list) else [entries]
        return {str(m["K"]): str(m["value"]) for m in listed}

    return {a["Namespace"]: pairs(a["Value"]["M"]) for a in found}


def ome(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as tiff:
        return dict(tifffile.xml2dict(tiff.ome_metadata)["OME"])


@examples(8)
@given(st.integers(1, 700), st.integers(1, 1300), st.sampled_from([16, 256, 512]), st.booleans(), st.integers(0, 3))
def test_all_levels_come_back(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile_px: int, palette: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("ome")
    mask = draw(height, width, seed)
    store = make_store(folder / "s.zarr", mask)
    path = write_ome_tiff(store, "net", folder / "out" / "s.ome.tiff", palette=palette, tile_px=tile_px, workers=1)
    assert os.listdir(path.parent) == ["s.ome.tiff"]
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        assert len(tiff.pages) == 1
        assert tiff.is_ome
        assert len(levels) == store.grid.levels
        np.testing.assert_array_equal(levels[0].asarray(), mask)
        if len(levels) > 1:
            rows, cols = (np.minimum(np.arange(-(-n // 4)) * 4 + 2, n - 1) for n in mask.shape)
            np.testing.assert_array_equal(levels[1].asarray(), mask[np.ix_(rows, cols)])
        assert {(p.compression.name, p.tilewidth, p.is_reduced) for p in (s.pages[0] for s in levels[1:])} <= {
            ("ADOBE_DEFLATE", tile_px, True)
        }
        assert tiff.pages[0].photometric.name == ("PALETTE" if palette else "MINISBLACK")
    verify_ome_tiff(path, store, "net")


def test_openslide_reads_values_and_resolution(tmp_path: Path) -> None:
    mask = draw(530, 1100)
    store = make_store(tmp_path / "s.zarr", mask, Frame(mpp=(0.25, 0.25)))
    with openslide.OpenSlide(write_ome_tiff(store, "net", tmp_path / "s.ome.tiff")) as slide:
        assert slide.dimensions == (1100, 530)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        rgba = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    np.testing.assert_array_equal(rgba[..., :3], np.repeat(mask[..., None], 3, axis=2))


def test_openslide_reads_the_colours_of_a_palette(tmp_path: Path) -> None:
    mask = draw(300, 400)
    path = write_ome_tiff(make_store(tmp_path / "s.zarr", mask), "net", tmp_path / "s.ome.tiff", palette=True)
    with openslide.OpenSlide(path) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].colormap[:, 1].tolist() == [v * 257 for v in COLOURS[0]]  # 255 is 65535
    for value, colour in {0: (0, 0, 0), 1: COLOURS[0], 2: COLOURS[1], 255: (128, 128, 128)}.items():
        assert (rgb[mask == value] == colour).all()


@given(
    st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
@examples(10)
def test_size_and_position_come_back(
    tmp_path_factory: pytest.TempPathFactory, mpp: tuple[float, float], scale: float, origin_px0: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("ome")
    store = make_store(folder / "s.zarr", draw(40, 70), Frame(mpp, (scale, scale), origin_px0))
    path = write_ome_tiff(store, "net", folder / "s.ome.tiff", tile_px=64)
    pixels = ome(path)["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{a}"] for a in "XY"] == pytest.approx(mpp, rel=1e-12)
    expected_um = [at * um / scale for at, um in zip(origin_px0, mpp, strict=True)]
    assert [pixels["Plane"][f"Position{a}"] for a in "XY"] == pytest.approx(expected_um, rel=1e-12)
    assert store.grid.origin_um == pytest.approx(expected_um, rel=1e-12)
    assert maps(path)[SLIDE]["origin_px0"] == "{} {}".format(*origin_px0)
    verify_ome_tiff(path, store, "net")


def test_names_and_colours_stand_where_programs_look(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", draw(40, 70))
    path = write_ome_tiff(store, "net", tmp_path / "s.ome.tiff")
    found = maps(path)
    assert found[NAMES] == {str(k): v for k, v in VALUES.items()}
    assert found[COLOURS_NS] == {"0": "#000000", "1": "#E6194B", "2": "#3CB44B", "255": "#808080"}
    image = ome(path)["Image"]
    assert image["Pixels"]["Channel"]["Name"] == f"net (0 none, 1 stroma, 2 {VALUES[2]}, 255 ignore)"
    for words in ("1 = stroma", "0 is none of the classes", "255 says nothing", "begins at level-0 pixel (0, 0)"):
        assert words in image["Description"]
    assert [v.name for v in label_values(store, "net")] == list(VALUES.values())


def test_many_names_leave_the_channel_its_own(tmp_path: Path) -> None:
    values = {0: "none", **{i: f"class number {i}" for i in range(1, 30)}, 255: "ignore"}
    store = make_store(tmp_path / "s.zarr", draw(40, 70), values=values)
    path = write_ome_tiff(store, "net", tmp_path / "s.ome.tiff")
    assert ome(path)["Image"]["Pixels"]["Channel"]["Name"] == "net"
    assert maps(path)[NAMES]["29"] == "class number 29"


def test_equal_masks_make_equal_files(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", draw(300, 700))
    one, two = (write_ome_tiff(store, "net", tmp_path / n, workers=w) for n, w in (("1.tif", 1), ("2.tif", 2)))
    assert one.read_bytes() == two.read_bytes()


def test_large_files_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "s.zarr", draw(300, 700))
    for limit, big in ((512 * 1024, False), (512 * 1024 - 1, True)):  # two tiles of 512 px
        monkeypatch.setattr(ome_tiff, "_CLASSIC_BYTES", limit)
        path = write_ome_tiff(store, "net", tmp_path / "s.ome.tiff")
        with tifffile.TiffFile(path) as tiff:
            assert tiff.is_bigtiff is big
        verify_ome_tiff(path, store, "net")


def test_the_mask_is_never_in_memory(tmp_path: Path) -> None:
    side = 5000
    store = make_store(tmp_path / "s.zarr", np.zeros((side, side), np.uint8))
    tracemalloc.start()
    path = write_ome_tiff(store, "net", tmp_path / "s.ome.tiff", workers=1)
    verify_ome_tiff(path, store, "net")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < side**2 / 2


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, SlideStore]:
    store = make_store(tmp_path / "s.zarr", draw(600, 1300))
    return write_ome_tiff(store, "net", tmp_path / "s.ome.tiff"), store


def first_tile(path: Path, level: int = 0, tile: int = 0) -> tuple[int, int]:
    """Offset and length of a tile in the file."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[level].pages[0].aspage()
        return page.dataoffsets[tile], page.databytecounts[tile]


def patched(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(("level", "tile", "where"), [(0, 0, "x 0, y 0"), (0, 4, "x 512, y 512"), (1, 0, "x 0, y 0")])
def test_a_damaged_tile_fails_the_verification(
    exported: tuple[Path, SlideStore], level: int, tile: int, where: str
) -> None:
    path, store = exported
    offset, size = first_tile(path, level, tile)
    patched(path, offset + size // 2, bytes(8))
    with pytest.raises(StoreError, match=f"level {level}, the tile at {where} cannot be decoded .*export it again"):
        verify_ome_tiff(path, store, "net")


def test_a_lost_end_fails_the_verification(exported: tuple[Path, SlideStore]) -> None:
    path, store = exported
    whole = path.read_bytes()
    for kept in (len(whole) - 30, len(whole) // 2, 40, 8, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(StoreError, match="export it again"):
            verify_ome_tiff(path, store, "net")
    path.unlink()
    with pytest.raises(StoreError, match="cannot be opened"):
        verify_ome_tiff(path, store, "net")


def test_the_first_wrong_pixel_is_named(tmp_path: Path, exported: tuple[Path, SlideStore]) -> None:
    path, _ = exported
    mask = draw(600, 1300)
    mask[530, 1290], mask[599, 0] = 1 if mask[530, 1290] != 1 else 2, 1 if mask[599, 0] != 1 else 2
    other = make_store(tmp_path / "other" / "s.zarr", mask)
    words = f"level 0, pixel x 0, y 599: found value {draw(600, 1300)[599, 0]}, the store has {mask[599, 0]}"
    with pytest.raises(StoreError, match=words):  # tiles come in the order of the file
        verify_ome_tiff(path, other, "net")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(mpp=(0.5, 0.50001)), "pixel size and position"),
        (Frame(origin_px0=(0, 1)), "pixel size and position"),
    ],
)
def test_another_frame_fails_the_verification(
    tmp_path: Path, exported: tuple[Path, SlideStore], frame: Frame, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        verify_ome_tiff(exported[0], make_store(tmp_path / "o.zarr", draw(600, 1300), frame), "net")


def test_another_size_fails_the_verification(tmp_path: Path, exported: tuple[Path, SlideStore]) -> None:
    with pytest.raises(StoreError, match=r"levels of \[\(600, 1300\), \(150, 325\)\] px found, .*601"):
        verify_ome_tiff(exported[0], make_store(tmp_path / "o.zarr", draw(601, 1300)), "net")


def test_a_plain_tiff_is_no_export(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", draw(40, 70))
    tifffile.imwrite(tmp_path / "plain.tif", draw(40, 70), metadata=None)
    with pytest.raises(StoreError, match=r"not a readable OME-TIFF \(it has no OME-XML"):
        verify_ome_tiff(tmp_path / "plain.tif", store, "net")
    tifffile.imwrite(tmp_path / "bare.ome.tif", draw(40, 70), ome=True)
    with pytest.raises(StoreError, match="its OME-XML lacks size or position"):
        verify_ome_tiff(tmp_path / "bare.ome.tif", store, "net")


def test_a_damaged_store_leaves_no_file(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", draw(600, 1300))
    before = write_ome_tiff(store, "net", tmp_path / "out" / "s.ome.tiff").read_bytes()
    shard = store.path / "labels" / "net" / "0" / "c" / "0" / "0"
    patched(shard, shard.stat().st_size // 2, b"\xff" * 4000)
    with pytest.raises(StoreError, match=r"checksum|index"):
        write_ome_tiff(SlideStore(store.path), "net", tmp_path / "out" / "s.ome.tiff")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s.ome.tiff"]
    assert (tmp_path / "out" / "s.ome.tiff").read_bytes() == before


def test_errors(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", draw(40, 70))
    with pytest.raises(StoreError, match="no labels/gone; found net"):
        write_ome_tiff(store, "gone", tmp_path / "o.tif")
    with pytest.raises(ConfigError, match="tiles of 100 px: TIFF requires multiples of 16"):
        write_ome_tiff(store, "net", tmp_path / "o.tif", tile_px=100)
    assert not (tmp_path / "o.tif").exists()


def test_the_tissue_of_a_tiled_slide(tmp_path: Path, tiled: Path) -> None:
    store = SlideStore(tiled)
    path = write_ome_tiff(store, "tissue", tmp_path / "t.ome.tiff")
    verify_ome_tiff(path, store, "tissue")
    assert maps(path)[NAMES] == {"0": "glass", "1": "tissue", "255": "invalid"}
