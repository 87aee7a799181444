"""OME-TIFF is recognised by its OME-XML, before OpenSlide sees the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.tiffs import picture

from wsipipe.slides.readers import find_opener, ome_tiff, openslide
from wsipipe.slides.readers.tiff import TiffReader

RGB = picture(256, 192)


def test_a_tiled_ome_tiff_is_read_by_its_own_reader_though_openslide_would_take_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB, ome=True, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS"})
    assert openslide.sniff(path)
    assert ome_tiff.sniff(path) is TiffReader
    assert find_opener(path) is TiffReader


@pytest.mark.parametrize("description", ["", "OME", "<OME", "x" * 300])
def test_a_tiff_with_another_description_is_left_to_other_readers(tmp_path: Path, description: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", description=description, metadata=None)
    assert ome_tiff.sniff(tmp_path / "a.tif") is None


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\x89PNG\r\n\x1a\n", b"II*\0\xff\xff\xff\xff"])
def test_a_file_of_another_format_is_left_to_other_readers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert ome_tiff.sniff(tmp_path / "a.tif") is None


def test_padding_after_the_xml_is_accepted(tmp_path: Path) -> None:
    xml = '<?xml version="1.0"?><OME></OME>\r\n\t \0'
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), description=xml, metadata=None)
    assert ome_tiff.sniff(tmp_path / "a.tif") is TiffReader
