"""TIFF directories equal those of tifffile, in both byte orders and sizes; damage is a ValueError."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from support.tiffs import overwrite, picture, write_tiles

from wsipipe.slides.tiff.file import Tag, TiffFileBytes, directories

RGB = picture(90, 70)


def write(path: Path, order: str, big: bool, description: str = "x") -> Path:
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=big) as tiff:
        for rgb in (RGB, RGB[::2, ::2], RGB[:16, :16]):
            tiff.write(rgb, tile=(16, 32), photometric="rgb", metadata=None, description=description)
    return path


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("description", ["x", "a text that does not fit into its entry"])
def test_the_tags_of_every_page_are_those_of_tifffile(tmp_path: Path, order: str, big: bool, description: str) -> None:
    path = write(tmp_path / "a.tif", order, big, description)
    with tifffile.TiffFile(path) as tiff:
        assert (tiff.byteorder, tiff.is_bigtiff) == (order, big)
        pages = list(directories(TiffFileBytes(path)))
        assert len(pages) == len(tiff.pages) == 3
        for ours, theirs in zip(pages, tiff.pages, strict=True):
            for tag in Tag:
                truth = theirs.tags.get(int(tag))
                assert (tag in ours) == (truth is not None)
                if truth is None:
                    assert (ours.values(tag), ours.number(tag, 7)) == (None, 7)
                elif tag is Tag.IMAGE_DESCRIPTION:
                    assert ours.values(tag).tobytes().rstrip(b"\0").decode() == description
                else:
                    assert ours.values(tag).tolist() == list(np.atleast_1d(truth.value))
                    assert ours.number(tag) == np.atleast_1d(truth.value)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("whole") / "a.tif", RGB, 32, (2,))


def read_all(path: Path) -> list[np.ndarray]:
    """What all tags of all pages hold."""
    held = [page.values(tag) for page in directories(TiffFileBytes(path)) for tag in Tag]
    return [values for values in held if values is not None]


@given(data=st.data())
def test_a_damaged_file_is_a_value_error_at_worst(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as tiff:  # bytes of the head and of the directories
        spans = [(0, 16), *((p.offset, p.offset + 2 + 12 * len(p.tags) + 4) for p in tiff.pages)]
    for start, end in data.draw(st.lists(st.sampled_from(spans), max_size=3)):
        content[data.draw(st.integers(start, end - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.getbasetemp() / "damaged.tif"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        held = read_all(damaged)
    except ValueError:
        return
    assert all(values.nbytes <= damaged.stat().st_size for values in held), "nothing is read that the file has not"


def test_a_cycle_of_directories_is_a_value_error(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(whole.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0], tiff.pages[1]
        overwrite(path, last.offset + 2 + 12 * len(last.tags), first.offset.to_bytes(4, "little"))
    with pytest.raises(ValueError, match="form a cycle"):
        read_all(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a TIFF file"), (b"MMnonsense" * 4, "unknown TIFF version"), (b"II*\0" + b"\xff" * 20, "ends within")],
    ids=["empty", "version", "beyond"],
)
def test_a_file_of_another_format_is_a_value_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_all(tmp_path / "a.tif")
