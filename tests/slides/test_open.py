"""Opening slides: each format with its reader, each error with what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from support.types import Drawing, DrawTissue, WriteSvs

from wsipipe.errors import SlideError
from wsipipe.slides import open_slide
from wsipipe.slides.readers import openslide


def test_an_svs_has_its_size_levels_and_resolution(svs_path: Path) -> None:
    slide = open_slide(svs_path, "blob")
    assert slide.id == "blob"
    assert slide.info.vendor == "aperio"
    assert slide.info.size_px0 == (1200, 900)
    assert (slide.info.mpp0, slide.info.mpp_source) == ((0.5, 0.5), "slide")
    assert slide.downsamples == (1, 4, 16)
    assert [slide.level_size(k) for k in range(3)] == [(1200, 900), (300, 225), (75, 56)]
    assert slide.info.to_dict()["path"] == str(svs_path.resolve())
    slide.close()


def test_an_svs_reads_the_pixels_that_were_written(svs_path: Path, tissue_rgb: Drawing) -> None:
    slide = open_slide(svs_path, "blob")
    found = slide.read((320, 200), 0, (512, 400))
    assert (found.shape, found.dtype) == ((400, 512, 3), np.uint8)
    error = np.abs(found.astype(float) - tissue_rgb[0][200:600, 320:832])
    assert error.mean() < 4  # JPEG at quality 87, chroma at half size
    slide.close()


def test_outside_an_svs_is_white(svs_path: Path) -> None:
    slide = open_slide(svs_path, "blob")
    found = slide.read((-100, -50), 0, (300, 200))
    assert (found[:50] == 255).all()
    assert (found[:, :100] == 255).all()
    np.testing.assert_array_equal(found[50:, 100:], slide.read((0, 0), 0, (200, 150)))
    assert (slide.read((1200, 0), 0, (64, 64)) == 255).all()
    assert (slide.read((1100, 0), 0, (200, 64))[:, 100:] == 255).all()
    slide.close()


def test_the_override_replaces_the_resolution_and_fingerprints_differ_between_files(
    svs_path: Path, tmp_path: Path, svs_writer: WriteSvs, tissue_rgb: Drawing
) -> None:
    one, other = open_slide(svs_path, "blob"), open_slide(svs_path, "blob", 0.25)
    assert (other.info.mpp0, other.info.mpp_source) == ((0.25, 0.25), "override")
    assert one.info.fingerprint == other.info.fingerprint
    svs_writer(tmp_path / "b.svs", tissue_rgb[0][::-1])
    assert open_slide(tmp_path / "b.svs", "blob").info.fingerprint != one.info.fingerprint


def test_levels_of_uneven_size_have_whole_downsamples_and_read_where_they_are(
    tmp_path: Path, svs_writer: WriteSvs, tissue_drawer: DrawTissue
) -> None:
    rgb, _ = tissue_drawer((1203, 903), seed=3)
    svs_writer(tmp_path / "odd.svs", rgb)
    slide = open_slide(tmp_path / "odd.svs", "odd")
    assert slide.downsamples == (1, 4, 16)
    whole = slide.read((0, 0), 1, slide.level_size(1)).astype(float)
    for x, y in ((40, 100), (120, 60), (201, 150), (60, 40)):
        part = slide.read((x * 4, y * 4), 1, (40, 40)).astype(float)
        error = np.abs(part - whole[y : y + 40, x : x + 40]).mean()
        shifted = np.abs(part[:, 1:] - whole[y : y + 40, x : x + 39]).mean()
        assert error < shifted / 4  # OpenSlide interpolates, by an eighth of a pixel at most
    slide.close()


def test_several_threads_may_read_one_slide(svs_path: Path) -> None:
    from wsipipe.runtime.executor import map_in_threads

    slide = open_slide(svs_path, "blob")
    places = [(x, y) for x in range(0, 1100, 200) for y in range(0, 800, 200)]
    alone = {p: slide.read(p, 0, (150, 150)) for p in places}
    together: dict[tuple[int, int], np.ndarray] = {}
    map_in_threads(lambda p: slide.read(p, 0, (150, 150)), places, 4, together.__setitem__)
    assert all((alone[p] == together[p]).all() for p in places)
    slide.close()


@pytest.mark.parametrize(("mpp", "message"), [
    ("", "does not contain its resolution; set it with --mpp-override, e.g. 0.25, or in column mpp of a manifest"),
    ("0.001", "resolution 0.001 x 0.001 um/px is outside 0.05..20; correct it with --mpp-override or in column mpp"),
    ("1000", "is outside 0.05..20; correct it with --mpp-override"),
])  # fmt: skip
def test_the_override_cures_a_missing_or_implausible_resolution(
    tmp_path: Path, svs_writer: WriteSvs, tissue_rgb: Drawing, mpp: str, message: str
) -> None:
    path = tmp_path / "a.svs"
    svs_writer(path, tissue_rgb[0][:300, :300], mpp=mpp, factors=())
    with pytest.raises(SlideError) as caught:
        open_slide(path, "a")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert open_slide(path, "a", 0.5).info.mpp0 == (0.5, 0.5)


def test_an_override_may_have_two_numbers_and_a_source(svs_path: Path, png_path: Path) -> None:
    for path in (svs_path, png_path):
        slide = open_slide(path, "a", (0.25, 0.5), "manifest")
        assert (slide.info.mpp0, slide.info.mpp_source) == ((0.25, 0.5), "manifest")
        slide.close()
        with pytest.raises(SlideError, match=r"resolution 250 x 250 um/px is outside"):
            open_slide(path, "a", 250)


def test_a_plain_image_needs_an_override(png_path: Path, tissue_rgb: Drawing) -> None:
    with pytest.raises(
        SlideError, match=r"image\.png: the file does not contain its resolution; set it with --mpp-override"
    ):
        open_slide(png_path, "image")
    slide = open_slide(png_path, "image", 0.5)
    assert (slide.info.vendor, slide.info.size_px0, slide.downsamples) == ("image", (400, 300), (1.0,))
    assert slide.level_size(0) == (400, 300)
    found = slide.read((-10, -20), 0, (420, 340))
    np.testing.assert_array_equal(found[20:320, 10:410], tissue_rgb[0][300:600, 400:800])
    found[20:320, 10:410] = 255
    assert (found == 255).all()
    assert (slide.read((500, 0), 0, (20, 20)) == 255).all()
    slide.close()


def test_grey_is_repeated_and_alpha_composited_on_white(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(grey))
    slide = open_slide(tmp_path / "grey.png", "g", 0.5)
    np.testing.assert_array_equal(slide.read((0, 0), 0, (16, 16)), grey[..., None].repeat(3, -1))
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 0, 3], rgba[:, 1, 3] = 255, 128
    (tmp_path / "alpha.png").write_bytes(imagecodecs.png_encode(rgba))
    found = open_slide(tmp_path / "alpha.png", "a", 0.5).read((0, 0), 0, (3, 2))
    assert found[0, :, 0].tolist() == [0, 127, 255]


def test_an_untiled_tiff_is_a_plain_image(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    np.testing.assert_array_equal(open_slide(tmp_path / "a.tif", "a", 0.5).read((0, 0), 0, (50, 40)), rgb)


def test_16_bit_pixels_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((20, 30), np.uint16))
    with pytest.raises(SlideError, match=r"found uint16 \(20, 30\); expected 8-bit grey, RGB or RGBA"):
        open_slide(tmp_path / "deep.tif", "deep", 0.5)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_damaged_image_is_a_slide_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no image")
    with pytest.raises(SlideError, match="not a readable image"):
        open_slide(tmp_path / name, "a", 0.5)


def test_an_unknown_format_and_an_empty_folder_are_slide_errors(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"nothing")
    with pytest.raises(SlideError, match=r"a\.svs: no reader knows this format; check that the file is complete"):
        open_slide(tmp_path / "a.svs", "a")
    with pytest.raises(SlideError, match=r"b\.svs: no such file or folder"):
        open_slide(tmp_path / "b.svs", "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideError, match="the folder contains no DICOM files"):
        open_slide(tmp_path / "empty", "e")


def test_any_error_of_a_parser_is_a_slide_error(svs_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise ZeroDivisionError("integer division or modulo by zero")

    monkeypatch.setattr(openslide, "OpenSlideReader", stumble)
    with pytest.raises(
        SlideError, match=r"blob\.svs: it cannot be opened \(ZeroDivisionError: integer division"
    ) as caught:
        open_slide(svs_path, "blob")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_truncated_svs_is_a_slide_error(tmp_path: Path, svs_path: Path) -> None:
    whole = svs_path.read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SlideError):
        open_slide(tmp_path / "cut.svs", "cut").read((0, 0), 0, (1200, 900))


def test_damaged_pixels_are_a_slide_error_and_not_white(tmp_path: Path, svs_path: Path) -> None:
    with tifffile.TiffFile(svs_path) as tiff:
        start = tiff.pages[0].dataoffsets[5]
    data = bytearray(svs_path.read_bytes())
    data[start : start + 400] = bytes(400)
    (tmp_path / "bad.svs").write_bytes(data)
    slide = open_slide(tmp_path / "bad.svs", "bad")
    with pytest.raises(SlideError, match=r"pixels at \(0, 0\) of level 0 cannot be decoded"):
        slide.read((0, 0), 0, (1200, 900))


def test_real_svs(real_wsi: Path) -> None:
    slide = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    assert slide.info.mpp0 == pytest.approx((0.499, 0.499))
    assert slide.info.size_px0 == (2220, 2967)
    assert slide.read((1000, 1000), 0, (64, 64)).std() > 5


def test_real_dicom_has_the_colours_of_its_svs_despite_its_tag(
    real_wsi: Path, caplog: pytest.LogCaptureFixture
) -> None:
    svs = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    with caplog.at_level(logging.WARNING):
        dicom = open_slide(real_wsi / "dicom_cmu-1-small-region", "dcm")
    assert "tagged RGB, but the pixels are YCbCr; converting them on reading" in caplog.text
    assert dicom.info.size_px0 == svs.info.size_px0
    assert dicom.info.mpp0 == pytest.approx(svs.info.mpp0, rel=1e-3)
    for place in ((100, 100), (900, 1200), (1500, 2300)):
        # its JPEG has other chroma sampling: compare means of 8 x 8 px
        a, b = (s.read(place, 0, (256, 256)).reshape(32, 8, 32, 8, 3).mean((1, 3)) for s in (svs, dicom))
        assert np.abs(a - b).mean() < 2, place
        assert np.abs((a - b).mean((0, 1))).max() < 1, place


def test_real_slide_without_resolution(real_wsi: Path) -> None:
    # its 72 dpi are those of a screen
    with pytest.raises(SlideError, match=r"boxes\.tiff: .* is outside 0\.05\.\.20; correct it with --mpp-override"):
        open_slide(real_wsi / "boxes.tiff", "boxes")
    slide = open_slide(real_wsi / "boxes.tiff", "boxes", 0.5)
    assert slide.info.mpp0 == (0.5, 0.5)
    assert slide.read((0, 0), 0, (50, 40)).shape == (40, 50, 3)


def test_real_file_that_cannot_be_opened(real_wsi: Path) -> None:
    with pytest.raises(SlideError, match=r"unopenable\.tiff: "):
        open_slide(real_wsi / "unopenable.tiff", "u", 0.5)


def test_real_file_whose_pixels_fail(real_wsi: Path) -> None:
    with pytest.raises(SlideError, match=r"unreadable\.svs: "):
        open_slide(real_wsi / "unreadable.svs", "u", 0.5).read((0, 0), 0, (16, 16))


def test_an_ome_tiff_has_its_levels_and_the_resolution_of_its_xml(tmp_path: Path, tissue_rgb: Drawing) -> None:
    rgb = tissue_rgb[0][:512, :512]
    path = tmp_path / "a.ome.tif"
    facts = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(rgb, tile=(128, 128), photometric="rgb", subifds=1, metadata=facts)
        tiff.write(rgb[::2, ::2], tile=(128, 128), photometric="rgb", subfiletype=1)
    slide = open_slide(path, "a")
    assert (slide.info.mpp0, slide.info.mpp_source, slide.downsamples) == ((0.25, 0.25), "ome", (1, 2))
    np.testing.assert_array_equal(slide.read((256, 0), 1, (128, 64)), rgb[:128:2, 256::2])
    slide.close()


def test_an_rgb_tiff_in_strips_is_read_strip_by_strip_and_a_grey_one_whole(tmp_path: Path, tissue_rgb: Drawing) -> None:
    rgb = tissue_rgb[0]
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", rowsperstrip=16, compression="deflate")
    tifffile.imwrite(tmp_path / "grey.tif", rgb[..., 0], compression="deflate")
    for name, vendor in (("a.tif", "tiff"), ("grey.tif", "image")):
        slide = open_slide(tmp_path / name, "a", 0.5)
        assert slide.info.vendor == vendor
        np.testing.assert_array_equal(slide.read((500, 300), 0, (64, 32))[..., 0], rgb[300:332, 500:564, 0])
        slide.close()
