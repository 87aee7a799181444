"""The demonstration in one figure: what the labels say about a training slide, and the map of a test slide."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.io import imread

from wsipipe.demo.cohort import Cohort
from wsipipe.demo.drawing import TUMOUR
from wsipipe.geometry import Window
from wsipipe.labels import WeakLabel, read_labels
from wsipipe.pipeline import Settings
from wsipipe.runtime.atomic import write_bytes
from wsipipe.slides import open_slide
from wsipipe.store import SlideStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 1
"""Level of the slide files that the panels show: a quarter as fine as level 0."""

SIZE_IN = (10.0, 6.6)
DPI = 120
BAR_UM = 200
TITLES = (
    "training slide",
    "its weak labels, one per square",
    "its pseudo-mask",
    "test slide",
    "its map by the trained network",
    "its true tumour",
)
_POSITIVE, _NEGATIVE, _TRUTH = "#d55e00", "#0072b2", "#000000"
_OPACITY = 0.4


@dataclass(frozen=True)
class Shown:
    """A slide of the cohort: its file, its store, its weak labels, and its level-0 truth uint8 [h, w]."""

    file: Path
    store: SlideStore
    labels: Sequence[WeakLabel]
    truth: NDArray[np.uint8]


def draw_overview(
    cohort: Cohort, settings: Settings, stores: Sequence[Path], truth: Path, dice: float, path: Path
) -> Path:
    """Write the figure as PNG to `path`, which is returned; `dice` is that of the maps of all test slides.

    It shows the training and the test slide with the most positive labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, test = (_most_positive(cohort, stores, truth, split) for split in ("train", "test"))
    figure = Figure(SIZE_IN, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    for row, slide in zip(panels, (train, test), strict=True):
        _draw_slide(list(row), slide)
    _draw_labels(panels[0, 1], train.labels)
    _draw_mask(panels[0, 2], train.store, settings.segment.masks)
    _draw_mask(panels[1, 1], test.store, settings.segment.name or settings.segment.architecture)
    _draw_truth(panels[1, 2], test.truth)
    for panel, title in zip(panels.ravel(), TITLES, strict=True):
        panel.set_title(title, fontsize=11)
    figure.suptitle(f"From labels of squares to maps of pixels: Dice {dice:.2f} on test slides", fontsize=13)
    _add_legend(figure)
    write_bytes(path, _png(figure))
    return path


def _most_positive(cohort: Cohort, stores: Sequence[Path], truth: Path, split: str) -> Shown:
    """The slide of a split with the most positive labels; of several, the first."""
    rows: dict[str, list[WeakLabel]] = {}
    for label in read_labels(cohort.labels_csv).of_split(split):
        rows.setdefault(label.slide_id, []).append(label)
    slide_id = max(rows, key=lambda i: sum(any(r.present) for r in rows[i]))
    (file,) = (p for p in cohort.slides if p.stem == slide_id)
    (store,) = (p for p in stores if p.stem == slide_id)
    return Shown(file, SlideStore(store), rows[slide_id], imread(truth / f"{slide_id}.png"))


def _png(figure: Figure) -> bytes:
    """The figure as PNG of 256 colours, a quarter as large as with all."""
    full, few = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    image = Image.open(full).convert("RGB")
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(few, "png", optimize=True)
    return few.getvalue()


def _draw_slide(panels: list[Axes], slide: Shown) -> None:
    """The slide in all three panels, in level-0 coordinates, pale where something lies over it; a scale bar."""
    opened = open_slide(slide.file, slide.store.slide_id)
    width, height = opened.info.size_px0
    rgb = opened.read((0, 0), LEVEL, opened.level_size(LEVEL))
    mpp = opened.info.mpp0[0]
    opened.close()
    for k, panel in enumerate(panels):
        panel.imshow(rgb if k == 0 else 128 + rgb // 2, extent=(0, width, height, 0), interpolation="antialiased")
        panel.set_xticks([])
        panel.set_yticks([])
    left, y, long = 0.04 * width, 0.95 * height, BAR_UM / mpp
    panels[0].plot([left, left + long], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    panels[0].text(left + long / 2, y - 0.02 * height, f"{BAR_UM} µm", ha="center", va="bottom", fontsize=9)


def _draw_labels(panel: Axes, labels: Sequence[WeakLabel]) -> None:
    from matplotlib.patches import Rectangle

    for label in labels:
        if label.box_px0:
            x, y, width, height = label.box_px0
            colour = _POSITIVE if any(label.present) else _NEGATIVE
            gap = 0.03 * width  # so that neighbours keep their own outlines
            square = (x + gap, y + gap), width - 2 * gap, height - 2 * gap
            panel.add_patch(Rectangle(*square, facecolor=colour, alpha=_OPACITY if any(label.present) else 0.1))
            panel.add_patch(Rectangle(*square, fill=False, edgecolor=colour, linewidth=1))


def _draw_mask(panel: Axes, store: SlideStore, name: str) -> None:
    mask = store.labels(name).read(Window(0, 0, *store.grid.size_px))
    _draw_area(panel, mask == 1, store.grid.size_px0, _POSITIVE)


def _draw_truth(panel: Axes, truth: NDArray[np.uint8]) -> None:
    _draw_area(panel, truth == TUMOUR, (truth.shape[1], truth.shape[0]), _TRUTH)


def _draw_area(panel: Axes, area: NDArray[np.bool_], size_px0: tuple[int, int], colour: str) -> None:
    """Tint and outline where bool [h, w] is set; it covers the level-0 frame."""
    if area.any():
        x, y = ((np.arange(n) + 0.5) * end / n for n, end in zip(area.shape[::-1], size_px0, strict=True))
        values = area.astype(np.float32)
        panel.contourf(x, y, values, [0.5, 1.5], colors=[colour], alpha=_OPACITY)
        panel.contour(x, y, values, [0.5], colors=[colour], linewidths=1)


def _add_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    entries = [
        Patch(facecolor=_POSITIVE, alpha=_OPACITY, edgecolor=_POSITIVE, label="tumour (in a square: anywhere inside)"),
        Patch(facecolor="none", edgecolor=_NEGATIVE, label="square without tumour"),
        Patch(facecolor=_TRUTH, alpha=_OPACITY, label="true tumour, used by the scoring alone"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
