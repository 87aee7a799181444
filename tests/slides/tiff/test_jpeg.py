"""Abbreviated JPEG streams become complete ones that every decoder reads alike; damage is a ValueError."""

from __future__ import annotations

import io
import threading

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.tiffs import JpegKind, only, picture, segments

from wsipipe.slides.tiff.jpeg import JpegHeaders

BLOCK = picture(64, 48)
SIZE = (64, 48)


def tables_of(kind: JpegKind) -> bytes | None:
    return kind.options(64)["jpegtables"] if kind.tables else None


def whole(kind: JpegKind, rgb: np.ndarray = BLOCK) -> bytes:
    return b"".join(JpegHeaders(tables_of(kind), SIZE, kind.rgb).standalone(kind.tile(rgb)))


COLOURS = (("420", False, False), ("422", False, False), ("444", True, False), ("444", True, True))
KINDS = [
    JpegKind(sampling, rgb, "", numbers, tables, jfif)
    for sampling, rgb, numbers in COLOURS
    for tables in (True, False)
    for jfif in (True, False)
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_decoders_agree_with_the_complete_stream_of_the_encoder(kind: JpegKind) -> None:
    truth = imagecodecs.jpeg8_decode(kind.whole(BLOCK), colorspace="RGB" if kind.rgb else "YCBCR", outcolorspace="RGB")
    stream = whole(kind)
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(stream), truth)
    with Image.open(io.BytesIO(stream)) as shown:
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), truth)
    assert np.abs(truth.astype(int) - BLOCK).mean() < 12


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_entropy_coded_data_is_copied_unchanged(kind: JpegKind) -> None:
    tile = kind.tile(BLOCK)
    head, rest = JpegHeaders(tables_of(kind), SIZE, kind.rgb).standalone(tile)
    assert tile.endswith(rest)
    assert len(tile) - len(rest) == segments(tile)[-1][2]
    assert [marker for marker, _, _ in segments(head)].count(0xEE) == 1
    assert 0xE0 not in [marker for marker, _, _ in segments(head)]


def test_the_tag_of_the_file_decides_the_colour_space() -> None:
    tile, tables = JpegKind("444", True).tile(BLOCK), tables_of(JpegKind("444", True))
    as_rgb, as_ycbcr = (
        imagecodecs.jpeg8_decode(b"".join(JpegHeaders(tables, SIZE, rgb).standalone(tile))) for rgb in (True, False)
    )
    assert np.abs(as_rgb.astype(int) - BLOCK).mean() < 12
    np.testing.assert_array_equal(
        as_ycbcr, imagecodecs.jpeg8_decode(JpegKind("444", True).whole(BLOCK), colorspace="YCBCR", outcolorspace="RGB")
    )


def test_progressive_tiles_restart_markers_and_fill_bytes_are_understood() -> None:
    stream = io.BytesIO()
    Image.fromarray(BLOCK).save(stream, "JPEG", progressive=True, subsampling="4:4:4", restart_marker_blocks=2)
    headers = JpegHeaders(None, SIZE, rgb=False)
    truth = imagecodecs.jpeg8_decode(stream.getvalue())
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(b"".join(headers.standalone(stream.getvalue()))), truth)
    filled = stream.getvalue().replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1)
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(b"".join(headers.standalone(filled))), truth)


def test_each_tile_is_read_with_its_own_header() -> None:
    kind = JpegKind(tables=False)
    headers = JpegHeaders(None, SIZE, rgb=False)
    for quality in (*range(20, 60), *range(20, 60)):
        tile = kind.whole(BLOCK, quality)
        np.testing.assert_array_equal(
            imagecodecs.jpeg8_decode(b"".join(headers.standalone(tile))), imagecodecs.jpeg8_decode(tile)
        )


def test_threads_may_share_the_headers() -> None:
    kind = JpegKind(tables=False)
    tiles = [kind.whole(BLOCK, quality) for quality in range(10, 90, 4)]
    wanted = [imagecodecs.jpeg8_decode(tile) for tile in tiles]
    wrong: list[object] = []

    def work(headers: JpegHeaders) -> None:
        try:
            for tile, rgb in zip(tiles, wanted, strict=True):
                if not np.array_equal(imagecodecs.jpeg8_decode(b"".join(headers.standalone(tile))), rgb):
                    wrong.append(tile)
        except Exception as error:  # noqa: BLE001 - the test reports any error of a thread
            wrong.append(error)

    for _ in range(5):
        headers = JpegHeaders(None, SIZE, rgb=False)
        threads = [threading.Thread(target=work, args=(headers,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_padding_after_the_end_marker_is_kept_and_harmless() -> None:
    kind = JpegKind()
    headers = JpegHeaders(tables_of(kind), SIZE, rgb=False)
    plain, padded = (b"".join(headers.standalone(kind.tile(BLOCK) + bytes(n))) for n in (0, 40))
    assert padded == plain + bytes(40)
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(padded), imagecodecs.jpeg8_decode(plain))


TILE = JpegKind().tile(BLOCK)
FRAME, SCAN = (next((i, j) for marker, i, j in segments(TILE) if marker == wanted) for wanted in (0xC0, 0xDA))


@pytest.mark.parametrize(("tile", "message"), [
    (TILE[:-2], "its JPEG stream has no end marker: it is truncated"),
    (TILE[: len(TILE) // 2], "its JPEG stream has no end marker: it is truncated"),
    (b"", "its JPEG stream has no end"),
    (b"\0" * 30 + TILE[30:], "it does not start with a JPEG marker"),
    (TILE[:2] + b"\x12\x34" + TILE[4:], "its JPEG header is damaged"),
    (TILE[:4] + b"\xff\xf0" + TILE[6:], "its JPEG header is truncated"),
    (b"\xff\xd8" + TILE[SCAN[0] :], "its JPEG stream has no frame header"),
    (TILE[: SCAN[0]] + b"\xff\xd9", "its JPEG stream has no pixels"),
    (b"\xff\xd8\xff\xd9", "its JPEG stream has no frame header"),
    (JpegKind().tile(picture(64, 64)), "its JPEG stream is 64 x 64 px; expected 64 x 48"),
    (TILE[: FRAME[0] + 4] + b"\x0c" + TILE[FRAME[0] + 5 :], "has 3 channels of 12 bits; expected 3 of 8"),
    (bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(BLOCK[..., 0]))), "has 1 channels of 8 bits; expected 3 of 8"),
    (bytes(imagecodecs.jpeg8_encode(BLOCK, lossless=True)), "its JPEG stream has no frame header"),
])  # fmt: skip
def test_damage_is_a_value_error_that_names_it(tile: bytes, message: str) -> None:
    headers = JpegHeaders(tables_of(JpegKind()), SIZE, rgb=False)
    headers.standalone(TILE)
    with pytest.raises(ValueError, match=message):
        headers.standalone(tile)


def test_damaged_tables_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="its JPEG header is"):
        JpegHeaders(b"\xff\xd8\xff\xdb\xff\xff", SIZE, rgb=False)


@given(st.binary(max_size=40), st.integers(0, len(TILE)), st.integers(0, 60))
def test_any_bytes_give_a_stream_or_a_value_error(junk: bytes, at: int, cut: int) -> None:
    headers = JpegHeaders(tables_of(JpegKind()), SIZE, rgb=False)
    for tile in (junk, junk + b"\xff\xd9", TILE[:at] + junk + TILE[at + cut :]):
        try:
            head, rest = headers.standalone(tile)
        except ValueError:
            continue
        assert head.startswith(b"\xff\xd8\xff\xee")
        assert only(head, 0xDB, 0xC4)
        assert tile.endswith(rest)
