"""A generated DICOM whole-slide image, a store of it with a mask, and what highdicom makes of an exported SEG."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

needs_highdicom = pytest.mark.skipif(
    importlib.util.find_spec("highdicom") is None, reason="highdicom is missing: pip install 'wsipipe[dicom]'"
)
MPP0 = (0.25, 0.2)
ORIENTATION = [0, -1, 0, -1, 0, 0]
Changes = Callable[[Any], None]


def make_source(folder: Path, size_px0: tuple[int, int], change: Changes | None = None, name: str = "level-0") -> Path:
    """A whole-slide image without pixels, with what belongs to patient, specimen and scanner; `change` edits it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

    d, origin, measures, shared, specimen = (Dataset() for _ in range(5))
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SOPClassUID, d.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, f"2.25.{10 + len(name)}"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    d.Modality, d.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "Müller^Ω", "P-7", "19500102", "F"
    d.StudyID, d.StudyDate, d.StudyTime, d.AccessionNumber = "S-1", "20200304", "101112", "A-9"
    d.ReferringPhysicianName = "House^G"
    d.PatientAge, d.PatientAddress, d.OtherPatientNames = "070Y", "Secret street 1", "Mueller"
    d.InstitutionName, d.Manufacturer, d.DeviceSerialNumber = "Hospital", "Scanner", "123"
    d.StudyDescription, d.AdmittingDiagnosesDescription = "a study", "a diagnosis"
    d.private_block(0x0099, "maker", create=True).add_new(1, "LO", "private words")
    d.ContainerIdentifier = "C-1"
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "C-1-A", "2.25.5"
    specimen.SpecimenShortDescription = "left breast"
    specimen.SpecimenPreparationSequence = [Dataset()]
    d.SpecimenDescriptionSequence = [specimen]
    d.TotalPixelMatrixColumns, d.TotalPixelMatrixRows = size_px0
    d.Rows = d.Columns = 256
    d.NumberOfFrames, d.DimensionOrganizationType = 4, "TILED_FULL"
    d.ImageOrientationSlide = ORIENTATION
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.5", "51.25"
    measures.PixelSpacing = [MPP0[1] / 1000, MPP0[0] / 1000]
    measures.SliceThickness = "0.004"
    shared.PixelMeasuresSequence = [measures]
    d.TotalPixelMatrixOriginSequence, d.SharedFunctionalGroupsSequence = [origin], [shared]
    d.LossyImageCompression = "00"
    if change:
        change(d)
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    folder.mkdir(exist_ok=True)
    d.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return folder / f"{name}.dcm"


def make_store(
    folder: Path,
    mask: NDArray[np.uint8],
    scale: float = 1.0,
    origin_px0: tuple[int, int] = (0, 0),
    names: tuple[str, ...] = ("stroma", "tumour"),
    **meta: Any,
) -> SlideStore:
    """A store tiled from `folder/wsi/level-0.dcm`, which is made too, with `mask` as labels/net."""
    height, width = mask.shape
    size_px0 = (round(width * scale), round(height * scale))
    whole = (size_px0[0] + origin_px0[0], size_px0[1] + origin_px0[1])
    path = make_source(folder / "wsi", whole)
    grid = Grid(size_px0, (MPP0[0] * scale, MPP0[1] * scale), (scale, scale), 64, 64, origin_px0)
    assert grid.size_px == (width, height)
    slide = {"path": str(path), "vendor": "dicom", "size_px0": list(whole), "mpp0": list(MPP0), "mpp_source": "slide"}
    store = SlideStore.create(folder / "s.zarr", grid, 0, {"slide_id": "s", "pixel_digest": "p", "slide": slide})
    shards = (
        (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
        for shard, w in shard_windows(store.mask_spec)
    )
    values = {0: "none", **dict(enumerate(names, 1)), 255: "ignore"}
    store.write_labels("net", values, {"digest": "d", "method": "camel", **meta}, shards)
    return store


def draw(height: int, width: int, seed: int = 0, values: tuple[int, ...] = (0, 1, 2, 255)) -> NDArray[np.uint8]:
    """Blocks of the values, with single pixels strewn in."""
    rng = np.random.default_rng(seed)
    choice = np.array(values, np.uint8)
    mask = rng.choice(choice, (-(-height // 90), -(-width // 90))).repeat(90, 0).repeat(90, 1)[:height, :width].copy()
    mask[rng.integers(0, height, 40), rng.integers(0, width, 40)] = rng.choice(choice, 40)
    return mask


def rebuilt(path: Path) -> NDArray[np.uint8]:
    """The mask that highdicom makes of a SEG."""
    import highdicom

    seg = highdicom.seg.segread(path)
    found = seg.get_total_pixel_matrix(combine_segments=True)
    last = seg.get_segment_description(seg.segment_numbers[-1])
    return np.where(found == last.SegmentNumber, 255, found) if last.SegmentLabel == "ignore" else found
