"""Identify the content of a slide without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLES, SAMPLE_BYTES = 64, 4096


def fingerprint(path: Path, known: str = "") -> str:
    """A digest (32 hex digits) that changes when the pixels of the slide at `path` may have changed.

    It covers `known` (a hash from the reader, such as OpenSlide's quickhash), the length of the file, 64 samples of
    4 KiB spread over it, and the names and lengths of its companion files. It does not cover the path or the time: a
    copy of a slide has the same fingerprint.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{known}:{size}".encode())
    with path.open("rb", buffering=0) as file:
        for i in range(SAMPLES):
            file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    for part in _companions(path):
        digest.update(f":{part.name}:{part.stat().st_size}".encode())
    return digest.hexdigest()[:32]


def _companions(path: Path) -> list[Path]:
    """The other files of a slide: the folder next to an MRXS file, the instances next to a DICOM file."""
    suffix, beside = path.suffix.lower(), path.with_suffix("")
    if suffix == ".mrxs" and beside.is_dir():
        return sorted(p for p in beside.iterdir() if p.is_file())
    if suffix == ".dcm":
        return sorted(p for p in path.parent.iterdir() if p.suffix.lower() == suffix and p != path)
    return []
