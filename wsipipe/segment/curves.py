"""Training curves: training.csv, training.png and, if asked for, a TensorBoard log."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from wsipipe.errors import ConfigError
from wsipipe.nn.train import Schedule
from wsipipe.runtime.atomic import write_bytes, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Check = tuple[int, float, float]
"""Step, loss and slide AUC on held-out patients."""


class Curves:
    """The curves of a training in `folder`; `record` adds each step to the TensorBoard log."""

    def __init__(self, folder: Path, schedule: Schedule, batch: int, tensorboard: bool) -> None:
        self._folder, self._schedule, self._batch = folder, schedule, batch
        self._log: Any = _summary_writer(folder / "tensorboard") if tensorboard else None

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log:
            self._log.close()

    def record(self, step: int, loss: float, rate: float, seconds: float) -> None:
        """Add one step to the TensorBoard log, if there is one."""
        if self._log:
            for name, value in (("loss", loss), ("rate", rate), ("patches/s", self._batch / seconds)):
                self._log.add_scalar(name, value, step + 1)

    def write(self, losses: Sequence[float], checks: Sequence[Check]) -> None:
        """Write training.csv (one row per step: step, loss, rate, held_out_loss, held_out_auc) and training.png."""
        seen = {step: (loss, auc) for step, loss, auc in checks}
        rows = []
        for step, loss in enumerate(losses, 1):
            aside = dict(zip(("held_out_loss", "held_out_auc"), seen.get(step, ("", "")), strict=True))
            rows.append({"step": step, "loss": loss, "rate": self._schedule.rate(step - 1), **aside})
        write_csv(self._folder / "training.csv", ("step", "loss", "rate", "held_out_loss", "held_out_auc"), rows)
        write_bytes(self._folder / "training.png", _picture(losses, self._schedule, checks))


def smoothed(losses: Sequence[float], window: int) -> np.ndarray[Any, Any]:
    """Mean of the last `window` losses at every step (of fewer at the start)."""
    sums = np.cumsum(np.insert(np.asarray(losses, float), 0, 0.0))
    ends = np.arange(1, len(losses) + 1)
    first = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[first]) / (ends - first))


def _picture(losses: Sequence[float], schedule: Schedule, checks: Sequence[Check]) -> bytes:
    """Loss and learning rate by step: PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((7.0, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = np.arange(1, len(losses) + 1)
    above.plot(steps, losses, color="#b8cfe0", linewidth=0.7, label="batch loss")
    above.plot(steps, smoothed(losses, max(1, len(losses) // 30)), color="#0072b2", label="running mean")
    if checks:
        _draw_checks(above, checks)
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=8)
    below.plot(steps, [schedule.rate(s) for s in range(len(losses))], color="#009e73")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    for panel in (above, below):
        panel.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _draw_checks(panel: Axes, checks: Sequence[Check]) -> None:
    steps, losses, aucs = zip(*checks, strict=True)
    panel.plot(steps, losses, "o-", color="#d55e00", markersize=3, label="held-out patients")
    beside = panel.twinx()
    beside.plot(steps, aucs, "s:", color="#e69f00", markersize=3)
    beside.set_ylim(0, 1.02)
    beside.set_ylabel("slide AUC, held out", color="#e69f00")


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "segment.tensorboard: TensorBoard is not installed; install it with: pip install 'wsipipe[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder))
