"""TIFF tiles decode to the pixels of tifffile and OpenSlide in every compression; damage is a SlideError."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.tiffs import APERIO, JpegKind, expected, halved, overwrite, picture, place, tamper, write_jpeg, write_tiles

from wsipipe.errors import SlideError
from wsipipe.slides.tiff.file import TiffFileBytes
from wsipipe.slides.tiff.pages import parse_page
from wsipipe.slides.tiff.tiles import TiffTiles, pyramid_tiles

RGB = picture(600, 500)


def tiles_of(path: Path, page: int = 0) -> TiffTiles | None:
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        return TiffTiles.of(TiffFileBytes(path), parse_page(tiff.pages[page]))


def readable(path: Path, page: int = 0) -> TiffTiles:
    tiles = tiles_of(path, page)
    assert tiles is not None
    return tiles


def cells_of(tiles: TiffTiles) -> list[tuple[int, int]]:
    return [(row, col) for row in range(tiles.rows) for col in range(tiles.cols)]


def joined(tiles: TiffTiles) -> np.ndarray:
    """All tiles side by side, cropped to the level."""
    (width, height), (tw, th) = tiles.size_px, tiles.tile_px
    out = np.zeros((tiles.rows * th, tiles.cols * tw, 3), np.uint8)
    for row, col in cells_of(tiles):
        tile = tiles.decode((row, col))
        out[row * th : row * th + tile.shape[0], col * tw : col * tw + tile.shape[1]] = tile
    return out[:height, :width]


def by_openslide(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


HONEST = [
    JpegKind("420"),
    JpegKind("422"),
    JpegKind("444"),
    JpegKind("420", tables=False),
    JpegKind("420", jfif=True),
    JpegKind("444", rgb=True),
    JpegKind("444", rgb=True, numbers=True),
    JpegKind("444", rgb=True, tables=False),
    JpegKind("422", rgb=True),
    JpegKind("420", rgb=True, numbers=True),
]
LYING = [  # tifffile follows the stream, OpenSlide the tag
    JpegKind("444", rgb=True, jfif=True),
    JpegKind("444", rgb=True, tag="ycbcr"),
    JpegKind("444", rgb=True, tag="ycbcr", numbers=True),
    JpegKind("420", tag="rgb"),
    JpegKind("444", tag="rgb", jfif=True),
]


@pytest.mark.parametrize("tile", [240, 256])
@pytest.mark.parametrize("kind", [*HONEST, *LYING], ids=str)
def test_copied_streams_are_the_pixels_of_openslide_and_tifffile(tmp_path: Path, kind: JpegKind, tile: int) -> None:
    path = write_jpeg(tmp_path / "a.svs", RGB, kind, tile)
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    truth, tiles = by_openslide(path), readable(path)
    assert (tiles.is_jpeg, tiles.tile_px, tiles.size_px) == (True, (tile, tile), (600, 500))
    if kind in HONEST:
        np.testing.assert_array_equal(truth, expected(path))
    for (row, col), stored in tiles.stored(cells_of(tiles)):
        stream = b"".join(tiles.jpeg((row, col), stored))
        part = truth[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
        decoded = imagecodecs.jpeg8_decode(stream)
        assert decoded.shape == (tile, tile, 3)
        np.testing.assert_array_equal(decoded[: part.shape[0], : part.shape[1]], part)
        with Image.open(io.BytesIO(stream)) as shown:
            np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), decoded)
    np.testing.assert_array_equal(joined(tiles), truth)


SMOOTH = picture(300, 260, grain=0)
J2K = {"codecformat": "j2k", "level": 40, "reversible": False}
CODECS = {
    "none": {},
    "deflate": {"compression": "zlib"},
    "deflate with predictor": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "lzw with predictor": {"compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "lzma": {"compression": "lzma"},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg 2000": {"compression": "jpeg2000"},
    "aperio jpeg 2000": {"compression": 33005, "compressionargs": J2K},
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
def test_every_supported_compression_is_decoded_as_by_tifffile(tmp_path: Path, codec: str) -> None:
    path = write_tiles(tmp_path / "a.tif", SMOOTH, 128, **CODECS[codec])
    tiles = readable(path)
    assert not tiles.is_jpeg
    np.testing.assert_array_equal(joined(tiles), expected(path))
    with pytest.raises(TypeError, match="only JPEG tiles can be copied"):
        tiles.jpeg((0, 0), b"x")


@pytest.mark.parametrize("codec", ["none", "lzw", "aperio jpeg 2000"])
def test_openslide_agrees_if_it_supports_the_compression(tmp_path: Path, codec: str) -> None:
    described = {"description": APERIO.format(w=300, h=260, t=128)} if "aperio" in codec else {}
    path = write_tiles(tmp_path / "a.tif", SMOOTH, 128, **described, **CODECS[codec])
    np.testing.assert_array_equal(joined(readable(path)), by_openslide(path))


@pytest.mark.parametrize("options", [
    {"rowsperstrip": 16, "compression": "zlib"},
    {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    {"rowsperstrip": 16, "compression": "jpeg", "subsampling": (2, 2)},
    {"rowsperstrip": 1000},
    {},
], ids=str)  # fmt: skip
def test_strips_are_wide_tiles(tmp_path: Path, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **options)
    tiles = readable(tmp_path / "a.tif")
    assert tiles.tile_px == (600, min(500, int(options.get("rowsperstrip", 1000))))  # type: ignore[call-overload]
    assert (tiles.cols, tiles.rows, tiles.is_jpeg) == (1, -(-500 // tiles.tile_px[1]), False)
    np.testing.assert_array_equal(joined(tiles), expected(tmp_path / "a.tif"))


def test_strips_with_shared_jpeg_tables_are_decoded_with_them(tmp_path: Path) -> None:
    kind, path = JpegKind("444"), tmp_path / "a.tif"
    options = kind.options(64) | {"tile": None, "rowsperstrip": 64}
    strips = [kind.tile(np.ascontiguousarray(RGB[y : y + 64, :64])) for y in range(0, 448, 64)]
    tifffile.imwrite(path, iter(strips), shape=(448, 64, 3), dtype="uint8", **options)
    np.testing.assert_array_equal(joined(readable(path)), expected(path))


@pytest.mark.parametrize(("pixels", "options"), [
    (np.zeros((64, 64, 3), np.uint16), {"photometric": "rgb"}),
    (np.zeros((64, 64, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    (np.zeros((64, 64), np.uint8), {"photometric": "minisblack"}),
    (np.zeros((64, 64), np.uint8), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    (np.zeros((3, 64, 64), np.uint8), {"photometric": "rgb", "planarconfig": "separate"}),
    (np.zeros((64, 64, 3), np.uint8), {"photometric": "cielab"}),
    (np.zeros((64, 64, 3), np.uint8), {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}),
    (np.zeros((64, 64, 3), np.uint8), {"photometric": "rgb", "compression": "jpegxl"}),
], ids=["16 bit", "alpha", "grey", "palette", "planes", "lab", "rotated", "unknown codec"])  # fmt: skip
def test_other_pages_are_left_to_other_readers(tmp_path: Path, pixels: np.ndarray, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), **options)
    assert tiles_of(tmp_path / "a.tif") is None


@pytest.mark.parametrize(("compression", "photometric"), [(33003, 2), (33003, 6), (33005, 6)])
def test_jpeg_2000_without_a_colour_space_is_not_decoded(tmp_path: Path, compression: int, photometric: int) -> None:
    path = write_tiles(tmp_path / "a.tif", SMOOTH, 128, **CODECS["aperio jpeg 2000"])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(compression)
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(photometric)
    assert tiles_of(path) is None


def test_an_oversized_tile_is_not_decoded(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", SMOOTH, 128)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileWidth", "TileLength", "ImageWidth", "ImageLength"):
            tiff.pages[0].tags[name].overwrite(60_000, dtype="I")
    assert tiles_of(path) is None


# damage

SVS_CELL, SVS_INDEX = (1, 1), 4  # of a level of 2 x 3 tiles of 256 px


@pytest.fixture
def svs(tmp_path: Path) -> Path:
    return write_jpeg(tmp_path / "a.svs", RGB, big=True)


@pytest.mark.parametrize(("offset", "size", "message"), [
    (None, 0, r"tile \(1, 1\) is missing: the file has no bytes for it"),
    (0, 0, r"tile \(1, 1\) is missing: the file has no bytes for it"),
    (None, 1, r"tile \(1, 1\) is damaged: its JPEG stream has no end marker: it is truncated"),
    (None, 3000, r"tile \(1, 1\) is damaged: its JPEG stream has no end marker: it is truncated"),
    (10**9, None, r"tile \(1, 1\) lies beyond the end of the file; is the file complete"),
    (2**63, None, r"tile \(1, 1\) lies beyond the end of the file; is the file complete"),
    (2**64 - 1, None, r"tile \(1, 1\) lies beyond the end of the file; is the file complete"),
    (None, 2**40, r"tile \(1, 1\) is damaged: its size is given as 1099511627776 bytes"),
    (2**64 - 1, 2**64 - 1, r"tile \(1, 1\) is damaged: its size is given as 18446744073709551615 bytes"),
    (0, None, r"tile \(1, 1\) is damaged: its JPEG stream has no end marker"),
])  # fmt: skip
def test_a_tile_with_a_wrong_offset_or_size_is_a_slide_error(
    svs: Path, offset: int | None, size: int | None, message: str
) -> None:
    tamper(svs, SVS_INDEX, offset=offset, size=size)
    tiles = readable(svs)
    with pytest.raises(SlideError, match=f"^{svs}: {message}"):
        tiles.decode(SVS_CELL)
    whole = {cell: stored for cell, stored in tiles.stored(cells_of(tiles))}
    assert list(whole) == cells_of(tiles)
    with pytest.raises(SlideError, match=message):
        tiles.jpeg(SVS_CELL, whole[SVS_CELL])
    truth = by_openslide(write_jpeg(svs.with_name("good.svs"), RGB))
    for row, col in set(whole) - {SVS_CELL}:
        part = truth[row * 256 : (row + 1) * 256, col * 256 : (col + 1) * 256]
        decoded = imagecodecs.jpeg8_decode(b"".join(tiles.jpeg((row, col), whole[row, col])))
        np.testing.assert_array_equal(decoded[: part.shape[0], : part.shape[1]], part)


def test_an_absurd_size_is_not_read(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tamper(svs, SVS_INDEX, size=2**62)
    tiles, sizes = readable(svs), []
    read = TiffFileBytes.read
    monkeypatch.setattr(TiffFileBytes, "read", lambda file, at, size: sizes.append(size) or read(file, at, size))
    assert dict(tiles.stored(cells_of(tiles)))[SVS_CELL] == b""
    assert sum(sizes) < svs.stat().st_size


@pytest.mark.parametrize(("at", "data", "message"), [
    (0, bytes(30), "is damaged: it does not start with a JPEG marker"),
    (2, b"\x12\x34\x56", "is damaged: its JPEG header is damaged"),
    (7, b"\x01\x10", "is damaged: its JPEG stream is 256 x 272 px; expected 256 x 256"),
    (11, b"\x01", "is damaged: its JPEG stream has 1 channels of 8 bits"),
    (3000, b"\xff\xd8\xff\xd8", r"cannot be decoded \(Invalid JPEG file structure: two SOI markers\)"),
], ids=["magic", "marker", "height", "channels", "middle"])  # fmt: skip
def test_damaged_bytes_are_a_slide_error(svs: Path, at: int, data: bytes, message: str) -> None:
    overwrite(svs, place(svs, SVS_INDEX)[0] + at, data)
    with pytest.raises(SlideError, match=rf"tile \(1, 1\) {message}"):
        readable(svs).decode(SVS_CELL)


@pytest.mark.parametrize("codec", [c for c in CODECS if c != "webp"])
def test_a_truncated_tile_of_any_compression_is_a_slide_error(tmp_path: Path, codec: str) -> None:
    path = write_tiles(tmp_path / "a.tif", SMOOTH, 128, **CODECS[codec])
    tamper(path, 4, size=place(path, 4)[1] // 2)
    tiles = readable(path)
    with pytest.raises(SlideError, match=r"a\.tif: tile \(1, 1\) cannot be decoded \("):
        tiles.decode((1, 1))
    good = expected(write_tiles(path, SMOOTH, 128, **CODECS[codec]))
    np.testing.assert_array_equal(tiles.decode((0, 0)), good[:128, :128])


def test_a_file_that_cannot_be_read_is_a_slide_error(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    tiles = readable(svs)
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(SlideError, match=r"a\.svs: reading at byte \d+ failed \(Input/output error\)"):
        tiles.decode((0, 0))


def test_a_truncated_file_loses_only_the_tiles_at_its_end(svs: Path) -> None:
    good, (offset, size) = joined(readable(svs)), place(svs, 5)
    os.truncate(svs, offset + size // 2)
    tiles = readable(svs)
    for row, col in cells_of(tiles)[:5]:
        part = good[row * 256 : (row + 1) * 256, col * 256 : (col + 1) * 256]
        np.testing.assert_array_equal(tiles.decode((row, col))[: part.shape[0], : part.shape[1]], part)
    with pytest.raises(SlideError, match=r"tile \(1, 2\) lies beyond the end of the file"):
        tiles.decode((1, 2))


# reading

CELL = st.tuples(st.integers(0, 9), st.integers(0, 11))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[TiffTiles, dict[tuple[int, int], bytes]]:
    """Tiles of 16 px, two of which share their bytes and one of which is missing, and what each holds."""
    path = write_jpeg(tmp_path_factory.mktemp("many") / "a.svs", picture(192, 160), tile=16)
    tamper(path, 7, offset=place(path, 3)[0], size=place(path, 3)[1])
    tamper(path, 50, offset=0, size=0)
    tiles, data = readable(path), path.read_bytes()
    places = [place(path, i) for i in range(120)]
    return tiles, {(i // 12, i % 12): data[offset : offset + size] for i, (offset, size) in enumerate(places)}


@given(st.lists(CELL, max_size=60))
def test_tiles_are_read_in_any_order(
    many: tuple[TiffTiles, dict[tuple[int, int], bytes]], cells: list[tuple[int, int]]
) -> None:
    tiles, truth = many
    assert list(tiles.stored(cells)) == [(cell, truth[cell]) for cell in cells]


def test_adjacent_tiles_in_the_file_are_read_together(
    many: tuple[TiffTiles, dict[tuple[int, int], bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, truth = many
    reads = []
    read = TiffFileBytes.read
    monkeypatch.setattr(TiffFileBytes, "read", lambda file, at, size: reads.append(size) or read(file, at, size))
    assert dict(tiles.stored(cells_of(tiles))) == truth
    assert len(reads) <= 6  # the shared and the missing tile stand for themselves
    reads.clear()
    monkeypatch.setattr("wsipipe.slides.tiff.tiles._MAX_RUN", 2000)
    assert dict(tiles.stored(cells_of(tiles))) == truth
    assert max(reads) <= max(2000, *map(len, truth.values()))


def test_threads_may_share_the_tiles(svs: Path) -> None:
    tiles, truth = readable(svs), by_openslide(svs)
    with ThreadPoolExecutor(4) as pool:
        for (row, col), tile in zip(cells_of(tiles) * 8, pool.map(tiles.decode, cells_of(tiles) * 8), strict=True):
            part = truth[row * 256 : (row + 1) * 256, col * 256 : (col + 1) * 256]
            np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)


def test_the_file_is_closed_with_its_last_tiles(svs: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    tiles = pyramid_tiles(svs, [(600, 500)])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del tiles
    assert len(os.listdir("/proc/self/fd")) == before


def test_levels_are_found_by_their_size(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.svs", RGB, factors=(2, 4))
    found = pyramid_tiles(path, [(600, 500), (300, 250), (77, 77), (150, 125)])
    assert {level: tiles.size_px for level, tiles in found.items()} == {0: (600, 500), 1: (300, 250), 3: (150, 125)}
    assert pyramid_tiles(path, [(9, 9)]) == {}


@pytest.mark.parametrize("kind", [*HONEST, *LYING], ids=str)
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_tiles_of_jpeg_streams_are_found_without_tifffile(
    tmp_path: Path, kind: JpegKind, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jpeg(tmp_path / "a.svs", RGB, kind, 128, (2,), big)
    theirs = [readable(path, page) for page in (0, 2)]
    monkeypatch.setattr(tifffile, "TiffFile", None)
    ours = pyramid_tiles(path, [(600, 500), (300, 250)])
    assert list(ours) == [0, 1]
    for level, tiles in ours.items():
        cells = cells_of(tiles)
        assert dict(tiles.stored(cells)) == dict(theirs[level].stored(cells))
        assert dict(tiles.jpegs(cells)) == dict(theirs[level].jpegs(cells))


def test_a_file_of_another_format_has_no_tiles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.svs").write_bytes(b"nonsense")
    with caplog.at_level("INFO"):
        assert pyramid_tiles(tmp_path / "a.svs", [(600, 500)]) == {}
    assert "a.svs: not decoding tiles directly (" in caplog.text


# shrinking


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", [JpegKind("420"), JpegKind("444", rgb=True, numbers=True)], ids=["ycbcr", "rgb"])
def test_a_shrunk_tile_is_near_the_mean_and_in_its_place(tmp_path: Path, kind: JpegKind, shrink: int) -> None:
    y, x = np.mgrid[0:256, 0:256]
    slope = np.stack([x * 0.8 + 20, y * 0.8 + 20, 220 - x * 0.4 - y * 0.4], -1).astype(np.uint8)
    tiles = readable(write_jpeg(tmp_path / "a.svs", slope, kind))
    small = tiles.decode((0, 0), shrink).astype(float)
    assert small.shape == (256 // shrink, 256 // shrink, 3)
    wrong = (small - halved(tiles.decode((0, 0)), shrink))[1:-1, 1:-1]
    assert np.abs(wrong).max() <= 6
    assert np.abs(wrong.mean((0, 1))).max() / (0.8 * 1) < 0.5  # half a pixel of the slide would be 0.4 to 0.8 levels
