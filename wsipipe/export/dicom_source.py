"""The DICOM image that a mask belongs to: finding it, what a SEG copies from it, and where mask pixels lie in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import NATIVE_TOLERANCE, Grid
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)

THICKNESS_MM = 0.001
"""Slice thickness if the source has none: about the depth of field; readers require a number."""

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_KEPT = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "Modality")
_EMPTY_OR_KEPT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
"""Type 2: required, may be empty."""
_KEPT_IF_THERE = (
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsibleOrganization",
    "ContainerIdentifier",
)  # fmt: skip
"""Type 1C and 2C: for compressed images, animals, specimens."""
_OF_CONTAINER = ("IssuerOfTheContainerIdentifierSequence", "ContainerTypeCodeSequence")
"""Type 2 if there are specimens."""
_OF_SPECIMEN = ("SpecimenIdentifier", "SpecimenUID")
_OF_PLACE = (
    "ImageType", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence", "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows", "SharedFunctionalGroupsSequence", "SpecimenDescriptionSequence", "SpecificCharacterSet",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The image of highest resolution of a slide, and the grid of a mask of it.

    dataset: its attributes, without pixels. spacing0_mm: (row, column) spacing of its pixels, as in DICOM.
    """

    path: Path
    dataset: Any
    grid: Grid
    spacing0_mm: tuple[float, float]
    thickness_mm: float

    @property
    def uid(self) -> str:
        """SOP Instance UID."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """(row, column) spacing of the pixels of the mask."""
        (row, col), (sx, sy) = self.spacing0_mm, self.grid.scale
        return row * sy, col * sx

    def position_mm(self, x_px: int, y_px: int) -> tuple[float, float, float]:
        """The centre of a mask pixel in the slide coordinate system of the source."""
        x_px0, y_px0 = self.grid.to_px0((x_px + 0.5, y_px + 0.5))
        origin = self.dataset.TotalPixelMatrixOriginSequence[0]
        start = [float(origin.get(f"{a}OffsetInSlideCoordinateSystem") or 0) for a in "XYZ"]
        cosines = [float(v) for v in self.dataset.ImageOrientationSlide]
        along, down = (x_px0 - 0.5) * self.spacing0_mm[1], (y_px0 - 0.5) * self.spacing0_mm[0]
        x, y, z = (
            s + r * along + c * down for s, r, c in zip(start, cosines[:3], cosines[3:], strict=True)
        )  # origins are centres too: level-0 pixel 0 lies at 0.5 px0
        return x, y, z

    def reference(self, tile_px: int) -> Any:
        """What a SEG needs from the source, and no more; its size is that of one tile."""
        from pydicom.dataset import Dataset

        d, out = self.dataset, Dataset()
        for keyword in _KEPT:
            setattr(out, keyword, d.get(keyword))
        for keyword in _EMPTY_OR_KEPT:
            setattr(out, keyword, str(d.get(keyword) or ""))
        for keyword in _KEPT_IF_THERE:
            if keyword in d:
                setattr(out, keyword, d[keyword].value)
        if "SpecimenDescriptionSequence" in d:
            for keyword in _OF_CONTAINER:
                setattr(out, keyword, d.get(keyword) or [])
            out.SpecimenDescriptionSequence = [_specimen(s) for s in d.SpecimenDescriptionSequence]
        for keyword in ("ImageType", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence"):
            setattr(out, keyword, d[keyword].value)
        out.SharedFunctionalGroupsSequence = [Dataset()]
        out.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = d.SharedFunctionalGroupsSequence[
            0
        ].PixelMeasuresSequence
        out.Rows = out.Columns = out.TotalPixelMatrixRows = out.TotalPixelMatrixColumns = tile_px
        out.NumberOfFrames, out.DimensionOrganizationType = 1, "TILED_FULL"
        return out

    def derivation(self) -> Any:
        """An item of the Derivation Image Sequence: a segmentation of this image."""
        from pydicom.dataset import Dataset

        out, image = Dataset(), Dataset()
        out.DerivationCodeSequence = [_code("113076", "Segmentation")]
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = self.dataset.SOPClassUID, self.uid
        image.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
        out.SourceImageSequence = [image]
        return out


def find_source(store: SlideStore, given: Path | None) -> Source:
    """The image of the slide's size in the folder (or file) `given`; default: the slide that the store was tiled from.

    Raises ConfigError if that slide is not DICOM, if no image or several match, or if the pixel size differs;
    SlideError if the image has no position.
    """
    slide = store.meta["slide"]
    own = slide.get("vendor") == "dicom"
    if given is None and not own:
        raise ConfigError(
            f"{store.slide_id}: its slide is not DICOM ({slide.get('vendor')}), and a DICOM SEG must refer to DICOM "
            "images; convert the slide to DICOM (e.g. with wsidicomizer) and name the folder with --dicom-source, or "
            "export OME-TIFF or GeoJSON"
        )
    at = given or Path(slide["path"])
    files = sorted(p for p in at.iterdir() if p.suffix.lower() == ".dcm") if at.is_dir() else [at]
    if given is None:
        files = sorted(p for p in at.parent.glob("*") if p.suffix.lower() == ".dcm")
    images = [(p, d) for p in files if (d := _read(p)) is not None]
    size = tuple(slide["size_px0"])
    fitting = [(p, d) for p, d in images if _size(d) == size and "VOLUME" in (d.get("ImageType") or ())]
    if given is None:
        series = {d.SeriesInstanceUID for p, d in images if p == at}
        fitting = [(p, d) for p, d in fitting if d.SeriesInstanceUID in series]
    if len(fitting) != 1:
        sizes = ", ".join(f"{w} x {h}" for w, h in sorted({_size(d) for _, d in images}, reverse=True)) or "none"
        raise ConfigError(
            f"{at}: {len(fitting)} whole-slide images of {size[0]} x {size[1]} px, the size of {store.slide_id}, where "
            f"one is expected (found: {sizes}); name the folder of this slide with --dicom-source"
        )
    return _placed(*fitting[0], store)


def _placed(path: Path, dataset: Any, store: SlideStore) -> Source:
    """The source, its position checked; a missing origin is set to that of the coordinate system."""
    from pydicom.dataset import Dataset

    slide = store.meta["slide"]
    try:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        row, col = (float(v) for v in measures.PixelSpacing)
        thickness = float(measures.get("SliceThickness") or THICKNESS_MM)
        missing = [k for k in (*_KEPT, "ImageOrientationSlide") if not dataset.get(k)]
        if missing:
            raise AttributeError(", ".join(missing))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise SlideError(
            f"{path}: attributes that place a mask on it are missing ({error}); convert the slide again"
        ) from None
    off = max(abs(mm * 1000 / um - 1) for mm, um in zip((col, row), slide["mpp0"], strict=True))
    if off > NATIVE_TOLERANCE and slide.get("mpp_source") not in ("override", "manifest"):
        raise ConfigError(
            f"{path}: pixels of {col * 1000:.4g} x {row * 1000:.4g} um, those of {store.slide_id} have "
            f"{slide['mpp0'][0]:.4g} x {slide['mpp0'][1]:.4g}; name the folder of this slide with --dicom-source"
        )
    if not dataset.get("TotalPixelMatrixOriginSequence"):
        log.warning("%s: has no origin on the slide; 0, 0 is used", path)
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = "0"
        dataset.TotalPixelMatrixOriginSequence = [origin]
    return Source(path, dataset, store.grid, (row, col), thickness)


def _read(path: Path) -> Any:
    """The attributes of a whole-slide image that a SEG needs; None for any other file."""
    import pydicom

    tags: Sequence[str] = [*_KEPT, *_EMPTY_OR_KEPT, *_KEPT_IF_THERE, *_OF_CONTAINER, *_OF_PLACE]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid values that are not copied
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        log.info("%s: not read as DICOM (%s)", path, error)
        return None
    return dataset if dataset.get("SOPClassUID") == _WHOLE_SLIDE else None


def _size(dataset: Any) -> tuple[int, int]:
    """(width, height) of the whole image in its pixels."""
    return int(dataset.get("TotalPixelMatrixColumns") or 0), int(dataset.get("TotalPixelMatrixRows") or 0)


def _specimen(item: Any) -> Any:
    """The identifiers of a specimen; its preparation may be empty (type 2)."""
    from pydicom.dataset import Dataset

    out = Dataset()
    for keyword in _OF_SPECIMEN:
        if keyword in item:
            setattr(out, keyword, item[keyword].value)
    out.IssuerOfTheSpecimenIdentifierSequence = item.get("IssuerOfTheSpecimenIdentifierSequence") or []
    out.SpecimenPreparationSequence = []
    return out


def _code(value: str, meaning: str) -> Any:
    """An item of a code sequence, from the codes of DICOM itself."""
    from pydicom.dataset import Dataset

    out = Dataset()
    out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = value, "DCM", meaning
    return out
