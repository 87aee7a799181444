"""Recipe: digests of the inputs of a store, which decide whether a store or a cut-off run can be reused."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from wsipipe.errors import SlideError
from wsipipe.runtime.digest import digest
from wsipipe.slides import Slide
from wsipipe.tiling.job import TileJob

_LATTICE_OPTIONS = ("patch_px", "stride_px", "min_tissue")
_RUN_OPTIONS = ("max_corrupt", "qc_image", "mpp_override", "tissue")
_READING_OPTIONS = ("normalise_stain",)


@dataclass(frozen=True)
class Recipe:
    """Digests of what decides the pixels of a store, and of what decides its lattice of patches."""

    pixels: str
    patches: str

    @classmethod
    def of(cls, job: TileJob, slide: Slide) -> Recipe:
        """From the content of the slide, its tissue mask and the options that change the result."""
        options = asdict(job.config)
        lattice = {k: options.pop(k) for k in _LATTICE_OPTIONS} | {"stride_px": job.stride_px}
        for k in (*_RUN_OPTIONS, *_READING_OPTIONS):
            del options[k]
        mask = _digest_of(job.file.mask) if job.file.mask else ""
        pixels = digest(slide.info.fingerprint, slide.info.mpp0, mask, options)
        return cls(pixels, digest(pixels, lattice))


def _digest_of(mask: Path) -> str:
    try:
        with mask.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SlideError(f"{mask}: the tissue mask cannot be read ({error.strerror})") from None
