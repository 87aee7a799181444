"""Parameters of DRS."""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.options import option
from wsipipe.pseudolabel.methods.drs.suppression import FIXED, MODES
from wsipipe.pseudolabel.shared.windows import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of DRS."""

    NAME = "drs"

    network: str = option("encoder", "encoder: maps of --encoder; vgg16: as published, from --encoder vgg16; lr 1e-4")
    suppression: str = option(
        FIXED, "fixed: every channel is capped at drs.delta of its maximum; learnable: at a learned fraction"
    )
    delta: float = option(0.55, "fraction of a channel's maximum that it is capped at; 1: no suppression")
    suppress_from: int = option(
        8, "finest stride, in input px per cell, of maps with suppression; 1: all maps, as published"
    )
    stride: int = option(8, "stride of the class maps in input px per cell; the encoder's nearest is used")
    scales: tuple[float, ...] = option(
        (0.8, 1.0, 1.2), "sizes of the input, relative to a window, that maps are fused over"
    )
    fusion: str = option("mean", "how maps are fused over sizes: mean, or max as published")
    weigh: bool = option(True, "weight maps by the window's probability of the class; false as published")
    absence: bool = option(True, "include the evidence against all classes; false as published: glass alone")
    refiner: bool = option(True, "train a refinement network on the maps and score with it, as published")
    refiner_from: str = option("classifier", "initial weights of that network: classifier, or encoder as published")
    refiner_steps: int = option(600, "training steps of the refinement network")
    refiner_lr: float = option(1e-3, "peak learning rate of the refinement network")
    refiner_batch: int = option(16, "windows per step of the refinement network")
    alpha: float = option(0.2, "least value of a map that paints its class", fit=False)
    conflict: int = option(2, "255 where more channels than this exceed drs.conflict_level", fit=False)
    conflict_level: float = option(0.9, "value above which a class, or the background, counts as certain", fit=False)
    unexplained: str = option(
        "ignore", "tissue where nothing reaches drs.alpha: ignore (255, as published) or background (0)", fit=False
    )
    batch: int = option(32, "windows per step of the classifier")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("network", ("encoder", "vgg16"))
        self.check_choice("suppression", MODES)
        self.check_choice("fusion", ("mean", "max"))
        self.check_choice("unexplained", ("ignore", "background"))
        self.check_choice("refiner_from", ("classifier", "encoder"))
        self.check_min(1, "suppress_from", "stride", "conflict", "refiner_steps", "refiner_batch")
        self.check_positive("refiner_lr")
        self.check("delta", 0 < self.delta <= 1, "is not a fraction above 0; for 'learnable' see drs.suppression")
        self.check("alpha", 0 < self.alpha < 1, "is outside 0..1")
        self.check("conflict_level", 0 < self.conflict_level <= 1, "is outside 0..1")
        self.check_scales("scales")
