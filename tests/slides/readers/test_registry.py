"""The folder of readers is the registry: a new module is a new reader, and each reader looks into a file once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openslide
import pytest
import tifffile
from support.tiffs import picture

from wsipipe.errors import SlideError
from wsipipe.slides import find_slides, open_slide, readers
from wsipipe.slides.readers import find_opener, known_suffixes, load_readers

NEW_READER = """
from wsipipe.slides.readers.image import ImageReader

PRIORITY = 5
SUFFIXES = (".new",)


def sniff(file):
    return ImageReader if file.suffix == ".new" else None
"""


@pytest.fixture
def new_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader in one file outside the package, on the search path of the folder."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new_format.py").write_text(NEW_READER)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "more")])
    yield
    sys.modules.pop(f"{readers.__name__}.new_format", None)
    vars(readers).pop("new_format", None)


def test_readers_are_tried_in_the_order_of_their_priority() -> None:
    assert [r.__name__.rsplit(".", 1)[1] for r in load_readers()] == ["ome_tiff", "openslide", "tiff", "image"]


def test_every_reader_has_a_priority_of_its_own_and_suffixes() -> None:
    priorities = [r.PRIORITY for r in load_readers()]
    assert len(set(priorities)) == len(priorities)
    for reader in load_readers():
        suffixes = reader.SUFFIXES  # type: ignore[attr-defined]
        assert all(s == s.lower() and s.startswith(".") for s in suffixes)
    assert {".svs", ".png", ".tif"} <= set(known_suffixes())
    assert list(known_suffixes()) == sorted(known_suffixes())


@pytest.mark.usefixtures("new_reader")
def test_a_new_reader_is_one_file(tmp_path: Path, png_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "a.new"
    path.write_bytes(png_path.read_bytes())
    assert load_readers()[0].__name__.endswith(".new_format")
    assert list(find_slides([tmp_path / "slides"])) == ["a"]
    assert open_slide(path, "a", 0.5).info.size_px0 == (400, 300)


def test_a_reader_opens_a_file_once(tmp_path: Path, svs_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module, name in ((openslide, "OpenSlide"), (tifffile, "TiffFile")):
        kind = getattr(module, name)

        def counted(path: Any, *args: Any, name: Any = name, kind: Any = kind, **kwargs: Any) -> Any:
            opened.append(name)
            return kind(path, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    open_slide(svs_path, "svs").close()
    assert opened == ["OpenSlide"]
    opened.clear()
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(strips, picture(64, 64), photometric="rgb", rowsperstrip=16)
    opened.clear()
    open_slide(strips, "strips", 0.5).close()
    assert opened == ["OpenSlide", "TiffFile"]


def test_a_file_that_no_reader_knows_is_a_slide_error(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"nothing")
    with pytest.raises(SlideError, match=r"a\.xyz: no reader knows this format; check that the file is complete"):
        find_opener(tmp_path / "a.xyz")
