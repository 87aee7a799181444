"""DICOM Segmentation that refers to the DICOM images of the slide (needs wsipipe[dicom]).

A SEG belongs to the study of the images that it was made from and refers to them; a viewer finds it through them. So
the slide must exist as DICOM: the store was tiled from it, or `source` is the folder of its conversion. References to
images that are in no archive are never invented.

Two kinds. `binary` (Segmentation Storage): a frame of bits per tile and class with a pixel, TILED_SPARSE; today's slide
viewers read it. `labelmap` (Label Map Segmentation Storage, DICOM 2024d): a frame of bytes per tile, TILED_FULL, RLE;
its pixel values are those of the mask. In both, a pixel in no segment is background, and 255 is a segment of its own,
"Undetermined": without it, it would look like background.

Memory. highdicom takes a whole mask as one array and keeps all frames in memory; here it makes the header for a mask of
one tile, and `dicom_frames` streams the frames behind it.

Position. Frame of reference and orientation are those of the source. Its origin is the centre of its first pixel
(PS3.3, C.8.12.14.1.2); the centre of the first mask pixel follows from it. The pixel spacing is that of the source
times `Grid.scale`. Of patient, study and specimen, only the attributes that the standard requires are copied.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wsipipe
from wsipipe.config.options import ExportConfig
from wsipipe.errors import ConfigError, SlideError, StoreError, check
from wsipipe.export.dicom_codes import KNOWN_CODES, UNDETERMINED, SegmentCode, parse_codes
from wsipipe.export.dicom_frames import TILE_PX, cells, inside, write_bits, write_bytes, write_frame_items
from wsipipe.export.dicom_source import Source, find_source
from wsipipe.export.values import LabelValue, compare, label_values
from wsipipe.geometry import ceil_div
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import replacing
from wsipipe.runtime.digest import digest
from wsipipe.store import SlideStore
from wsipipe.store.shards import Cell, ShardedArray

SUFFIX = ".dcm"
BY_DEFAULT = False

KINDS = ("binary", "labelmap")

_EXPLICIT, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"


def check_options(options: ExportConfig) -> None:
    """Refuse an unknown kind and codes that cannot be parsed."""
    check(options.dicom_kind in KINDS, _unknown_kind(options.dicom_kind))
    parse_codes(options.dicom_codes)


def write(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Write the mask of a store."""
    codes = parse_codes(options.dicom_codes)
    write_dicom_seg(store, options.masks, path, options.dicom_kind, _source(store, options), codes)


