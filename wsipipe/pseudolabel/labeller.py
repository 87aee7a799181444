"""Scores and masks of slides by a fitted method, written into their stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wsipipe.pseudolabel.fit import Fit
from wsipipe.pseudolabel.inputs import Inputs
from wsipipe.pseudolabel.method import ScoreContext, ScoreMap
from wsipipe.pseudolabel.objects import Objects
from wsipipe.pseudolabel.paint import LabelConstraint, apply_constraints, excluded_cells, paint_mask
from wsipipe.pseudolabel.refinement import refine_scores
from wsipipe.runtime.digest import digest
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ArraySpec, Cell


@dataclass(frozen=True)
class SlideLabeller:
    """Labels slides with the masks `labels/<name>` and the scores `scores/<name>`.

    fit_key: that of the fit whose network scores. overwrite: whether results of other inputs are replaced.
    """

    inputs: Inputs
    fit_key: str
    objects: Objects
    overwrite: bool = False

    @classmethod
    def of(cls, fit: Fit) -> SlideLabeller:
        """The labeller of a fit."""
        inputs = fit.inputs
        device = inputs.compute.device
        objects = Objects(inputs.method, inputs.params, inputs.instance_grid, device, inputs.name, fit.folder)
        return cls(inputs, fit.key, objects, fit.context.overwrite)

    def check_free(self) -> None:
        """StoreError if a store holds masks or scores of other inputs under this name."""
        for store in self.inputs.slides.targets:
            for kind in ("labels", "scores"):
                store.can_reuse(kind, self.inputs.name, self._key(store), overwrite=False)

    def label(self, model: nn.Module, store: SlideStore) -> str:
        """Score a slide and paint its mask; returns done, or skipped where both are there from the same inputs."""
        inputs, key = self.inputs, self._key(store)
        if self._is_labelled(store, key):
            return "skipped"
        store.check_compatible(inputs.tiling.mpp, inputs.tiling.normalise_stain, "the fit")
        constraints = inputs.slides.constraints(store.slide_id)
        scores = self._scores(model, store, constraints)
        refined = self._refined(scores, store, constraints)
        mask = inputs.method.mask(refined, inputs.params)
        meta, shards = self._meta(store, key), paint_mask(mask, refined.stride_px, store, constraints)
        store.write_scores(inputs.name, scores.stride_px, meta, _as_shards(scores.values))
        store.write_labels(inputs.name, inputs.slides.table.classes.mask_values(), meta, shards)
        self.objects.write(model, store, meta)
        return "done"

    def _scores(self, model: nn.Module, store: SlideStore, constraints: list[LabelConstraint]) -> ScoreMap:
        """The scores of the method, 0 where a label excludes the class."""
        inputs = self.inputs
        classes, grid = len(inputs.slides.table.classes), inputs.instance_grid
        excluded = excluded_cells(constraints, classes, store, grid.instance_px)
        context = ScoreContext(store, grid, inputs.compute.device, excluded)
        return apply_constraints(inputs.method.score(model, context, inputs.params), constraints, store)

    def _refined(self, scores: ScoreMap, store: SlideStore, constraints: list[LabelConstraint]) -> ScoreMap:
        """The scores after refinement, which may carry a class over the border of a box that excludes it."""
        step = self.inputs.refinement
        if step is None:
            return scores
        return apply_constraints(refine_scores(scores, store, step, self.inputs.compute.device), constraints, store)

    def _is_labelled(self, store: SlideStore, key: str) -> bool:
        """Whether masks, scores and objects are there; StoreError if they are of other inputs, unless `overwrite`."""
        there = (store.can_reuse(kind, self.inputs.name, key, self.overwrite) for kind in ("labels", "scores"))
        return all(there) and self.objects.current(store, key, self.overwrite)

    def _key(self, store: SlideStore) -> str:
        """Digest of all that the mask of a slide depends on: fit, parameters, pixels, labels and refinement."""
        step = self.inputs.refinement
        refinement = step and (step.name, asdict(step.params), step.stride_px)
        constraints = self.inputs.slides.constraints(store.slide_id)
        return digest(self.fit_key, asdict(self.inputs.params), store.digest, constraints, refinement)

    def _meta(self, store: SlideStore, key: str) -> dict[str, Any]:
        """The attributes of masks and scores."""
        slides = self.inputs.slides
        return {
            "digest": key,
            "classes": list(slides.table.classes.names),
            "method": self.inputs.config.method,
            "fit": self.fit_key,
            "split": slides.split_of(store.slide_id),
            "patient": slides.patient_of(store.slide_id),
        }


def _as_shards(scores: NDArray[np.float32]) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
    """Scores float32 [K, h, w] in 0..1, nan where unknown, in 8 bits (255 = 1.0, unknown 0), shard by shard."""
    stored = np.nan_to_num(np.rint(scores * 255), nan=0).astype(np.uint8)
    for shard, w in shard_windows(ArraySpec(stored.shape, "uint8", 0)):
        yield shard, stored[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
