"""An evaluation as one figure: bars with intervals, the FROC curve, and the reliability of the scores."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsipipe.evaluate.confusion import Floats
from wsipipe.evaluate.evaluation import EMPTY, Evaluation
from wsipipe.evaluate.froc import FALSE_POSITIVES
from wsipipe.evaluate.metrics.overlap import dice_of
from wsipipe.runtime.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""Colours that colour-blind readers can distinguish (Okabe and Ito)."""

_GREY = "#9a9a9a"
_LABEL_LETTERS = 28
"""Letters per line of a label beside the bars."""


def write_figure(evaluation: Evaluation, path: Path) -> None:
    """Write the figure as PNG: Dice of every answer and class; with scores, FROC and reliability beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = _bars(evaluation)
    drawers = [_draw_froc] if evaluation.froc else []
    drawers += [_draw_reliability] if evaluation.pixel_calibration is not None else []
    figure = Figure((6.4 + 4.2 * len(drawers), max(3.8, 1.6 + 0.3 * len(bars))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(drawers), squeeze=False, width_ratios=[6.4] + [4.2] * len(drawers))[0]
    _draw_bars(panels[0], bars, evaluation.name)
    for panel, draw in zip(panels[1:], drawers, strict=True):
        draw(panel, evaluation)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    covered = evaluation.coverage
    glass = {"given": "glass set to background", "scored": "glass scored", "ignored": "glass not scored"}[covered.glass]
    figure.suptitle(f"{covered.slides} slides, {covered.pixels:,} px scored, {glass}", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(path, data.getvalue())


def _bars(evaluation: Evaluation) -> list[tuple[str, int, float, Floats]]:
    """(label, class index, Dice, interval or nan): the classes of the evaluated masks, then the trivial answers."""
    out = []
    for i, (answer, confusion) in enumerate(evaluation.answers.items()):
        if answer == EMPTY:
            continue
        ends, dices = evaluation.intervals(answer).get("dice"), dice_of(confusion.matrix)
        for k, name in evaluation.of_interest(answer):
            label = answer if i else f"{answer}: {name}"
            out.append((label, k - 1, float(dices[k]), np.array([e[k] for e in ends]) if ends else np.full(2, np.nan)))
    return out


def _draw_bars(panel: Axes, bars: list[tuple[str, int, float, Floats]], name: str) -> None:
    for y, (label, k, dice, ends) in enumerate(bars):
        own = label.startswith(f"{name}: ")
        colour = _COLOURS[k % len(_COLOURS)]
        value = 0.0 if np.isnan(dice) else dice
        panel.barh(y, value, color=colour, alpha=1.0 if own else 0.3, height=0.7)
        if not np.isnan(ends).any():
            panel.plot(ends, [y, y], color="black", linewidth=1.4, solid_capstyle="butt")
        text = "undefined" if np.isnan(dice) else f"{dice:.3f}"
        panel.text(max(value, np.nan_to_num(ends[1])) + 0.015, y, text, va="center", fontsize=8)
    panel.set_yticks(range(len(bars)), [textwrap.fill(b[0], _LABEL_LETTERS) for b in bars], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.12)
    panel.set_xticks(np.linspace(0, 1, 6))
    has_ends = any(not np.isnan(b[3]).any() for b in bars)
    panel.set_xlabel("Dice, all slides pooled" + (" (line: 95 % interval)" if has_ends else ""))


def _draw_froc(panel: Axes, evaluation: Evaluation) -> None:
    """Sensitivity over false positives per slide, with the six points that make the score."""
    for k, (name, curve) in enumerate((evaluation.froc or {}).items()):
        if not curve.lesions:
            continue
        colour = _COLOURS[k % len(_COLOURS)]
        reach = max(FALSE_POSITIVES[-1], float(curve.false_positives[-1]))
        x = np.append(curve.false_positives, reach)
        y = np.append(curve.sensitivity, curve.sensitivity[-1])
        panel.plot(x, y, color=colour, label=f"{name} {curve.score:.3f} ({curve.lesions} lesions)")
        panel.plot(list(curve.at), list(curve.at.values()), "o", color=colour, markersize=4)
    panel.set_xscale("symlog", base=2, linthresh=FALSE_POSITIVES[0])
    panel.set_xticks(FALSE_POSITIVES, [f"{f:g}" for f in FALSE_POSITIVES])
    panel.set_xlim(0, 1.15 * FALSE_POSITIVES[-1])
    panel.set_ylim(0, 1.03)
    panel.set_xlabel("false positives per slide")
    panel.set_ylabel("sensitivity")
    panel.set_title("FROC (Camelyon16's rules)", fontsize=9)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, loc="lower right", frameon=False)


def _draw_reliability(panel: Axes, evaluation: Evaluation) -> None:
    """Observed fraction of a class over its score; the size of a point shows the pixels of its bin."""
    panel.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for k, (name, r) in enumerate(zip(evaluation.classes, evaluation.pixel_calibration or [], strict=True)):
        colour = _COLOURS[k % len(_COLOURS)]
        full = r.count > 0
        panel.plot(
            r.mean_score[full], r.observed[full], color=colour, linewidth=1, label=f"{name}, error {r.error:.3f}"
        )
        sizes = 4 + 90 * np.sqrt(r.count[full] / max(r.count.sum(), 1))
        panel.scatter(r.mean_score[full], r.observed[full], s=sizes, color=colour, alpha=0.7, linewidths=0)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.03)
    panel.set_xlabel("score")
    panel.set_ylabel("observed fraction of the class")
    panel.set_title("reliability, pixels of tissue", fontsize=9)
    panel.legend(fontsize=8, loc="upper left", frameon=False)