def verify(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Read a file back and compare it with the mask."""
    verify_dicom_seg(path, store, options.masks, _source(store, options))


def _source(store: SlideStore, options: ExportConfig) -> Path | None:
    return Path(options.dicom_source.format(slide_id=store.slide_id)) if options.dicom_source else None


def _unknown_kind(kind: str) -> str:
    return f"DICOM SEG of kind {kind!r}: expected {' or '.join(KINDS)}"


def write_dicom_seg(
    store: SlideStore,
    name: str,
    path: Path,
    kind: str = "binary",
    source: Path | None = None,
    codes: Mapping[str, SegmentCode] | None = None,
) -> Path:
    """Write level 0 of `labels/<name>` as one SEG instance to `path` (*.dcm); returns `path`.

    source: folder (or file) of the slide as DICOM, if the store was not tiled from it. codes: codes of classes, instead
    of `KNOWN_CODES`. Written aside, then renamed. Raises ConfigError if the extra `dicom` is not installed, the source
    is not found or does not match the slide, or a class name is invalid in DICOM; SlideError if the source lacks
    attributes that a SEG needs; StoreError for a missing or damaged mask.
    """
    check(kind in KINDS, _unknown_kind(kind))
    _require_extra()
    values = label_values(store, name)
    unknown = sorted(set(codes or ()) - {v.name for v in values})
    check(not unknown, f"codes for {', '.join(unknown)}: not classes of labels/{name}")
    image = find_source(store, source)
    array = store.labels(name)
    present = _present(array, values)
    binary = kind == "binary"
    segments = [v for v in values if v.value and (not binary or v.value != IGNORE or present[..., IGNORE].any())]
    header = _header(store, name, image, segments, binary=binary, codes={**KNOWN_CODES, **(codes or {})})
    frames = _frames(present, segments) if binary else [(cell, 0) for cell in np.ndindex(present.shape[:2])]
    header.NumberOfFrames = len(frames)
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = array.spec.shape
    with replacing(path) as partial, partial.open("wb") as f:
        import pydicom

        template = header.PerFrameFunctionalGroupsSequence[0] if binary else None
        for keyword in ("PerFrameFunctionalGroupsSequence", "PixelData"):
            if keyword in header:
                delattr(header, keyword)
        pydicom.dcmwrite(f, header, enforce_file_format=True)
        if binary:
            write_frame_items(f, template, frames, image)
            write_bits(f, array, frames, [s.value for s in segments])
        else:
            write_bytes(f, array, [cell for cell, _ in frames])
    return path


def verify_dicom_seg(path: Path, store: SlideStore, name: str, source: Path | None = None) -> None:
    """Read a SEG back, rebuild the mask tile by tile and compare it with level 0 of `labels/<name>`.

    Also compares size, spacing, position and the image that it refers to; `source` as for `write_dicom_seg`. Raises
    StoreError with the first difference.
    """
    _require_extra()
    from highdicom.io import ImageFileReader
    from pydicom.filebase import DicomFileLike

    values, image, array = label_values(store, name), find_source(store, source), store.labels(name)
    try:
        with path.open("rb") as f:
            reader = ImageFileReader(DicomFileLike(f))  # not as a context: it prints errors, and leaks the file
            reader.open()
            _verify_frame(reader.metadata, path, _expected(image, array))
            value_of, placed = _values(reader.metadata, values), _placed(reader.metadata)
            for cell in np.ndindex(*cells(array)):
                window = inside(array, cell)
                tile = _rebuilt(reader, placed.get(cell, []), value_of)
                compare(tile[: window.height_px, : window.width_px], array.read(window), window, str(path))
    except (StoreError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - parsers and codecs raise many kinds; all mean a damaged file
        raise StoreError(f"{path}: not a readable DICOM SEG ({error!r}); export it again") from None


def _require_extra() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise ConfigError("DICOM SEG needs highdicom; install it with: pip install 'wsipipe[dicom]'") from None


def _present(array: ShardedArray, values: Sequence[LabelValue]) -> NDArray[np.bool_]:
    """Which values each tile holds: bool [rows, cols, 256]; StoreError for a value without a name."""
    present = np.zeros((*cells(array), 256), bool)
    for cell in np.ndindex(*cells(array)):
        pixels = array.read(inside(array, cell))
        if (least := pixels.min()) == pixels.max():  # most tiles; counting is a hundred times slower
            present[(*cell, least)] = True
        else:
            present[cell] = np.bincount(pixels.ravel(), minlength=256) > 0
    strange = set(np.flatnonzero(present.any((0, 1))).tolist()) - {v.value for v in values}
    if strange:
        raise StoreError(f"{array.path}: values {sorted(strange)} have no name; compute or import the mask again")
    return present


def _frames(present: NDArray[np.bool_], segments: Sequence[LabelValue]) -> list[tuple[Cell, int]]:
    """(tile, index of the segment) of every frame with a pixel, by segment; one empty frame if there is none."""
    cells = ((i, np.argwhere(present[..., s.value]).tolist()) for i, s in enumerate(segments))
    return [((row, col), i) for i, found in cells for row, col in found] or [((0, 0), 0)]


def _header(
    store: SlideStore,
    name: str,
    image: Source,
    segments: Sequence[LabelValue],
    *,
    binary: bool,
    codes: Mapping[str, SegmentCode],
) -> Any:
    """The SEG of a mask of one tile, by highdicom: all attributes except counts of frames and pixels."""
    import highdicom as hd

    meta = store.attributes("labels", name)
    made_of = digest(meta, store.pixel_digest, [(s, codes.get(s.name)) for s in segments], wsipipe.__version__)
    described = [_description(s, i if binary else s.value, meta, codes) for i, s in enumerate(segments, start=1)]
    try:
        seg = hd.seg.Segmentation(
            source_images=[image.reference(TILE_PX)],
            pixel_array=np.full((TILE_PX, TILE_PX), described[0].SegmentNumber, np.uint8),
            segmentation_type="BINARY" if binary else "LABELMAP",
            segment_descriptions=described,
            series_instance_uid=_uid(image.uid, store.slide_id, name, binary),
            series_number=1,
            sop_instance_uid=_uid(image.uid, made_of, binary),
            instance_number=1,
            manufacturer="wsipipe",
            manufacturer_model_name="wsipipe",
            software_versions=wsipipe.__version__,
            device_serial_number=wsipipe.__version__,
            content_label="SEGMENTATION",
            content_description=f"{name}; in no segment: none of the classes"[:64],
            transfer_syntax_uid=_EXPLICIT if binary else _RLE,
            pixel_measures=hd.PixelMeasuresSequence(image.spacing_mm, image.thickness_mm),
            plane_positions=[hd.PlanePositionSequence("SLIDE", image.position_mm(0, 0), (1, 1))],
            omit_empty_frames=False,
            dimension_organization_type="TILED_SPARSE" if binary else "TILED_FULL",
            tile_pixel_array=True,
            tile_size=(TILE_PX, TILE_PX),
            specific_character_set="ISO_IR 192",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SlideError(f"{image.path}: its attributes are not valid for a SEG ({error!r}); correct them") from None
    seg.SeriesDescription, seg.PatientOrientation = (
        f"wsipipe {name}"[:64],
        "",
    )  # type 2C: unknown for a slide
    seg.SharedFunctionalGroupsSequence[0].DerivationImageSequence = [image.derivation()]
    return seg


def _description(s: LabelValue, number: int, meta: Mapping[str, Any], codes: Mapping[str, SegmentCode]) -> Any:
    """The description of a segment: name, codes, colour and algorithm.

    An imported mask (`masks import`) is of type MANUAL, any other AUTOMATIC.
    """
    import highdicom as hd

    check(
        len(s.name) <= 64 and "\\" not in s.name,
        f"class {s.name!r}: a name in DICOM has at most 64 characters and no backslash; rename the class",
    )
    learned = "source" not in meta
    family = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    how = f"wsipipe {meta.get('method', 'segment')}"
    code = UNDETERMINED if s.value == IGNORE else codes.get(s.name, SegmentCode())
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=s.name,
        segmented_property_category=hd.sr.CodedConcept(*code.category),
        segmented_property_type=hd.sr.CodedConcept(*code.type),
        algorithm_type="AUTOMATIC" if learned else "MANUAL",
        algorithm_identification=hd.AlgorithmIdentificationSequence(how, family, wsipipe.__version__)
        if learned
        else None,
        display_color=hd.color.CIELabColor.from_rgb(*s.rgb),
    )


def _uid(*parts: object) -> str:
    """A UID derived from `parts`: an export that is repeated replaces itself in an archive."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, digest(*parts)).int}"


def _expected(image: Source, array: ShardedArray) -> dict[str, Any]:
    """The frame attributes that a SEG of the mask must have."""
    return {
        "size": array.spec.shape,
        "pixel spacing": [round(mm, 9) for mm in image.spacing_mm],
        "position": [round(mm, 6) for mm in image.position_mm(0, 0)[:2]],
        "source image": image.uid,
    }


def _verify_frame(meta: Any, path: Path, expected: Mapping[str, Any]) -> None:
    """StoreError unless a SEG has the expected frame."""
    measures = meta.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    origin = meta.TotalPixelMatrixOriginSequence[0]
    found = {
        "size": (meta.TotalPixelMatrixRows, meta.TotalPixelMatrixColumns),
        "pixel spacing": [round(float(mm), 9) for mm in measures.PixelSpacing],
        "position": [round(float(origin[f"{axis}OffsetInSlideCoordinateSystem"].value), 6) for axis in "XY"],
        "source image": str(meta.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID),
    }
    for what, there in expected.items():
        if found[what] != there:
            raise StoreError(f"{path}: {what} {found[what]} found, {there} expected; export it again")


def _values(meta: Any, values: Sequence[LabelValue]) -> dict[int, int]:
    """Segment number -> mask value, by the names of the segments."""
    value_of = {v.name: v.value for v in values}
    return {int(s.SegmentNumber): value_of[s.SegmentLabel] for s in meta.SegmentSequence if s.SegmentNumber}


def _placed(meta: Any) -> dict[Cell, list[tuple[int, int]]]:
    """Tile -> (frame, segment number) of its frames; segment 0: pixels are segment numbers."""
    if meta.SegmentationType == "LABELMAP":
        across = ceil_div(meta.TotalPixelMatrixColumns, meta.Columns)
        return {divmod(i, across): [(i, 0)] for i in range(int(meta.NumberOfFrames))}
    shared = meta.SharedFunctionalGroupsSequence[0]
    placed: dict[Cell, list[tuple[int, int]]] = {}
    for i, item in enumerate(meta.PerFrameFunctionalGroupsSequence):
        at = item.PlanePositionSlideSequence[0]
        row, col = at.RowPositionInTotalImagePixelMatrix - 1, at.ColumnPositionInTotalImagePixelMatrix - 1
        segment = (item.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
        place = (row // meta.Rows, col // meta.Columns)
        placed.setdefault(place, []).append((i, int(segment.ReferencedSegmentNumber)))
    return placed


def _rebuilt(reader: Any, frames: Sequence[tuple[int, int]], value_of: Mapping[int, int]) -> NDArray[np.uint8]:
    """The mask values of a tile from its frames; ValueError if two segments share a pixel."""
    tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
    for i, segment in frames:
        pixels = np.asarray(reader.read_frame(i, correct_color=False))
        for number in [segment] if segment else np.unique(pixels[pixels > 0]):
            inside = pixels == (1 if segment else number)
            if tile[inside].any():
                raise ValueError(f"frame {i}: segment {number} shares pixels with another segment")
            tile[inside] = value_of[int(number)]
    return tile
