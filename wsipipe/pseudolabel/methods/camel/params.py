"""Parameters of CAMEL."""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.options import option
from wsipipe.nn.augment import STAIN_STRENGTH
from wsipipe.pseudolabel.params import MethodParams


@dataclass(frozen=True)
class Params(MethodParams):
    """Parameters of CAMEL."""

    NAME = "camel"

    lattice: int = option(4, "N: a patch is split into an N x N lattice of instances")
    context: float = option(2.0, "side of the square that the network sees, in instances; 1.0 as published")
    shrink: int = option(2, "working px per input px of the network; 2 at 0.5 um/px is 1 um/px")
    prevalence: float = option(0.1, "least fraction of positive instances in a positive slide or region")
    min_tissue: float = option(0.5, "least fraction of tissue in an instance")
    warm_steps: int = option(300, "training steps on bag labels, before any instance is selected; 0 as published")
    selectors: str = option("heads", "heads on frozen features, or networks as published (slow)")
    selector_steps: int = option(400, "training steps of each selector")
    selector_lr: float = option(3e-3, "peak learning rate of selectors that are heads")
    veto: bool = option(True, "drop positives of Max-Min that Max-Max calls negative; false as published")
    cascade: int = option(0, "N1: select among N1 x N1 crops of a patch first, then inside them; 0: no cascade")
    constraint: float = option(0.0, "weight of the image-level constraint in retraining; 1.0 as published, 0: none")
    retrain_steps: int = option(300, "training steps of the instance classifier")
    calibrate: bool = option(True, "set thresholds for the best expected Dice, by weak labels of held-out slides")
    self_train_steps: int = option(300, "training steps of the self-training round")
    lr: float = option(5e-4, "peak learning rate of networks")
    batch: int = option(64, "instances per step")
    stain_jitter: float = option(STAIN_STRENGTH, "strength of the stain jitter in training; 0: none")
    max_zoom: float = option(1.0, "largest random enlargement in training; 1.2 as published, 1.0: none")
    max_instances: int = option(40_000, "most instances in memory for retraining")
    confident: float = option(0.9, "self-training uses scores of at least this, and of at most 1 - this")
    uncertain: float = option(0.1, "scores closer than this to 0.5 are painted 255", fit=False)
    overlap: int = option(2, "overlapping instances averaged along each side when scoring; 1 as published", fit=False)
    views: int = option(4, "symmetric views averaged when scoring, 1..8")

    def __post_init__(self) -> None:
        self.check_min(1, "lattice", "shrink", "overlap", "selector_steps", "retrain_steps", "self_train_steps")
        self.check_min(1, "context")
        self.check_min(2, "batch", "max_instances")
        self.check_min(0, "warm_steps", "constraint")
        self.check_choice("selectors", ("heads", "networks"))
        for name in ("prevalence", "min_tissue"):
            self.check(name, 0 < getattr(self, name) <= 1, "is not a fraction above 0")
        self.check("confident", 0.5 < self.confident < 1, "is outside 0.5..1")
        self.check("uncertain", 0 <= self.uncertain < 0.5, "is outside 0..0.5")
        self.check("views", 1 <= self.views <= 8, "is outside 1..8")
        self.check("stain_jitter", 0 <= self.stain_jitter <= 1, "is outside 0..1")
        self.check("max_zoom", 1 <= self.max_zoom <= 2, "is outside 1..2")
        divides = self.cascade == 0 or (1 < self.cascade < self.lattice and self.lattice % self.cascade == 0)
        self.check("cascade", divides, f"is neither 0 nor a proper divisor of camel.lattice, {self.lattice}")
