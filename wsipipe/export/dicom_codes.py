"""Coded terms for classes, which every segment of a DICOM SEG needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsipipe.errors import ConfigError

Code = tuple[str, str, str]
"""Value, coding scheme and meaning of a coded concept."""


@dataclass(frozen=True)
class SegmentCode:
    """The codes of a segment: property category (CID 7150) and property type (CID 7151)."""

    category: Code = ("85756007", "SCT", "Tissue")
    type: Code = ("85756007", "SCT", "Tissue")


_ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
_NEOPLASM = SegmentCode(_ABNORMAL, ("108369006", "SCT", "Neoplasm"))
KNOWN_CODES: dict[str, SegmentCode] = {
    **dict.fromkeys(("tumour", "tumor", "neoplasm", "cancer", "carcinoma", "malignant"), _NEOPLASM),
    "necrosis": SegmentCode(_ABNORMAL, ("6574001", "SCT", "Necrosis")),
    "stroma": SegmentCode(type=("21793004", "SCT", "Connective tissue")),
    "fat": SegmentCode(type=("55603005", "SCT", "Fat")),
}
"""Class name -> codes; any other class is Tissue unless the user gives a code."""

UNDETERMINED = SegmentCode(("309825002", "SCT", "Spatial and Relational Concept"), ("373068000", "SCT", "Undetermined"))
"""Codes of pixels where the mask is 255."""


def parse_codes(assignments: Sequence[str]) -> dict[str, SegmentCode]:
    """Codes of classes from texts `CLASS=VALUE^SCHEME^MEANING`, or with a category `CLASS=TYPE/CATEGORY`.

    E.g. `tumour=108369006^SCT^Neoplasm/49755003^SCT^Morphologically Abnormal Structure`. Raises ConfigError.
    """
    codes = {}
    for text in assignments:
        name, _, concepts = text.partition("=")
        parts = [tuple(word.strip() for word in concept.split("^")) for concept in concepts.split("/")]
        if not name.strip() or len(parts) > 2 or any(len(p) != 3 or not all(p) for p in parts):
            raise ConfigError(f"code {text!r}: expected CLASS=VALUE^SCHEME^MEANING, e.g. tumour=108369006^SCT^Neoplasm")
        type_, category = (parts[0], parts[1] if len(parts) > 1 else SegmentCode().category)
        codes[name.strip()] = SegmentCode(category, type_)  # type: ignore[arg-type]  # three words each, checked above
    return codes
