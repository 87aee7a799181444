"""Options of every stage as one frozen dataclass each.

Sections of pipeline.yaml are named after them, keys are field names. A flag overrides the file, the file the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.option import fitted_with, option
from wsipipe.config.training import PretrainConfig, PseudolabelConfig, TrainConfig
from wsipipe.errors import check

__all__ = [
    "SECTIONS",
    "EvaluateConfig",
    "ExportConfig",
    "PretrainConfig",
    "PseudolabelConfig",
    "RunConfig",
    "StitchConfig",
    "TileConfig",
    "TrainConfig",
    "fitted_with",
    "option",
]


@dataclass(frozen=True)
class TileConfig:
    """Slides to stores."""

    mpp: float = option(
        0.5, "working resolution in um/px; a slide level within 1 % of it is used unchanged", group="Patches"
    )
    patch_px: int = option(256, "side of a patch at the working resolution", group="Patches")
    stride_px: int = option(0, "step between patches; 0: the patch size (no overlap)", group="Patches")
    min_tissue: float = option(0.25, "minimum tissue share of a patch (0..1)", group="Patches", metavar="0..1")
    codec: str = option("jpeg", "pixel codec: jpeg (small) or zstd (lossless)", group="Pixels", metavar="jpeg|zstd")
    quality: int = option(90, "JPEG quality", group="Pixels", metavar="1..100")
    mpp_override: float = option(
        0.0,
        "um/px of level 0 if the slide file lacks it or has it wrong; 0: read it from the file",
        group="What goes in",
    )
    tissue_mpp: float = option(8.0, "um/px at which tissue is detected", group="Tissue")
    min_area_um2: float = option(10_000.0, "minimum area of tissue pieces and holes", group="Tissue")
    qc: bool = option(True, "exclude pen marks and out-of-focus areas", group="Tissue")
    tissue: str = option(
        "",
        "your own tissue masks, instead of detection: folder with <slide_id>.png, .tif or .geojson, or a pattern",
        group="What goes in",
        metavar="FOLDER",
    )
    max_corrupt: float = option(
        0.05,
        "maximum unreadable share of a slide; above it the slide fails",
        group="Pixels",
        metavar="0..1",
    )
    fast_resample: bool = option(
        False, "downsample while decoding JPEG: faster, but not the exact area mean", group="Pixels"
    )
    qc_image: bool = option(
        False, "write an image for checking the tissue by eye: runs/tile/<slide_id>.png", group="Tissue"
    )
    normalise_stain: bool = option(
        False,
        "normalise mean optical density to a reference when reading; stored pixels are unchanged",
        group="Pixels",
    )

    def __post_init__(self) -> None:
        check(0 <= self.max_corrupt <= 1, f"tile.max_corrupt: {self.max_corrupt} is outside 0..1")
        check(0.05 <= self.mpp <= 20, f"tile.mpp: {self.mpp} um/px is outside 0.05..20")
        check(self.patch_px >= 16, f"tile.patch_px: {self.patch_px} is below 16")
        check(self.stride_px >= 0, f"tile.stride_px: {self.stride_px} is negative; 0 means the patch size")
        check(0 <= self.min_tissue <= 1, f"tile.min_tissue: {self.min_tissue} is outside 0..1")
        check(self.codec in ("jpeg", "zstd"), f"tile.codec: {self.codec!r} is neither jpeg nor zstd")
        check(
            self.stride_px <= self.patch_px,
            f"tile.stride_px: {self.stride_px} is above the patch size",
        )
        check(0 < self.tissue_mpp <= 64, f"tile.tissue_mpp: {self.tissue_mpp} um/px is outside 0..64")
        check(self.min_area_um2 >= 0, f"tile.min_area_um2: {self.min_area_um2} is negative")
        check(1 <= self.quality <= 100, f"tile.quality: {self.quality} is outside 1..100")
        override_ok = self.mpp_override == 0 or 0.05 <= self.mpp_override <= 20
        check(override_ok, f"tile.mpp_override: {self.mpp_override} um/px is outside 0.05..20")


@dataclass(frozen=True)
class StitchConfig:
    """A trained network to slide maps, by overlapping windows."""

    window_px: int = option(0, "side of a window in px; 0: the patch size", group="Stitching")
    overlap: float = option(
        0.5, "fraction of a window that its neighbour covers too", group="Stitching", metavar="0..0.9"
    )
    blend: str = option("hann", "weights of overlapping windows", group="Stitching", metavar="hann|constant")
    views: int = option(
        1, "symmetric views averaged per window (test-time augmentation)", group="Stitching", metavar="1|2|4|8"
    )
    memory_mb: int = option(512, "memory budget for stitching in MB, without the network", group="Stitching")
    score_stride_px: int = option(8, "px of the map per stored score", group="Stitching")

    def __post_init__(self) -> None:
        check(0 <= self.overlap <= 0.9, f"stitch.overlap: {self.overlap} is outside 0..0.9")
        check(self.score_stride_px >= 1, f"stitch.score_stride_px: {self.score_stride_px} is below 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """Masks and maps against the truth."""

    masks: str = option(
        "unet",
        "name of the masks or maps to evaluate: labels/NAME of the stores, and scores/NAME if they exist",
        group="What goes in",
        metavar="NAME",
    )
    truth: str = option(
        "",
        "folder with <slide_id>.png, .tif (masks), .geojson (QuPath) or .xml (ASAP), or a pattern with {slide_id}",
        group="What goes in",
        metavar="FOLDER",
    )
    labels: str = option(
        "",
        "CSV with slide_id and optionally label, split, patient_id; default: that of pseudolabel, if it exists",
        group="What goes in",
        metavar="CSV",
    )
    truth_map: str = option(
        "",
        "meaning of mask values or annotation names, e.g. 0=ignore,1=0,2=tumour or _0=tumour,_1=tumour,_2=0 (later "
        "entries cover earlier ones); `outside`: what lies in no annotation; default: class indices or names",
        group="What goes in",
        metavar="MAP",
    )
    split: str = option(
        "",
        "evaluate the slides of this split only; default: all with a truth",
        group="What goes in",
        metavar="NAME",
    )
    glass: str = option(
        "given",
        "glass in the tissue mask: given (background in truth and answer), scored as drawn, or ignored",
        group="Scoring",
        metavar="given|scored|ignored",
    )
    detections: str = option(
        "",
        "CSV with slide,class,x_px0,y_px0,p for FROC; default: local maxima of the scores",
        group="What goes in",
        metavar="CSV",
    )
    slide_top: float = option(
        0.01,
        "slide score: mean of the top fraction of its tissue scores; 0: the maximum",
        group="Scoring",
        metavar="0..1",
    )
    nms_um: float = option(
        150.0, "non-maximum suppression: um within which only the highest score is a detection", group="Scoring"
    )

    def __post_init__(self) -> None:
        known = ("given", "scored", "ignored")
        check(self.glass in known, f"evaluate.glass: {self.glass!r} is not known; choose one of {', '.join(known)}")
        check(0 <= self.slide_top <= 1, f"evaluate.slide_top: {self.slide_top} is not a share between 0 and 1")
        check(0 < self.nms_um < 1e5, f"evaluate.nms_um: {self.nms_um} um is outside 0..100000")


@dataclass(frozen=True)
class ExportConfig:
    """Masks and maps to files that other programs open."""

    masks: str = option(
        "unet", "name of the masks or maps to export: labels/NAME of the stores", group="What goes in", metavar="NAME"
    )
    formats: tuple[str, ...] = option(
        (),
        "file formats, such as ome-tiff or geojson; default: all that need nothing but the store",
        group="What comes out",
        metavar="NAME",
    )
    folder: str = option(
        "export", "folder of the files: <folder>/<masks>/<slide_id>.*", group="What comes out", metavar="FOLDER"
    )
    verify: bool = option(False, "read every file back and compare it with the mask at level 0", group="What comes out")
    level: int = option(
        0, "GeoJSON: level of the mask; 0 is exact, each further level 4 times coarser", group="GeoJSON"
    )
    tolerance_um: float = option(0.0, "GeoJSON: um by which simplified outlines may deviate; 0: exact", group="GeoJSON")
    min_area_um2: float = option(0.0, "GeoJSON: pieces smaller than this (um2) are left out", group="GeoJSON")
    overlay_px: int = option(1600, "Overlay: longer side of the picture in px", group="Overlay")
    dicom_kind: str = option(
        "binary",
        "DICOM SEG: binary (which today's viewers read) or labelmap",
        group="DICOM SEG",
        metavar="binary|labelmap",
    )
    dicom_source: str = option(
        "",
        "DICOM SEG: folder of the slide as DICOM, with {slide_id}; default: the slide that the store was tiled from",
        group="DICOM SEG",
        metavar="FOLDER",
    )
    dicom_codes: tuple[str, ...] = option(
        (), "DICOM SEG: code of a class, as CLASS=CODE^SCHEME^MEANING", group="DICOM SEG", metavar="CLASS=CODE"
    )

    def __post_init__(self) -> None:
        check(self.overlay_px >= 16, f"export.overlay_px: {self.overlay_px} is below 16")


@dataclass(frozen=True)
class RunConfig:
    """Options that all stages share."""

    slides: tuple[str, ...] = option((), "slides, folders or patterns, for `wsipipe run`", group="Run", metavar="SLIDE")
    stores: str = option("stores", "folder of the stores", group="Run", metavar="FOLDER")
    runs: str = option("runs", "folder of fits, checkpoints, ledgers and figures", group="Run", metavar="FOLDER")
    device: str = option("auto", "auto, cpu or cuda:N", group="Run", metavar="NAME")
    workers: int = option(0, "threads that read and write pixels; 0: one per processor", group="Run")
    seed: int = option(0, "seed of all random numbers", group="Run")
    max_failed: str = option(
        "0", "failed slides allowed with exit code 0: number or percentage", group="Run", metavar="N|P%"
    )
    dask: str = option(
        "",
        "dask scheduler for tiling, tcp://host:port, or a number of local processes",
        group="Run",
        metavar="ADDRESS|N",
    )

    def __post_init__(self) -> None:
        number = self.max_failed.removesuffix("%")
        check(
            number.isdecimal(), f"run.max_failed: {self.max_failed!r} is neither a number nor a percentage such as 5%"
        )
        check(self.workers >= 0, f"run.workers: {self.workers} is negative; 0 means one per processor")


SECTIONS: dict[str, type] = {
    "run": RunConfig,
    "tile": TileConfig,
    "pretrain": PretrainConfig,
    "pseudolabel": PseudolabelConfig,
    "segment": TrainConfig,
    "stitch": StitchConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
