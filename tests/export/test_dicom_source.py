"""The source of a SEG: found by its size and series; what does not fit the slide is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dicom_slides import MPP0, Changes, draw, make_source, make_store, needs_highdicom, rebuilt

from wsipipe.errors import ConfigError, SlideError
from wsipipe.export.formats.dicom_seg import verify_dicom_seg, write_dicom_seg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@needs_highdicom
def test_a_slide_that_is_no_dicom_needs_a_source(folder: Path) -> None:
    mask = draw(200, 300)
    store = make_store(folder, mask)
    store.update_meta(slide={**store.meta["slide"], "vendor": "aperio", "path": "gone.svs"})
    with pytest.raises(ConfigError, match=r"not DICOM \(aperio\).*convert.*name the folder with --dicom-source"):
        write_dicom_seg(store, "net", folder / "s.dcm")
    make_source(folder / "wsi", (75, 50), name="level-1")
    (folder / "wsi" / "notes.dcm").write_text("not DICOM")
    path = write_dicom_seg(store, "net", folder / "s.dcm", source=folder / "wsi")
    np.testing.assert_array_equal(rebuilt(path), mask)
    verify_dicom_seg(path, store, "net", folder / "wsi" / "level-0.dcm")


def _no_orientation(d: Any) -> None:
    del d.ImageOrientationSlide


def _other_spacing(d: Any) -> None:
    d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0003, 0.0003]


def _label(d: Any) -> None:
    d.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]


@needs_highdicom
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_no_orientation, SlideError, r"place a mask on it are missing \(ImageOrientationSlide\)"),
        (_other_spacing, ConfigError, "pixels of 0.3 x 0.3 um, those of s have 0.25 x 0.2; name the folder"),
        (_label, ConfigError, "0 whole-slide images of 300 x 200 px"),
    ],
)
def test_sources_that_do_not_fit(folder: Path, change: Changes, error: type[Exception], message: str) -> None:
    store = make_store(folder, draw(200, 300))
    make_source(folder / "wsi", (300, 200), change)
    with pytest.raises(error, match=message):
        write_dicom_seg(store, "net", folder / "out" / "s.dcm")
    assert not (folder / "out").exists()


@needs_highdicom
def test_the_source_is_of_the_series_of_the_slide(folder: Path) -> None:
    store = make_store(folder, draw(200, 300))

    def stranger(d: Any) -> None:
        d.SeriesInstanceUID = "2.25.99"

    make_source(folder / "wsi", (300, 200), stranger, "another")
    verify_dicom_seg(write_dicom_seg(store, "net", folder / "s.dcm"), store, "net")
    with pytest.raises(ConfigError, match="2 whole-slide images of 300 x 200 px"):
        write_dicom_seg(store, "net", folder / "s.dcm", source=folder / "wsi")


@needs_highdicom
def test_an_mpp_of_the_users_own_does_not_move_the_mask(folder: Path) -> None:
    import pydicom

    store = make_store(folder, draw(200, 300))
    store.update_meta(slide={**store.meta["slide"], "mpp0": [0.5, 0.5], "mpp_source": "override"})
    seg = pydicom.dcmread(write_dicom_seg(store, "net", folder / "s.dcm"))
    spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert [float(mm) for mm in spacing] == [MPP0[1] / 1000, MPP0[0] / 1000]
