"""Shared by the formats: mask values with name and colour, and the comparison of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.store import SlideStore, layout
from wsipipe.store.colours import GREY


@dataclass(frozen=True)
class LabelValue:
    """A mask value, the name of its class, and its colour (r, g, b) 0..255."""

    value: int
    name: str
    rgb: tuple[int, int, int]


def label_values(store: SlideStore, name: str) -> tuple[LabelValue, ...]:
    """The values of `labels/<name>`, ascending, with the names and colours of the label image."""
    store.attributes("labels", name)
    image = layout.read_attributes(store.path / "labels" / name).get("ome", {}).get("image-label", {})
    shown = {int(c["label-value"]): c["rgba"] for c in image.get("colors", ()) if c["rgba"][3]}
    named = {int(p["label-value"]): str(p["name"]) for p in image.get("properties", ())}
    if not named:
        raise StoreError(f"{store.path}: labels/{name} has no names of its values; compute or import it again")
    plain = {0: (0, 0, 0), IGNORE: GREY}

    def colour(value: int) -> tuple[int, int, int]:
        r, g, b = (int(v) for v in shown.get(value, plain.get(value, GREY))[:3])
        return r, g, b

    return tuple(LabelValue(v, named[v], colour(v)) for v in sorted(named))


def compare(found: NDArray[Any], expected: NDArray[Any], window: Window, where: str) -> None:
    """Raise StoreError with the first pixel of `window` where `found` and `expected`, uint8 [h, w], differ."""
    wrong = found != expected
    if wrong.any():
        row, col = (int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise StoreError(
            f"{where}, pixel x {window.x_px + col}, y {window.y_px + row}: found value {found[row, col]}, "
            f"the store has {expected[row, col]}; export it again"
        )


def label_classes(store: SlideStore, name: str) -> dict[int, LabelValue]:
    """Mask value -> class of `labels/<name>`, without 0 and 255."""
    return {v.value: v for v in label_values(store, name) if v.value not in (0, IGNORE)}
