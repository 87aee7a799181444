"""Mask images in the working frame against a per-pixel loop, value maps, and finding masks by slide id."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.annotations.mask_image import ValueMap, find_masks, mask_reader, read_mask
from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import Grid, Window

CLASSES = ("stroma", "tumour")


def grid_of(size_px0: tuple[int, int], scale: float = 1.0) -> Grid:
    return Grid(size_px0, (0.25 * scale, 0.25 * scale), (scale, scale), 16, 16)


def random_mask(size: tuple[int, int], dtype: type[np.generic] = np.uint8) -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(0, 4, (size[1], size[0])).astype(dtype)


def write(path: Path, mask: NDArray[np.generic], **how: object) -> Path:
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(mask)))
    else:
        tifffile.imwrite(path, mask, **{"photometric": "minisblack", **how})
    return path


def slow_nearest(mask: NDArray[np.generic], grid: Grid, factor: tuple[float, float]) -> NDArray[np.uint8]:
    """The mask pixel under each working pixel's centre, one at a time."""
    width, height = grid.size_px
    out = np.zeros((height, width), np.uint8)
    for row in range(height):
        for col in range(width):
            x_px0, y_px0 = grid.to_px0((col + 0.5, row + 0.5))
            x, y = int(x_px0 / factor[0]), int(y_px0 / factor[1])
            out[row, col] = mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)]
    return out


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.98, 0.5])
@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((101, 67), (1, 1)),
        ((51, 34), (2, 2)),  # ceil of the half
        ((50, 33), (2, 2)),  # floor of the half
        ((26, 17), (4, 4)),
        ((67, 45), (101 / 67, 67 / 45)),  # 1.5, which is not whole
    ],
)
def test_nearest_to_the_pixel_centre(
    tmp_path: Path, scale: float, size: tuple[int, int], factor: tuple[float, float]
) -> None:
    grid, mask = grid_of((101, 67), scale), random_mask(size)
    found = read_mask(write(tmp_path / "m.png", mask), grid)
    assert found.dtype == np.uint8
    assert found.shape == (grid.size_px[1], grid.size_px[0])
    np.testing.assert_array_equal(found, slow_nearest(mask, grid, factor))


@pytest.mark.parametrize(
    "how",
    [{}, {"tile": (32, 16), "compression": "zlib"}, {"rowsperstrip": 13, "compression": "zlib"}],
    ids=["plain", "tiles", "strips"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_pieces_is_the_same_as_png(tmp_path: Path, how: dict[str, object], dtype: type[np.generic]) -> None:
    grid, mask = grid_of((101, 67), 1.98), random_mask((101, 67), dtype)
    tiff = read_mask(write(tmp_path / "m.tif", mask, **how), grid)
    np.testing.assert_array_equal(tiff, read_mask(write(tmp_path / "m.png", mask), grid))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("m.png", {}),
        ("m.tif", {}),
        ("m.tif", {"tile": (32, 16), "compression": "zlib"}),
        ("m.tif", {"rowsperstrip": 13, "compression": "zlib"}),
    ],
)
def test_a_window_is_a_part_of_the_whole(tmp_path: Path, name: str, how: dict[str, object]) -> None:
    grid = grid_of((101, 67), 1.98)
    path = write(tmp_path / name, random_mask((101, 67)), **how)
    whole, read = read_mask(path, grid), mask_reader(path, grid)
    for x, y, w, h in ((0, 0, 51, 33), (3, 5, 1, 1), (20, 0, 31, 7), (50, 32, 1, 1)):
        np.testing.assert_array_equal(read(Window(x, y, w, h)), whole[y : y + h, x : x + w])


