"""The user's tissue masks: found by slide id, and read on the overview."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import Grid
from wsipipe.slides import SlideFile
from wsipipe.tissue.user_masks import tissue_from_mask, with_masks


def test_masks_are_found_by_slide_id_and_a_manifest_takes_precedence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.mask.geojson"):
        (tmp_path / name).touch()
    slides = {
        "a": SlideFile(Path("a.svs")),
        "b": SlideFile(Path("b.svs"), None, Path("listed.png")),
        "c": SlideFile(Path("c.svs")),
    }
    with caplog.at_level(logging.WARNING):
        found = with_masks(slides, str(tmp_path))
    assert [file.mask for file in found.values()] == [tmp_path / "a.png", Path("listed.png"), None]
    assert caplog.messages == [f"{tmp_path}: no mask for c; detecting their tissue"]


def test_no_mask_for_any_slide_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no mask for any of the 1 slides \(a\)"):
        with_masks({"a": SlideFile(Path("a.svs"))}, str(tmp_path))


def test_a_mask_image_is_resampled_to_the_overview(tmp_path: Path) -> None:
    grid = Grid((1010, 770), (0.5, 0.5), (1.0, 1.0), 128, 128)
    mask = np.zeros((770, 1010), np.uint8)
    mask[200:600, 300:1010] = 3
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(mask))
    tifffile.imwrite(tmp_path / "a.tif", mask[::2, ::2], photometric="minisblack", tile=(64, 64))
    for name in ("a.png", "a.tif"):
        tissue = tissue_from_mask(tmp_path / name, grid, 8.0)
        assert tissue.kind.shape == (49, 64)
        assert tissue.note == ""
        expected = np.zeros((49, 64), bool)
        expected[12:37, 19:] = True  # centres 8, 24 ..
        np.testing.assert_array_equal(tissue.mask, expected)


def test_qupath_polygons_start_at_the_corner_of_the_frame(tmp_path: Path) -> None:
    square = [[[100, 50], [400, 50], [400, 250], [100, 250], [100, 50]]]
    text = json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}})
    path = tmp_path / "a.geojson"
    path.write_text(text)
    grid = Grid((1000, 500), (0.5, 0.5), (2.0, 2.0), 128, 128, (3000, 7000))
    tissue = tissue_from_mask(path, grid, 4.0)
    assert tissue.step_px == 8
    expected = np.zeros((32, 63), bool)
    expected[3:16, 6:25] = True  # centres 8, 24, .. in level-0 px from the frame's corner
    np.testing.assert_array_equal(tissue.mask, expected)


def test_an_empty_mask_has_a_note(tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(imagecodecs.png_encode(np.zeros((64, 64), np.uint8)))
    tissue = tissue_from_mask(tmp_path / "none.png", Grid((64, 64), (0.5, 0.5), (1.0, 1.0), 16, 16), 8.0)
    assert not tissue.mask.any()
    assert tissue.note == "no tissue in the mask none.png"


def test_a_mask_of_another_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ones((300, 900), np.uint8)))
    with pytest.raises(SlideError, match="export the mask of the whole slide"):
        tissue_from_mask(tmp_path / "a.png", Grid((640, 640), (0.5, 0.5), (1.0, 1.0), 16, 16), 8.0)
