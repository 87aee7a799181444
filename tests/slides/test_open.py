"""Finding and opening slides: each format by its reader, each failure with what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from wsipipe.errors import ConfigError, SlideError
from wsipipe.slides import find_slides, open_slide
from wsipipe.slides.base import resolve_mpp


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_folders_and_dicom_folders_are_found(tmp_path: Path):
    touch(tmp_path / "in/b.svs", tmp_path / "in/a.TIFF", tmp_path / "in/notes.txt", tmp_path / "in/dcm/1.dcm")
    touch(
        tmp_path / "in/.hidden.svs", tmp_path / "in/folder.svs/x.txt", tmp_path / "c (1).ndpi", tmp_path / "d.ome.tif"
    )
    found = find_slides([tmp_path / "in", tmp_path / "c (1).ndpi", tmp_path / "d.ome.tif"])
    assert {k: v.name for k, v in found.items()} == {
        "a": "a.TIFF", "b": "b.svs", "dcm": "dcm", "c_1_": "c (1).ndpi", "d.ome": "d.ome.tif",
    }  # fmt: skip
    assert list(find_slides([tmp_path / "in/dcm"])) == ["dcm"]


def test_a_slide_given_twice_is_one_slide(tmp_path: Path):
    touch(tmp_path / "a.svs")
    assert len(find_slides([tmp_path / "a.svs", tmp_path, tmp_path / "a.svs"])) == 1


def test_a_missing_path_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.svs: no such file or folder"):
        find_slides([tmp_path / "none.svs"])


def test_a_folder_without_slides_says_what_is_known(tmp_path: Path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"no slides in this folder; known are \.svs, .* and folders of \.dcm"):
        find_slides([tmp_path])


def test_two_slides_of_one_id_are_refused(tmp_path: Path):
    touch(tmp_path / "x/a.svs", tmp_path / "y/a.svs")
    with pytest.raises(ConfigError, match="would both be called a; rename one or tile them apart"):
        find_slides([tmp_path / "x", tmp_path / "y"])
    touch(tmp_path / "x/a.ndpi")
    with pytest.raises(ConfigError, match="would both be called a"):
        find_slides([tmp_path / "x"])


def test_an_svs_says_its_size_levels_and_resolution(svs_path: Path):
    slide = open_slide(svs_path, "blob")
    assert slide.id == "blob"
    assert slide.info.vendor == "aperio"
    assert slide.info.size_px0 == (1200, 900)
    assert (slide.info.mpp0, slide.info.mpp_source) == ((0.5, 0.5), "slide")
    assert slide.downsamples == (1, 4, 16)
    assert [slide.level_size(k) for k in range(3)] == [(1200, 900), (300, 225), (75, 56)]
    assert slide.info.to_dict()["path"] == str(svs_path.resolve())
    slide.close()


def test_an_svs_reads_the_pixels_that_were_written(svs_path: Path, tissue_rgb):
    slide = open_slide(svs_path, "blob")
    found = slide.read((320, 200), 0, (512, 400))
    assert (found.shape, found.dtype) == ((400, 512, 3), np.uint8)
    error = np.abs(found.astype(float) - tissue_rgb[0][200:600, 320:832])
    assert error.mean() < 4  # JPEG at quality 87, chroma at half size
    slide.close()


def test_outside_an_svs_is_white(svs_path: Path):
    slide = open_slide(svs_path, "blob")
    found = slide.read((-100, -50), 0, (300, 200))
    assert (found[:50] == 255).all()
    assert (found[:, :100] == 255).all()
    np.testing.assert_array_equal(found[50:, 100:], slide.read((0, 0), 0, (200, 150)))
    assert (slide.read((1200, 0), 0, (64, 64)) == 255).all()
    assert (slide.read((1100, 0), 0, (200, 64))[:, 100:] == 255).all()
    slide.close()


def test_the_override_replaces_the_resolution_and_fingerprints_tell_files_apart(
    svs_path: Path, tmp_path: Path, svs_writer, tissue_rgb
):
    one, other = open_slide(svs_path, "blob"), open_slide(svs_path, "blob", 0.25)
    assert (other.info.mpp0, other.info.mpp_source) == ((0.25, 0.25), "override")
    assert one.info.fingerprint == other.info.fingerprint
    svs_writer(tmp_path / "b.svs", tissue_rgb[0][::-1])
    assert open_slide(tmp_path / "b.svs", "blob").info.fingerprint != one.info.fingerprint


def test_levels_of_uneven_size_have_whole_downsamples_and_read_where_they_are(
    tmp_path: Path, svs_writer, tissue_drawer
):
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


def test_several_threads_may_read_one_slide(svs_path: Path):
    from wsipipe.runtime import map_threads

    slide = open_slide(svs_path, "blob")
    places = [(x, y) for x in range(0, 1100, 200) for y in range(0, 800, 200)]
    alone = {p: slide.read(p, 0, (150, 150)) for p in places}
    together: dict[tuple[int, int], np.ndarray] = {}
    map_threads(lambda p: slide.read(p, 0, (150, 150)), places, 4, together.__setitem__)
    assert all((alone[p] == together[p]).all() for p in places)
    slide.close()


@pytest.mark.parametrize(("mpp", "message"), [
    ("", "the file does not say its resolution; give it with --mpp-override, e.g. 0.25"),
    ("0.001", "resolution 0.001 x 0.001 um/px is outside 0.05..20.0; correct it with --mpp-override"),
    ("1000", "is outside 0.05..20.0; correct it with --mpp-override"),
])  # fmt: skip
def test_a_missing_or_absurd_resolution_is_an_error_that_the_override_cures(
    tmp_path, svs_writer, tissue_rgb, mpp, message
):
    path = tmp_path / "a.svs"
    svs_writer(path, tissue_rgb[0][:300, :300], mpp=mpp, factors=())
    with pytest.raises(SlideError) as caught:
        open_slide(path, "a")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert open_slide(path, "a", 0.5).info.mpp0 == (0.5, 0.5)


def test_resolutions_that_disagree_are_an_error():
    assert resolve_mpp((0.50, 0.51), 0, "a.svs") == ((0.50, 0.51), "slide")
    with pytest.raises(SlideError, match=r"along x \(0\.5\) and y \(0\.6 um/px\) disagree; set it with --mpp-override"):
        resolve_mpp((0.5, 0.6), 0, "a.svs")
    with pytest.raises(SlideError, match="outside"):
        resolve_mpp((float("nan"), 0.5), 0, "a.svs")


def test_a_plain_image_needs_its_resolution(png_path: Path, tissue_rgb):
    with pytest.raises(
        SlideError, match=r"image\.png: the file does not say its resolution; give it with --mpp-override"
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


def test_grey_is_repeated_and_alpha_laid_on_white(tmp_path: Path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(grey))
    slide = open_slide(tmp_path / "grey.png", "g", 0.5)
    np.testing.assert_array_equal(slide.read((0, 0), 0, (16, 16)), grey[..., None].repeat(3, -1))
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 0, 3], rgba[:, 1, 3] = 255, 128
    (tmp_path / "alpha.png").write_bytes(imagecodecs.png_encode(rgba))
    found = open_slide(tmp_path / "alpha.png", "a", 0.5).read((0, 0), 0, (3, 2))
    assert found[0, :, 0].tolist() == [0, 127, 255]


def test_an_untiled_tiff_is_a_plain_image(tmp_path: Path):
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    np.testing.assert_array_equal(open_slide(tmp_path / "a.tif", "a", 0.5).read((0, 0), 0, (50, 40)), rgb)


def test_deep_pixels_are_refused_not_squeezed(tmp_path: Path):
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((20, 30), np.uint16))
    with pytest.raises(SlideError, match=r"found uint16 \(20, 30\); expected 8-bit grey, RGB or RGBA"):
        open_slide(tmp_path / "deep.tif", "deep", 0.5)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_broken_image_is_a_slide_error(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"this is no image")
    with pytest.raises(SlideError, match="not a readable image"):
        open_slide(tmp_path / name, "a", 0.5)


def test_an_unknown_format_and_an_empty_folder_are_slide_errors(tmp_path: Path):
    (tmp_path / "a.svs").write_bytes(b"nothing")
    with pytest.raises(
        SlideError, match="neither OpenSlide nor the image reader knows this format; is the file complete"
    ):
        open_slide(tmp_path / "a.svs", "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideError, match="a folder without DICOM files"):
        open_slide(tmp_path / "empty", "e")


def test_a_cut_off_svs_is_a_slide_error(tmp_path: Path, svs_path: Path):
    whole = svs_path.read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SlideError):
        open_slide(tmp_path / "cut.svs", "cut").read((0, 0), 0, (1200, 900))


def test_damaged_pixels_are_a_slide_error_never_white(tmp_path: Path, svs_path: Path):
    with tifffile.TiffFile(svs_path) as tiff:
        start = tiff.pages[0].dataoffsets[5]
    data = bytearray(svs_path.read_bytes())
    data[start : start + 400] = bytes(400)
    (tmp_path / "bad.svs").write_bytes(data)
    slide = open_slide(tmp_path / "bad.svs", "bad")
    with pytest.raises(SlideError, match=r"pixels at \(0, 0\) of level 0 cannot be decoded"):
        slide.read((0, 0), 0, (1200, 900))


def test_real_svs(real_wsi: Path):
    slide = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    assert slide.info.mpp0 == pytest.approx((0.499, 0.499))
    assert slide.info.size_px0 == (2220, 2967)
    assert slide.read((1000, 1000), 0, (64, 64)).std() > 5


def test_real_dicom_has_the_colours_of_its_svs_in_spite_of_its_tag(real_wsi: Path, caplog: pytest.LogCaptureFixture):
    svs = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    with caplog.at_level(logging.WARNING):
        dicom = open_slide(real_wsi / "dicom_cmu-1-small-region", "dcm")
    assert "tagged RGB but its pixels are YCbCr; converted on reading" in caplog.text
    assert dicom.info.size_px0 == svs.info.size_px0
    assert dicom.info.mpp0 == pytest.approx(svs.info.mpp0, rel=1e-3)
    for place in ((100, 100), (900, 1200), (1500, 2300)):
        # its JPEG has other chroma sampling: compare means of 8 x 8 px
        a, b = (s.read(place, 0, (256, 256)).reshape(32, 8, 32, 8, 3).mean((1, 3)) for s in (svs, dicom))
        assert np.abs(a - b).mean() < 2, place
        assert np.abs((a - b).mean((0, 1))).max() < 1, place


def test_real_slide_without_resolution(real_wsi: Path):
    # its 72 dpi are those of a screen
    with pytest.raises(SlideError, match=r"boxes\.tiff: .* is outside 0\.05\.\.20\.0; correct it with --mpp-override"):
        open_slide(real_wsi / "boxes.tiff", "boxes")
    slide = open_slide(real_wsi / "boxes.tiff", "boxes", 0.5)
    assert slide.info.mpp0 == (0.5, 0.5)
    assert slide.read((0, 0), 0, (50, 40)).shape == (40, 50, 3)


def test_real_file_that_cannot_be_opened(real_wsi: Path):
    with pytest.raises(SlideError, match=r"unopenable\.tiff: "):
        open_slide(real_wsi / "unopenable.tiff", "u", 0.5)


def test_real_file_whose_pixels_fail(real_wsi: Path):
    with pytest.raises(SlideError, match=r"unreadable\.svs: "):
        open_slide(real_wsi / "unreadable.svs", "u", 0.5).read((0, 0), 0, (16, 16))


def test_pictures_beside_slides_are_not_slides(tmp_path: Path):
    touch(tmp_path / "a.svs", tmp_path / "a.truth.png", tmp_path / "thumbnail.jpg")
    assert list(find_slides([tmp_path])) == ["a"]
    (tmp_path / "a.svs").unlink()
    assert list(find_slides([tmp_path])) == ["a.truth", "thumbnail"]
