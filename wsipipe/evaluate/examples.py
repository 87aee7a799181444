"""A picture of several masks at the same places: image, truth, and the scores and mask of each.

Scores are those of the method, before any refinement; masks are as stored, after it. The two may differ.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.annotations.mask_image import ValueMap, find_masks
from wsipipe.annotations.open import SUFFIXES, open_truth
from wsipipe.config.options import EvaluateConfig
from wsipipe.geometry import LEVEL_FACTOR, Window, ceil_div
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import write_bytes
from wsipipe.store import SlideStore
from wsipipe.store.colours import blend, class_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE_PX = 1024
"""Side of a place in working px; read from the level that is 4 times coarser."""

MOST_PLACES = 6

OPACITY = 0.55
"""Opacity of the colours of classes over the image."""

Reader = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True)
class Place:
    """A window of a store, and how instructive it is: `interest` 0..0.5 by the truth, 0..1 by disagreement."""

    store: SlideStore
    window: Window
    interest: float


def write_examples(
    paths: Sequence[Path], names: Sequence[str], classes: Sequence[str], config: EvaluateConfig, path: Path
) -> list[Place]:
    """Write the picture as PNG and return its places: tissue where the truth is mixed, or where the masks disagree."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stores = [SlideStore(p) for p in paths]
    truths = _truths(stores, config, tuple(classes))
    places = choose(stores, names, truths)
    scored = {n for n in names if any(n in p.store.names("scores") for p in places)}
    answers = [(n, what) for n in names for what in ("scores", "mask") if what == "mask" or n in scored]
    heads = ["image", *(["truth"] if truths else []), *(f"{n}: {what}" for n, what in answers)]
    figure = Figure((1.7 * len(heads), 1.75 * max(1, len(places)) + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(1, len(places)), len(heads), squeeze=False)
    for row, place in zip(panels, places, strict=False):
        _draw_row(list(row), place, answers, truths.get(place.store.slide_id) if truths else None, bool(truths))
    for panel, head in zip(panels[0], heads, strict=True):
        panel.set_title(head, fontsize=7)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(path, data.getvalue())
    return places


def _truths(stores: Sequence[SlideStore], config: EvaluateConfig, classes: tuple[str, ...]) -> dict[str, Reader]:
    if not config.truth:
        return {}
    files = find_masks(config.truth, [s.slide_id for s in stores], SUFFIXES)
    meaning = ValueMap.parse(config.truth_map, classes)
    return {
        s.slide_id: open_truth(files[s.slide_id], s.grid, meaning, s.shown_from_px0)
        for s in stores
        if s.slide_id in files
    }


def choose(stores: Sequence[SlideStore], names: Sequence[str], truths: Mapping[str, Reader]) -> list[Place]:
    """At most `MOST_PLACES` places, spread over the slides, by interest; ties go to the first slide and row.

    Interest is highest where half of the truth is of a class; without a truth, where the masks disagree everywhere.
    """
    best: list[list[Place]] = []
    for store in stores:
        found = [p for p in _places(store, names, truths) if p.interest > 0]
        best.append(sorted(found, key=lambda p: -p.interest)[:MOST_PLACES])
    rounds = [
        p for turn in range(MOST_PLACES) for p in sorted((b[turn] for b in best if turn < len(b)), key=_by_interest)
    ]
    return rounds[:MOST_PLACES]


def _by_interest(place: Place) -> float:
    return -place.interest


def _places(store: SlideStore, names: Sequence[str], truths: Mapping[str, Reader]) -> list[Place]:
    """Every window of `SIDE_PX` (smaller in a small slide) with half or more tissue."""
    level = min(2, store.grid.levels - 1)
    f = LEVEL_FACTOR**level
    width, height = store.grid.size_px
    side = min(SIDE_PX, max(width, height))
    out = []
    for (row, col), share in np.ndenumerate(store.tissue_grid(side)):
        x, y = col * side, row * side
        window = Window(x, y, min(side, width - x), min(side, height - y))
        if share * side**2 < window.width_px * window.height_px / 2:
            continue
        if store.slide_id in truths:
            truth = truths[store.slide_id](window)
            named = float(((truth > 0) & (truth != IGNORE)).mean())
            interest = min(named, 1 - named)
        else:
            small = Window(x // f, y // f, ceil_div(window.width_px, f), ceil_div(window.height_px, f))
            masks = np.stack([store.labels(n, level).read(small) for n in names])
            interest = float((masks != masks[0]).any(0).mean())
        out.append(Place(store, window, interest))
    return out


def _draw_row(
    panels: list[Axes], place: Place, answers: Sequence[tuple[str, str]], truth: Reader | None, with_truth: bool
) -> None:
    """Image, truth and `answers`, each (name, scores or mask), of a place; panels without content are hidden."""
    store, w = place.store, place.window
    level = min(1, store.grid.levels - 1)
    f = LEVEL_FACTOR**level
    small = Window(w.x_px // f, w.y_px // f, w.width_px // f, w.height_px // f)
    rgb = store.read(small, level)
    panels[0].imshow(rgb)
    panels[0].set_ylabel(f"{store.slide_id}\n{w.x_px}, {w.y_px} px", fontsize=6)
    shown: list[NDArray[Any] | None] = []
    if with_truth:
        true = truth(w)[f // 2 :: f, f // 2 :: f][: rgb.shape[0], : rgb.shape[1]] if truth else None
        shown.append(None if true is None else tinted(rgb, true))
    for name, what in answers:
        mask = store.labels(name, level).read(small).astype(np.uint8, copy=False)
        shown.append(_scores(store, name, w) if what == "scores" else tinted(rgb, mask))
    for panel, image in zip(panels[1:], shown, strict=True):
        if image is None:
            panel.set_visible(False)
        else:
            panel.imshow(image, vmin=0, vmax=1, cmap="magma")  # for scores of one class; an RGB image stays as it is


def _scores(store: SlideStore, name: str, w: Window) -> NDArray[Any] | None:
    """The stored scores in a window: of one class float64 [h, w] 0..1, of several an RGB image uint8 [h, w, 3].

    None if the store has no scores of this name.
    """
    if name not in store.names("scores"):
        return None
    n = int(store.attributes("scores", name)["stride_px"])
    cells = Window(w.x_px // n, w.y_px // n, max(1, w.width_px // n), max(1, w.height_px // n))
    values = np.asarray(store.scores(name).read(cells), np.uint8)
    return values[0] / 255 if len(values) == 1 else coloured(values)


def coloured(scores: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every cell in the colour of its class of highest score, as bright as the score: uint8 [K, h, w] -> [h, w, 3].

    A score of 0 is black. Of equal scores the first class counts.
    """
    black, best = np.zeros((*scores.shape[1:], 3), np.uint8), np.asarray(scores.argmax(0) + 1, np.uint8)
    return blend(black, best, class_colours(), np.asarray(scores.max(0) / 255, np.float32))


def tinted(rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes in their colours over the image, 255 in grey: uint8 [h, w, 3] and uint8 [h, w] -> uint8 [h, w, 3]."""
    return blend(rgb, mask, class_colours(), OPACITY)
