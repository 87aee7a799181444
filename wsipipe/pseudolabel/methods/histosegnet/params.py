"""Parameters of HistoSegNet."""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.options import option
from wsipipe.pseudolabel.methods.histosegnet.activation import MAP_RULES
from wsipipe.pseudolabel.shared.windows import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """Parameters of HistoSegNet."""

    NAME = "histosegnet"

    network: str = option("encoder", "encoder: maps of --encoder; x1.7: as published, untrained (needs a GPU)")
    width: int = option(64, "channels of the first block of x1.7; 64 as published")
    activation: str = option("gradcam", "class maps: gradcam as published, cam, gradcam++ or layercam", fit=False)
    background: str = option("tissue", "glass: by the tissue mask, or by brightness as published", fit=False)
    glass: float = option(
        0.0, "brightness (0..255) from which pixels are glass; 240 as published, 0: measured per slide", fit=False
    )
    blur_um: float = option(
        2.4, "standard deviation of the blur of the background in um; 2 px of 1.2 um as published", fit=False
    )
    exempt: tuple[str, ...] = option(
        (), "classes as bright as glass (fat, lumina), subtracted from the background", fit=False
    )
    other: tuple[str, ...] = option((), "classes that count as other tissue: learned but never painted", fit=False)
    other_evidence: str = option(
        "remainder", "evidence for other tissue: remainder as published, or absence (Grad-CAM of -z)", fit=False
    )
    other_share: float = option(
        0.2, "u, evidence for other tissue where no class is seen; 0.05 as published", fit=False
    )
    legacy_inplace: bool = option(False, "subtract classes one after the other, as the released code does", fit=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("network", ("encoder", "x1.7"))
        self.check_choice("activation", ("cam", *MAP_RULES))
        self.check_choice("background", ("tissue", "brightness"))
        self.check_choice("other_evidence", ("remainder", "absence"))
        self.check_min(1, "width")
        self.check("other_share", 0 <= self.other_share <= 1, "is outside 0..1")
        self.check("glass", 0 <= self.glass <= 255, "is outside 0..255")
        self.check("blur_um", 0 <= self.blur_um <= 100, "is outside 0..100 um")
