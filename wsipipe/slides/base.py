"""What every slide reader offers, and what is known of a slide before a pixel is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError

PLAUSIBLE_MPP = (0.05, 20.0)
"""um/px that a level 0 may have; outside it the value is taken for an error in the file."""


@dataclass(frozen=True)
class SlideInfo:
    """Identity of a slide. `fingerprint` changes when the pixels may have changed."""

    path: str
    vendor: str
    fingerprint: str
    size_px0: tuple[int, int]
    mpp0: tuple[float, float]
    mpp_source: str

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

    def close(self) -> None:
        """Free the file."""
        ...


def resolve_mpp(found: tuple[float, float] | None, override: float, path: object) -> tuple[tuple[float, float], str]:
    """The level-0 mpp (x, y) and where it came from; SlideError says how to give it where it is missing or absurd."""
    if override:
        return (override, override), "override"
    if found is None:
        raise SlideError(f"{path}: the file does not say its resolution; give it with --mpp-override, e.g. 0.25")
    x, y = found
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and low <= y <= high):
        raise SlideError(
            f"{path}: resolution {x:g} x {y:g} um/px is outside {low}..{high}; correct it with --mpp-override"
        )
    if abs(x / y - 1) > 0.05:
        raise SlideError(
            f"{path}: resolutions along x ({x:g}) and y ({y:g} um/px) disagree; set it with --mpp-override"
        )
    return (x, y), "slide"
