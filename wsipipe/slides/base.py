"""What every slide reader offers, and what is known of a slide before a pixel is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError

if TYPE_CHECKING:
    from wsipipe.slides.tiff.tiles import TiffTiles

PLAUSIBLE_MPP = (0.05, 20.0)
"""um/px that a level 0 may have; outside it the value is taken for an error in the file."""


@dataclass(frozen=True)
class SlideFile:
    """A slide as the user names it: where it lies, and what a manifest adds to it.

    mpp_override: (x, y) um/px of level 0, which replaces what the file says. mask: a tissue mask of the user's own.
    """

    path: Path
    mpp_override: tuple[float, float] | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class SlideInfo:
    """Identity of a slide. `fingerprint` changes when the pixels may have changed.

    bounds_px0: (x, y, w, h) of the part that holds pixels, where the file tells it (MRXS, SCN); else the whole slide.
    """

    path: str
    vendor: str
    fingerprint: str
    size_px0: tuple[int, int]
    mpp0: tuple[float, float]
    mpp_source: str
    bounds_px0: tuple[int, int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


class Slide(Protocol):
    """A slide with levels of pixels; level-0 pixels (`_px0`) are the frame of every position."""

    id: str
    info: SlideInfo
    downsamples: tuple[float, ...]

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        ...

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3] RGB at `level`, its top left at `xy_px0`; white where the slide has no pixels.

        Raises SlideError if the pixels cannot be decoded. May be called from several threads.
        """
        ...

    def tiles(self, level: int) -> TiffTiles | None:
        """The compressed tiles of a level, where the file lays them out so that they can be decoded one by one."""
        ...

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the pieces in which the file keeps the pixels of a level, as far as it is known."""
        ...

    def close(self) -> None:
        """Free the file."""
        ...


def chosen_mpp(file: SlideFile, flag: float) -> tuple[tuple[float, float] | float, str]:
    """What replaces the mpp of a slide, and where it comes from: (x, y) or one number in um/px, 0.0 for nothing.

    A row of a manifest speaks of one slide, `--mpp-override` (`flag`) of all of them: the row wins.
    """
    return (flag, "override") if file.mpp_override is None else (file.mpp_override, "manifest")


def resolve_mpp(
    found: tuple[float, float] | None,
    override: tuple[float, float] | None,
    path: object,
    found_source: str = "slide",
    override_source: str = "override",
) -> tuple[tuple[float, float], str]:
    """The mpp (x, y) of level 0 in um/px, and its source: what is `found` in the file, unless `override` replaces it.

    Pixels that are not square have to be meant: only an override may be so. Raises SlideError where the resolution is
    missing or absurd; it says how to give it.
    """
    mpp, source = (found, found_source) if override is None else (override, override_source)
    if mpp is None:
        raise SlideError(
            f"{path}: the file does not say its resolution; give it with --mpp-override, e.g. 0.25, "
            "or in column mpp of a manifest"
        )
    x, y = mpp
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and low <= y <= high):
        raise SlideError(
            f"{path}: resolution {x:g} x {y:g} um/px is outside {low:g}..{high:g}; "
            "correct it with --mpp-override or in column mpp of a manifest"
        )
    if override is None and max(x, y) / min(x, y) > 1.05:
        raise SlideError(
            f"{path}: resolutions along x ({x:g}) and y ({y:g} um/px) disagree; "
            "set them with --mpp-override or in columns mpp_x, mpp_y of a manifest"
        )
    return (x, y), source
