"""Codes of classes: read from texts, and valid where they are known."""

from __future__ import annotations

import pytest
from support.dicom_slides import needs_highdicom

from wsipipe.errors import ConfigError
from wsipipe.export.dicom_codes import KNOWN_CODES, UNDETERMINED, SegmentCode, parse_codes


@pytest.mark.parametrize("text", ["tumour", "=1^SCT^x", "a=1^SCT", "a=1^^x", "a=1^SCT^x/2^SCT^y/3^SCT^z"])
def test_codes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected CLASS=VALUE\^SCHEME\^MEANING"):
        parse_codes([text])


def test_codes_are_read() -> None:
    assert parse_codes(["a = 1^SCT^x y", "b=1^DCM^x/2^SCT^z"]) == {
        "a": SegmentCode(type=("1", "SCT", "x y")),
        "b": SegmentCode(("2", "SCT", "z"), ("1", "DCM", "x")),
    }


@needs_highdicom
def test_known_codes_are_in_the_dictionary_of_dicom() -> None:
    from pydicom.sr._concepts_dict import concepts

    meanings: dict[tuple[str, str], set[str]] = {}
    for scheme, entries in concepts.items():
        for named in entries.values():
            for value, (meaning, _) in named.items():
                meanings.setdefault((scheme, value), set()).add(meaning)
    for code in (*KNOWN_CODES.values(), UNDETERMINED, SegmentCode()):
        for value, scheme, meaning in (code.category, code.type):
            assert meaning in meanings[scheme, value]
