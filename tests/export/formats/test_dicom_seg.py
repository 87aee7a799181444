"""DICOM SEG: highdicom rebuilds the mask and places it on the source; of the patient only what must be is in it."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.dicom_slides import MPP0, ORIENTATION, Changes, draw, make_source, make_store, needs_highdicom, rebuilt
from support.examples import examples

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.export.dicom_codes import KNOWN_CODES, SegmentCode, parse_codes
from wsipipe.export.formats.dicom_seg import KINDS, TILE_PX, verify_dicom_seg, write_dicom_seg
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.slides.base import SlideFile
from wsipipe.store import SlideStore
from wsipipe.store.layout import COLOURS
from wsipipe.tiling.stage import run as tile_slides

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seg")


@needs_highdicom
@examples(6)
@given(
    st.integers(1, 1100),
    st.integers(1, 1100),
    st.sampled_from([(0, 1, 2, 255), (0, 2), (0, 1), (1,), (255,), (0,)]),
    st.sampled_from(KINDS),
)
@example(40, 600, (0,), "binary")  # no frame would hold a pixel
def test_highdicom_rebuilds_the_mask(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, values: tuple[int, ...], kind: str
) -> None:
    folder, mask = tmp_path_factory.mktemp("seg"), draw(height, width, values=values)
    store = make_store(folder, mask)
    path = write_dicom_seg(store, "net", folder / "out" / "s.dcm", kind)
    assert os.listdir(path.parent) == ["s.dcm"]
    np.testing.assert_array_equal(rebuilt(path), mask)
    verify_dicom_seg(path, store, "net")


@needs_highdicom
@both
def test_frames(folder: Path, kind: str) -> None:
    import pydicom

    mask = np.zeros((TILE_PX + 1, 3 * TILE_PX + 1), np.uint8)
    mask[0, 0], mask[0, TILE_PX], mask[0, TILE_PX + 1], mask[TILE_PX, 3 * TILE_PX] = 1, 1, 2, 2
    seg = pydicom.dcmread(write_dicom_seg(make_store(folder, mask), "net", folder / "s.dcm", kind))
    assert seg.SegmentationType == kind.upper()
    assert (seg.TotalPixelMatrixRows, seg.TotalPixelMatrixColumns) == mask.shape
    if kind == "labelmap":
        assert (seg.DimensionOrganizationType, seg.NumberOfFrames) == ("TILED_FULL", 8)
        np.testing.assert_array_equal(seg.pixel_array[:, 0, 0], [1, 1, 0, 0, 0, 0, 0, 2])
        assert seg.pixel_array[1, 0, 1] == 2
        return
    assert (seg.DimensionOrganizationType, seg.NumberOfFrames) == ("TILED_SPARSE", 4)
    items = seg.PerFrameFunctionalGroupsSequence
    where = [i.PlanePositionSlideSequence[0] for i in items]
    assert [i.SegmentIdentificationSequence[0].ReferencedSegmentNumber for i in items] == [1, 1, 2, 2]
    assert [p.ColumnPositionInTotalImagePixelMatrix for p in where] == [1, TILE_PX + 1, TILE_PX + 1, 3 * TILE_PX + 1]
    assert [p.RowPositionInTotalImagePixelMatrix for p in where] == [1, 1, 1, TILE_PX + 1]
    indices = [list(i.FrameContentSequence[0].DimensionIndexValues) for i in items]
    assert indices == [[1, 1, 1], [1, 1, 2], [2, 1, 2], [2, 2, 3]]
    assert len(seg.PixelData) == 4 * TILE_PX**2 // 8


@needs_highdicom
@both
def test_the_mask_is_never_in_memory(folder: Path, kind: str) -> None:
    side = 4500
    store = make_store(folder, np.zeros((side, side), np.uint8))
    array = store.mask_spec
    corner = np.ones((side - array.shard_px, side - array.shard_px), np.uint8)
    store.write_labels("net", {0: "none", 1: "a", 255: "ignore"}, {}, [((1, 1), corner)])  # the others are 255
    write_dicom_seg(store, "net", folder / "s.dcm", kind)  # what is imported on the way is no part of it
    tracemalloc.start()
    write_dicom_seg(store, "net", folder / "s.dcm", kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < side**2 / 2


@needs_highdicom
@both
@examples(4)
@given(st.sampled_from([1.0, 2.0, 4.0]), st.tuples(st.integers(0, 9000), st.integers(0, 9000)))
def test_pixels_lie_where_those_of_the_source_do(
    tmp_path_factory: pytest.TempPathFactory, kind: str, scale: float, origin_px0: tuple[int, int]
) -> None:
    import highdicom

    folder = tmp_path_factory.mktemp("seg")
    store = make_store(folder, draw(TILE_PX + 9, TILE_PX + 30), scale, origin_px0)
    path = write_dicom_seg(store, "net", folder / "s.dcm", kind)
    source = (20.5, 51.25, 0), ORIENTATION, (MPP0[1] / 1000, MPP0[0] / 1000)
    seg = highdicom.seg.segread(path)
    origin = seg.TotalPixelMatrixOriginSequence[0]
    start = (origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem, 0)
    spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    corners = [(0, 0), (TILE_PX, 0), (0, TILE_PX), (TILE_PX, TILE_PX), (TILE_PX + 29, TILE_PX + 8)]  # (column, row)
    to_mm = (
        highdicom.spatial.ImageToReferenceTransformer
    )  # its points are edges: (0, 0) is the corner of the first pixel
    mine = to_mm(start, seg.ImageOrientationSlide, spacing)(np.array(corners, float) + 0.5)
    middle_px0 = np.array([[(c + 0.5) * scale + origin_px0[0], (r + 0.5) * scale + origin_px0[1]] for c, r in corners])
    np.testing.assert_allclose(mine, to_mm(*source)(middle_px0), atol=1e-7)
    assert seg.FrameOfReferenceUID == "2.25.4"
    for item in seg.PerFrameFunctionalGroupsSequence if kind == "binary" else ():
        at = item.PlanePositionSlideSequence[0]
        corner = (at.ColumnPositionInTotalImagePixelMatrix - 1, at.RowPositionInTotalImagePixelMatrix - 1)
        found = [at[f"{a}OffsetInSlideCoordinateSystem"].value for a in "XYZ"]
        np.testing.assert_allclose(np.array(found, float), mine[corners.index(corner)], atol=1e-7)


@needs_highdicom
@both
def test_segments_say_what_they_are(folder: Path, kind: str) -> None:
    import highdicom

    store = make_store(folder, draw(200, 300), names=("tumour", "gländ Δ"))
    mine = parse_codes(["gländ Δ=134358001^SCT^Gland /91723000^SCT^Anatomical Structure"])
    seg = highdicom.seg.segread(write_dicom_seg(store, "net", folder / "s.dcm", kind, codes=mine))
    described = [seg.get_segment_description(n) for n in seg.segment_numbers]
    assert seg.segment_numbers == ([1, 2, 3] if kind == "binary" else [1, 2, 255])
    assert [d.SegmentLabel for d in described] == ["tumour", "gländ Δ", "ignore"]
    assert [d.segmented_property_type.value for d in described] == ["108369006", "134358001", "373068000"]
    assert [d.segmented_property_category.value for d in described] == ["49755003", "91723000", "309825002"]
    assert {d.SegmentAlgorithmType for d in described} == {"AUTOMATIC"}
    algorithm = described[0].algorithm_identification[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("wsipipe camel", seg.SoftwareVersions)
    for d, rgb in zip(described, (COLOURS[0], COLOURS[1], (128, 128, 128)), strict=True):
        shown = highdicom.color.CIELabColor.from_dicom_value(d.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, rgb, atol=1)


@needs_highdicom
def test_ignore_is_a_segment_only_where_it_occurs(folder: Path) -> None:
    import highdicom

    store = make_store(folder, draw(200, 300, values=(0, 2)))
    seg = highdicom.seg.segread(write_dicom_seg(store, "net", folder / "s.dcm"))
    assert [d.SegmentLabel for d in seg.SegmentSequence] == ["stroma", "tumour"]


@needs_highdicom
def test_a_mask_that_a_user_brought_is_manual(folder: Path) -> None:
    import highdicom

    store = make_store(folder, draw(200, 300), source="drawn.png")
    seg = highdicom.seg.segread(write_dicom_seg(store, "net", folder / "s.dcm"))
    assert {d.SegmentAlgorithmType for d in seg.SegmentSequence} == {"MANUAL"}


@needs_highdicom
@both
def test_only_what_the_standard_asks_for_is_copied(folder: Path, kind: str) -> None:
    import pydicom

    path = write_dicom_seg(make_store(folder, draw(200, 300)), "net", folder / "s.dcm", kind)
    seg = pydicom.dcmread(path)
    kept = ("PatientID", "PatientName", "StudyDate", "AccessionNumber", "StudyInstanceUID", "ContainerIdentifier")
    assert [str(seg[k].value) for k in kept] == ["P-7", "Müller^Ω", "20200304", "A-9", "2.25.2", "C-1"]
    specimen = seg.SpecimenDescriptionSequence[0]
    assert specimen.SpecimenUID == "2.25.5"
    assert len(specimen.IssuerOfTheSpecimenIdentifierSequence) == len(seg.ContainerTypeCodeSequence) == 0  # type 2
    assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == "2.25.17"
    derived = seg.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert derived.ReferencedSOPInstanceUID == "2.25.17"
    text = str(seg)
    assert not any(e.tag.is_private for e in seg.iterall())
    for word in ("070Y", "Secret", "Mueller", "Hospital", "Scanner", "'123'", "a study", "diagnosis", "breast"):
        assert word not in text


@needs_highdicom
def test_what_is_exported_twice_replaces_itself(folder: Path) -> None:
    import pydicom

    store = make_store(folder, draw(200, 300))
    codes = {"tumour": KNOWN_CODES["necrosis"]}
    ways: list[tuple[str, Any]] = [("binary", None), ("binary", None), ("labelmap", None), ("binary", codes)]
    read = [pydicom.dcmread(write_dicom_seg(store, "net", folder / "s.dcm", k, codes=c)) for k, c in ways]
    uids = [str(d.SOPInstanceUID) for d in read]
    assert uids[0] == uids[1]
    assert len(set(uids)) == 3
    assert all(pydicom.uid.UID(u).is_valid for u in uids)
    assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in read)


@needs_highdicom
@both
def test_damage_fails_the_verification(folder: Path, kind: str) -> None:
    mask = draw(700, 900)
    store = make_store(folder, mask)
    path = write_dicom_seg(store, "net", folder / "s.dcm", kind)
    whole = path.read_bytes()
    at = len(whole) * 3 // 4
    for kept in (whole[: len(whole) // 2], whole[:3000], whole[:100], b""):
        path.write_bytes(kept)
        with pytest.raises(StoreError, match="export it again"):
            verify_dicom_seg(path, store, "net")
    path.write_bytes(whole[:at] + bytes(b ^ 0xFF for b in whole[at : at + 64]) + whole[at + 64 :])
    with pytest.raises(StoreError, match="export it again"):
        verify_dicom_seg(path, store, "net")
    path.unlink()
    with pytest.raises(StoreError, match="export it again"):
        verify_dicom_seg(path, store, "net")


@needs_highdicom
@both
def test_the_first_wrong_pixel_is_named(folder: Path, kind: str) -> None:
    mask = draw(700, 900)
    path = write_dicom_seg(make_store(folder, mask), "net", folder / "s.dcm", kind)
    other = mask.copy()
    other[600, 810] = 1 if mask[600, 810] != 1 else 2
    store = SlideStore(folder / "s.zarr")
    store.write_labels("net", {0: "none", 1: "stroma", 2: "tumour", 255: "ignore"}, {}, [((0, 0), other)])
    with pytest.raises(StoreError, match=f"pixel x 810, y 600: found value {mask[600, 810]}, .* {other[600, 810]}"):
        verify_dicom_seg(path, store, "net")


@needs_highdicom
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("position", lambda d: setattr(d.TotalPixelMatrixOriginSequence[0], "XOffsetInSlideCoordinateSystem", "20.6")),
        ("source image", lambda d: setattr(d, "SOPInstanceUID", "2.25.77")),
    ],
)
def test_another_source_fails_the_verification(folder: Path, what: str, change: Changes) -> None:
    store = make_store(folder, draw(200, 300))
    path = write_dicom_seg(store, "net", folder / "s.dcm")
    make_source(folder / "wsi", (300, 200), change)
    with pytest.raises(StoreError, match=f"{what} .* found, .* expected"):
        verify_dicom_seg(path, store, "net")


@needs_highdicom
def test_a_damaged_store_leaves_no_file(folder: Path) -> None:
    store = make_store(folder, draw(700, 900))
    shard = store.path / "labels" / "net" / "0" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[20:60] = bytes(40)
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        write_dicom_seg(SlideStore(store.path), "net", folder / "out" / "s.dcm")
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


@needs_highdicom
def test_errors(folder: Path) -> None:
    store = make_store(folder, draw(40, 70))
    with pytest.raises(ConfigError, match="kind 'fractional': expected binary or labelmap"):
        write_dicom_seg(store, "net", folder / "s.dcm", "fractional")
    with pytest.raises(ConfigError, match="codes for gland: not classes of labels/net"):
        write_dicom_seg(store, "net", folder / "s.dcm", codes={"gland": SegmentCode()})
    with pytest.raises(StoreError, match="no labels/gone"):
        write_dicom_seg(store, "gone", folder / "s.dcm")
    store.write_labels("odd", {0: "none", 1: "a", 255: "ignore"}, {}, [((0, 0), draw(40, 70, values=(0, 7)))])
    with pytest.raises(StoreError, match=r"values \[7\] have no name"):
        write_dicom_seg(store, "odd", folder / "s.dcm")
    store.write_labels("long", {0: "none", 1: "a" * 65, 255: "ignore"}, {}, [((0, 0), draw(40, 70, values=(0, 1)))])
    with pytest.raises(ConfigError, match="at most 64 characters"):
        write_dicom_seg(store, "long", folder / "s.dcm")
    assert not (folder / "s.dcm").exists()


def test_without_the_extra(tmp_path: Path, tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    for call in (write_dicom_seg, lambda store, name, path: verify_dicom_seg(path, store, name)):
        with pytest.raises(ConfigError, match=r"pip install 'wsipipe\[dicom\]'"):
            call(SlideStore(tiled), "tissue", tmp_path / "s.dcm")


@needs_highdicom
def test_a_real_slide(tmp_path: Path, real_wsi: Path) -> None:
    run = RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=1)
    dicom, svs = real_wsi / "dicom_cmu-1-small-region", real_wsi / "CMU-1-Small-Region.svs"
    for slide, source, kind in ((dicom, None, "binary"), (svs, dicom, "labelmap")):
        _, stores = tile_slides({slide.stem: SlideFile(slide)}, TileConfig(), RunContext(run))
        store = SlideStore(stores[0])
        path = write_dicom_seg(store, "tissue", tmp_path / f"{slide.stem}.dcm", kind, source)
        verify_dicom_seg(path, store, "tissue", source)
        whole = store.labels("tissue").read(Window(0, 0, *store.grid.size_px))
        np.testing.assert_array_equal(rebuilt(path), whole)
