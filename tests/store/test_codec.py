"""The pixel codec: JPEG streams under a public name that stock zarr finds by itself."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
import zarr
from zarr.registry import get_codec_class

from wsipipe.store.codec import Jpeg, jpeg_decode, jpeg_encode


def photo(h: int = 64, w: int = 48) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([200 + 40 * np.sin(x / 9), 120 + y, 160 + 30 * np.cos((x + y) / 7)], -1).astype(np.uint8)


@pytest.mark.parametrize("quality", [50, 90, 100])
def test_a_stream_is_what_imagecodecs_makes_of_the_same_pixels(quality: int) -> None:
    assert jpeg_encode(photo(), quality) == imagecodecs.jpeg8_encode(photo(), level=quality)


def test_decode_gives_back_nearly_the_same_pixels_in_the_same_order() -> None:
    found = jpeg_decode(jpeg_encode(photo(), 95))
    assert (found.shape, found.dtype) == ((64, 48, 3), np.uint8)
    assert np.abs(found.astype(int) - photo()).mean() < 3


def test_decode_writes_where_it_is_told_to() -> None:
    stream = jpeg_encode(photo(), 95)
    out = np.zeros((3, 64, 48, 3), np.uint8)
    found = jpeg_decode(stream, out[1])
    assert np.shares_memory(found, out[1])
    np.testing.assert_array_equal(out[1], jpeg_decode(stream))
    assert not out[[0, 2]].any()
    with pytest.raises(ValueError, match="buffer"):
        jpeg_decode(stream, np.zeros((64, 47, 3), np.uint8))


@pytest.mark.parametrize("stream", [b"", b"x", jpeg_encode(photo(), 90)[:99]])
def test_what_is_no_picture_is_an_error(stream: bytes) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        jpeg_decode(stream)


def test_chroma_is_stored_at_half_size() -> None:
    stream = jpeg_encode(photo(), 90)
    frame = stream.index(b"\xff\xc0")
    assert stream[frame + 11] == 0x22  # sampling factors of the luminance


def test_a_view_with_other_strides_is_encoded_by_its_values() -> None:
    channels_first = np.ascontiguousarray(np.moveaxis(photo(), -1, 0))
    assert jpeg_encode(np.moveaxis(channels_first, 0, -1), 90) == jpeg_encode(photo(), 90)


def test_metadata_round_trip() -> None:
    assert Jpeg(77).to_dict() == {"name": "imagecodecs_jpeg", "configuration": {"level": 77}}
    assert Jpeg.from_dict(Jpeg(77).to_dict()) == Jpeg(77)
    assert Jpeg.from_dict({"name": "imagecodecs_jpeg"}) == Jpeg(90)


def test_zarr_finds_the_codec_by_its_name() -> None:
    assert get_codec_class("imagecodecs_jpeg").__name__ == "Jpeg"


def test_stock_zarr_writes_and_reads_with_it() -> None:
    array = zarr.create_array(
        store=zarr.storage.MemoryStore(),
        shape=(64, 48, 3),
        chunks=(64, 48, 3),
        dtype="uint8",
        serializer=Jpeg(90),
        compressors=None,
    )
    array[...] = photo()
    np.testing.assert_array_equal(array[...], jpeg_decode(jpeg_encode(photo(), 90)))


def test_the_size_of_a_stream_is_not_known_before() -> None:
    spec: Any = None
    with pytest.raises(NotImplementedError):
        Jpeg().compute_encoded_size(10, spec)