def test_only_the_pieces_under_a_window_are_decoded(tmp_path: Path) -> None:
    mask = random_mask((128, 128))
    path = write(tmp_path / "m.tif", mask, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].dataoffsets[0]
    damaged = bytearray(path.read_bytes())
    damaged[first : first + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    read = mask_reader(path, grid_of((128, 128)))
    np.testing.assert_array_equal(read(Window(16, 0, 112, 128)), mask[:, 16:])
    with pytest.raises(SlideError, match="not a readable PNG or TIFF mask"):
        read(Window(15, 0, 112, 128))


def test_bilevel_tiff(tmp_path: Path) -> None:
    mask = random_mask((32, 20)) > 1
    path = write(tmp_path / "m.tif", mask)
    np.testing.assert_array_equal(read_mask(path, grid_of((32, 20))), mask.astype(np.uint8))


def small_png(bits: int, packed: bytes, colour_type: int = 0, palette: bytes = b"") -> bytes:
    """A PNG of 8 x 1 px with `bits` a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 1, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", head) + (chunk(b"PLTE", palette) if palette else b"")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "packed", "values"),
    [
        (1, b"\x35", [0, 0, 1, 1, 0, 1, 0, 1]),
        (2, b"\x1b\xe4", [0, 1, 2, 3, 3, 2, 1, 0]),
        (4, b"\x01\x23\x4e\xff", [0, 1, 2, 3, 4, 14, 15, 15]),
    ],
)
def test_a_png_of_1_2_or_4_bits_keeps_its_values(tmp_path: Path, bits: int, packed: bytes, values: list[int]) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(small_png(bits, packed))
    assert read_mask(path, grid_of((8, 1))).tolist() == [values]


def test_sizes_without_a_common_factor(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", random_mask((300, 200)))
    expected = r"found 300 x 200 px; expected 2690 x 1940 px, the slide's level 0, or .* \(e\.g\. 1345 x 970\); export"
    with pytest.raises(SlideError, match=expected):
        read_mask(path, grid_of((2690, 1940)))
    with pytest.raises(SlideError, match="found 300 x 200 px; expected 150 x 100 px"):  # larger than the slide
        read_mask(path, grid_of((150, 100)))
    with pytest.raises(SlideError, match="found 300 x 200 px; expected 200 x 300 px"):
        read_mask(path, grid_of((200, 300)))
    with pytest.raises(SlideError, match="found 9 x 8 px; expected 60 x 40 px"):  # tiny, of another shape
        read_mask(write(tmp_path / "m.png", random_mask((9, 8))), grid_of((60, 40)))


@pytest.mark.parametrize(
    ("name", "mask", "how", "message"),
    [
        ("rgb.png", np.zeros((8, 8, 3), np.uint8), {}, "found a palette or several channels; expected a mask of one"),
        ("rgb.tif", np.zeros((8, 8, 3), np.uint8), {"photometric": "rgb"}, "found 3 channels; expected a mask of one"),
        (
            "palette.tif",
            np.zeros((8, 8), np.uint8),
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "found a palette; expected a mask of one",
        ),
        ("white.tif", np.zeros((8, 8), np.uint8), {"photometric": "miniswhite"}, "found inverted values .* 0 as black"),
        ("float.tif", np.zeros((8, 8), np.float32), {}, "found float32 pixels; expected a mask of one"),
        ("ids.tif", np.full((8, 8), 300, np.uint16), {}, r"found the value 300; expected mask values 0\.\.255"),
    ],
)
def test_images_that_are_not_masks(
    tmp_path: Path, name: str, mask: NDArray[np.generic], how: dict[str, object], message: str
) -> None:
    with pytest.raises(SlideError, match=message):
        read_mask(write(tmp_path / name, mask, **how), grid_of((8, 8)))


def test_palette_png(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(small_png(8, bytes(8), 3, b"\0\0\0\xff\0\0"))
    with pytest.raises(SlideError, match="found a palette or several channels"):
        read_mask(path, grid_of((8, 1)))


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(SlideError, match=f"{name}: no such mask"):
        read_mask(tmp_path / name, grid_of((8, 8)))
    (tmp_path / name).write_bytes(b"\x89PNG nonsense")
    with pytest.raises(SlideError, match=f"{name}: not a readable PNG or TIFF mask"):
        read_mask(tmp_path / name, grid_of((8, 8)))


def test_value_map_of_words_names_and_numbers() -> None:
    text = " 0=ignore, 1=0 ,2=tumour,3=none,4=other,5=1,6=stroma,7=255,"
    mapped = ValueMap.parse(text, CLASSES).apply(np.arange(8, dtype=np.uint8)[None])
    assert mapped.tolist() == [[255, 0, 2, 0, 0, 1, 1, 255]]
    assert mapped.dtype == np.uint8


def test_class_names_take_precedence_over_words() -> None:
    assert ValueMap.parse("1=other,2=none", ("x", "other")).pairs == ((1, 2), (2, 0))


def test_names_keep_their_order_and_numbers_are_names_too() -> None:
    meaning = ValueMap.parse("_2=0, Tumor: big =tumour,7=ignore", CLASSES)
    assert meaning.names == (("_2", 0), ("Tumor: big", 2), ("7", 255))
    assert meaning.pairs == ((7, 255),)


def test_without_a_map_names_are_those_of_the_classes() -> None:
    names = dict(ValueMap.parse("", ("stroma", "other")).names)
    assert names == {"stroma": 1, "other": 2, "0": 0, "none": 0, "ignore": 255}


@given(st.integers(0, 200))
def test_without_a_map_values_are_class_indices(count: int) -> None:
    classes = tuple(f"c{i}" for i in range(count))
    values = np.array([[*range(count + 1), 255]], np.uint8)
    np.testing.assert_array_equal(ValueMap.parse("", classes).apply(values), values)
    with pytest.raises(ConfigError, match=f"holds values {count + 1} that have no meaning"):
        ValueMap.identity(classes).apply(np.array([[count + 1]], np.uint8))


def test_values_without_a_meaning_are_listed() -> None:
    mask = np.array([[0, 1, 7, 9, 7]], np.uint8)
    with pytest.raises(
        ConfigError,
        match=r"x\.png: holds values 7, 9 that have no meaning \(known: 0=ignore,1=1\).*give --truth-map, e\.g\.",
    ):
        ValueMap.parse("0=ignore,1=stroma", CLASSES).apply(mask, "x.png")
    with pytest.raises(ConfigError, match="give --map"):
        ValueMap.identity(CLASSES, "--map").apply(mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0=ignore,2", r"--truth-map: '2' is not VALUE=CLASS with a value 0\.\.255 or a name, e\.g\. 2=stroma"),
        ("=stroma", "'=stroma' is not VALUE=CLASS"),
        ("a=0,a=stroma", "name a appears twice"),
        ("256=stroma", "'256=stroma' is not VALUE=CLASS"),
        ("-1=stroma", "'-1=stroma' is not VALUE=CLASS"),
        ("1=0,1=stroma", "value 1 appears twice"),
        ("2=malign", "'2=malign': unknown class 'malign'; known are stroma, tumour, 0, ignore"),
        ("2=3", "'2=3': unknown class '3'"),
        ("2=", "'2=': unknown class ''"),
    ],
)
def test_bad_parts_of_a_value_map_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueMap.parse(text, CLASSES)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def test_masks_in_a_folder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.png",
        "b.svs",
        "b.truth.TIF",
        "c.mask.png",
        "c.png",
        "d.truth.tiff",
        "d.mask.png",
        "e.txt",
        "f.x.png",
    )
    touch(tmp_path, "my slide.png", ".g.png")
    found = find_masks(str(tmp_path), ["a", "b", "c", "d", "e", "f", "f.x", "g", "my_slide"])
    assert {i: p.name for i, p in found.items()} == {
        "a": "a.png",
        "b": "b.truth.TIF",
        "c": "c.mask.png",
        "d": "d.truth.tiff",
        "f.x": "f.x.png",
        "my_slide": "my slide.png",
    }


def test_masks_by_pattern_and_glob(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        touch(tmp_path / name, "truth.png", f"{name}.mask.png")
    ids = ["a", "b", "c"]
    by_pattern = find_masks(f"{tmp_path}/{{slide_id}}/truth.png", ids)
    assert by_pattern == {i: tmp_path / i / "truth.png" for i in "ab"}
    by_glob = find_masks(f"{tmp_path}/**/*.mask.png", ids)
    assert by_glob == {i: tmp_path / i / f"{i}.mask.png" for i in "ab"}
    assert find_masks(f"{tmp_path}/a/a.mask.png", ids) == {"a": tmp_path / "a" / "a.mask.png"}


def test_a_missing_mask_is_an_error_that_says_what_was_searched(tmp_path: Path) -> None:
    ids = ["a", "b", "c", "d"]
    with pytest.raises(
        ConfigError, match=r"no mask for any of the 4 slides \(a, b, c, \.\.\); looked for .*<slide_id>\["
    ):
        find_masks(str(tmp_path), ids)
    with pytest.raises(ConfigError, match=r"looked for files .*/\{slide_id\}\.png"):
        find_masks(f"{tmp_path}/{{slide_id}}.png", ids)
    with pytest.raises(ConfigError, match=r"looked for files .*/gone \(no such folder\)"):
        find_masks(f"{tmp_path}/gone", ids)


def test_two_masks_of_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.truth.png", "a.truth.tif")
    with pytest.raises(ConfigError, match=r"slide a has two masks, .*a\.truth\.png and .*a\.truth\.tif; remove one"):
        find_masks(str(tmp_path), ["a"])
