"""The patches of stores as a torch Dataset, with what is known about each: mask, scores and weak label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from wsipipe.errors import ConfigError, check
from wsipipe.geometry import Window, ceil_div
from wsipipe.labels import Classes, LabelTable, WeakLabel, match_slide_id, read_labels
from wsipipe.store import SlideStore


class Patch(TypedDict):
    """One patch; `mask`, `scores` and `label` are there if they were asked for."""

    image: Tensor
    """RGB, uint8 [3, h, w]."""
    slide_id: str
    xy_px: Tensor
    """Top left (x, y) in working px, int64 [2]."""
    mask: NotRequired[Tensor]
    """Class per pixel, uint8 [h, w]: 0 none of the classes, 1.. the classes, 255 ignore."""
    scores: NotRequired[Tensor]
    """Score per class and cell, float32 [K, rows, cols], 0..1."""
    label: NotRequired[Tensor]
    """Weak label, float32 [K]: 1 present, 0 absent; NaN where labels.csv has no row for the patch."""


@dataclass(frozen=True)
class _Slide:
    """The usable patches of a store: top left (x, y) in working px, int64 [N, 2]; weak labels, float32 [N, K]."""

    path: Path
    xy_px: NDArray[np.int64]
    label: NDArray[np.float32]


class Patches(Dataset[Patch]):
    """The usable patches of stores, slide by slide and row by row.

    stores: paths. masks, scores: name of masks or maps (`labels/<name>`, `scores/<name>`). labels: a labels.csv; a row
    with a box holds for the patches whose centre lies in it, and wins over the row of its slide. split: keep the slides
    of this split alone. patch_px, stride_px: of the patches, default: as the store was tiled.

    Raises StoreError if a store lacks what is asked for, ConfigError if classes or options contradict each other. Works
    in the processes of a DataLoader: each opens the stores itself.
    """

    classes: tuple[str, ...]
    """Names of the classes of masks, scores and labels; empty if none of these was asked for."""

    def __init__(
        self,
        stores: Sequence[Path | str],
        *,
        masks: str = "",
        scores: str = "",
        labels: Path | str = "",
        split: str = "",
        patch_px: int = 0,
        stride_px: int = 0,
    ) -> None:
        check(not split or bool(labels), f"split {split!r} needs labels: name a labels.csv with a column split")
        self._masks, self._scores = masks, scores
        opened = [SlideStore(p) for p in stores]
        found = {tuple(s.attributes(kind, name)["classes"]) for s in opened for kind, name in self._asked()}
        if len(found) > 1:
            raise ConfigError(f"masks and scores name different classes: {', '.join(map(str, sorted(found)))}")
        table = read_labels(Path(labels), next(iter(found), None), to_fit=False) if labels else None
        self.classes = table.classes.names if table else next(iter(found), ())
        self._has_label = table is not None
        cohort = _Cohort(table, [s.slide_id for s in opened])
        kept = [s for s in opened if cohort.is_in(s.slide_id, split)]
        check(bool(kept), f"none of {len(opened)} stores is in split {split!r}" if split else "no stores given")
        self._slides = [_slide(s, cohort, patch_px, stride_px) for s in kept]
        self._side_px = [patch_px or s.grid.patch_px for s in kept]
        self._ends = np.cumsum([len(s.xy_px) for s in self._slides])
        self._open: dict[int, SlideStore] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Patch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        index %= len(self)
        which = int(np.searchsorted(self._ends, index, side="right"))
        slide = self._slides[which]
        row = index - (int(self._ends[which]) - len(slide.xy_px))
        store, xy = self._store(which), slide.xy_px[row]
        window = Window(int(xy[0]), int(xy[1]), self._side_px[which], self._side_px[which])
        patch: Patch = {
            "image": torch.from_numpy(store.read(window)).permute(2, 0, 1),
            "slide_id": store.slide_id,
            "xy_px": torch.from_numpy(xy),
        }
        if self._masks:
            patch["mask"] = torch.from_numpy(store.labels(self._masks).read(window).astype(np.uint8))
        if self._scores:
            patch["scores"] = torch.from_numpy(_scores(store, self._scores, window))
        if self._has_label:
            patch["label"] = torch.from_numpy(slide.label[row])
        return patch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a store holds open files, which do not travel to other processes

    def _asked(self) -> list[tuple[str, str]]:
        pairs = (("labels", self._masks), ("scores", self._scores))
        return [(kind, name) for kind, name in pairs if name]

    def _store(self, which: int) -> SlideStore:
        if which not in self._open:
            self._open[which] = SlideStore(self._slides[which].path)
        return self._open[which]


class _Cohort:
    """The rows of labels.csv by slide."""

    def __init__(self, table: LabelTable | None, slide_ids: Sequence[str]) -> None:
        self.classes = table.classes if table else Classes(())
        known = set(slide_ids)
        self._rows: dict[str, list[WeakLabel]] = {}
        for row in table.rows if table else ():
            self._rows.setdefault(match_slide_id(row.slide_id, known), []).append(row)

    def is_in(self, slide_id: str, split: str) -> bool:
        """Whether a slide belongs to a split; every slide belongs to ""."""
        return not split or any(row.split == split for row in self._rows.get(slide_id, ()))

    def labels(self, store: SlideStore, centre_px: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The weak label of every point (x, y) in working px: float32 [N, K], NaN where there is none."""
        out = np.full((len(centre_px), len(self.classes)), np.nan, np.float32)
        for row in sorted(self._rows.get(store.slide_id, ()), key=lambda r: r.box_px0 is not None):
            box = store.grid.frame if row.box_px0 is None else store.grid.window_of_px0(row.box_px0)
            low, size = np.array([box.x_px, box.y_px]), np.array([box.width_px, box.height_px])
            inside = ((centre_px >= low) & (centre_px < low + size)).all(1)
            out[inside if row.box_px0 else slice(None)] = row.present
        return out


def _slide(store: SlideStore, cohort: _Cohort, patch_px: int, stride_px: int) -> _Slide:
    """The usable patches of a store with their labels."""
    windows = store.patches(patch_px, stride_px).windows
    xy = np.array([(w.x_px, w.y_px) for w in windows], np.int64).reshape(-1, 2)
    return _Slide(store.path, xy, cohort.labels(store, xy + (patch_px or store.grid.patch_px) / 2))


def _scores(store: SlideStore, name: str, window: Window) -> NDArray[np.float32]:
    """The scores over a window: float32 [K, rows, cols] 0..1, from the cell that holds its top left pixel on."""
    stride_px = int(store.attributes("scores", name)["stride_px"])
    cells = (ceil_div(n, stride_px) for n in (window.width_px, window.height_px))
    values = store.scores(name).read(Window(window.x_px // stride_px, window.y_px // stride_px, *cells))
    scores: NDArray[np.float32] = np.divide(values, np.float32(255), dtype=np.float32)
    return scores
