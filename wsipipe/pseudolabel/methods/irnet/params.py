"""Parameters of IRNet."""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.options import option
from wsipipe.pseudolabel.shared.walk import BETA, RADIUS, Walk
from wsipipe.pseudolabel.shared.windows import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of IRNet."""

    NAME = "irnet"

    scales: tuple[float, ...] = option(
        (1.0,), "sizes of the window that maps are summed over; 1, 0.5, 1.5 and 2 as published"
    )
    seed_fg: float = option(
        0.7, "fraction of a map's maximum from which a cell is a seed of the class; 0.3 as published"
    )
    seed_bg: float = option(
        0.05, "fraction below which, in all maps, a cell is a seed of other tissue; 0.05 as published"
    )
    backbone: str = option(
        "classifier", "frozen backbone of the boundary network: classifier, or start (the starting encoder)"
    )
    boundary_steps: int = option(300, "training steps of the boundary network")
    boundary_lr: float = option(5e-3, "peak learning rate of the boundary network")
    boundary_batch: int = option(16, "windows per step of the boundary network")
    pair_radius: int = option(10, "cells closer than this, in cells of 4 input px, are training pairs")
    displacement: bool = option(
        False, "also learn displacements to object centres, and cut masks into objects: labels/<name>-objects and a CSV"
    )
    exp_times: int = option(2, "the walk has 2 to the power of this steps; 8 as published")
    beta: float = option(BETA, "exponent of affinities in the walk")
    radius: int = option(RADIUS, "cells closer than this, in cells of 4 input px, are neighbours in the walk")
    background: float = option(0.25, "value that a class must exceed to be painted", fit=False)
    as_published: bool = option(
        False, "seeds by two thresholds and a CRF, no tissue mask, maps scaled per window, all pairs weighted equally"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_min(1, "boundary_steps")
        self.check_min(2, "boundary_batch", "pair_radius", "radius")
        self.check_positive("boundary_lr", "beta")
        for name in ("seed_fg", "seed_bg", "background"):
            self.check(name, 0 < getattr(self, name) < 1, "is outside 0..1")
        self.check("seed_bg", self.seed_bg <= self.seed_fg, f"is above irnet.seed_fg, {self.seed_fg}")
        self.check("exp_times", 0 <= self.exp_times <= 12, "is outside 0..12; the walk has 2 to the power of it steps")
        self.check_scales("scales")
        self.check_choice("backbone", ("classifier", "start"))

    @property
    def walk(self) -> Walk:
        """The walk of the maps."""
        return Walk(2**self.exp_times, self.beta, self.radius)
