"""Options of every stage as one frozen dataclass each.

Sections of pipeline.yaml are named after them, keys are field names.
A flag wins over the file, the file over the default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from wsipipe.errors import check


def option(default: Any, help: str, fit: bool = True, group: str = "", metavar: str = "") -> Any:
    """A field with what `--help` shows of it.

    help: one sentence, ending in `; default: ...` where the value "" stands for something else. fit: False for what a
    method uses only once it is fitted. group: the heading that `--help` puts it under. metavar: what stands for the
    value, such as 0..1 or NAME (default: the unit in the name, or N for a whole number).
    """
    return dataclasses.field(default=default, metadata={"help": help, "fit": fit, "group": group, "metavar": metavar})


def fitted_with(params: Any) -> dict[str, Any]:
    """The parameters of a method that its fit depends on."""
    return {f.name: getattr(params, f.name) for f in dataclasses.fields(params) if f.metadata.get("fit", True)}


PATIENCE = "early-stopping patience in checks (20 per run), active in the second half; 0: no early stopping"


@dataclass(frozen=True)
class TileConfig:
    """Slides to stores."""

    mpp: float = option(0.5, "working resolution in um/px; a slide level within 1 % is used as it is", group="Patches")
    patch_px: int = option(256, "side of a patch in px at the working resolution", group="Patches")
    stride_px: int = option(0, "step between patches in px; 0: the patch size (no overlap)", group="Patches")
    min_tissue: float = option(
        0.25, "least share of tissue (0..1) in a patch that is kept", group="Patches", metavar="0..1"
    )
    codec: str = option("jpeg", "pixel codec: jpeg (small) or zstd (lossless)", group="Pixels", metavar="jpeg|zstd")
    quality: int = option(90, "JPEG quality, 1..100", group="Pixels", metavar="1..100")
    mpp_override: float = option(
        0.0,
        "um/px of level 0 for slides that do not say it (or say it wrong); 0: trust the slide",
        group="What goes in",
    )
    tissue_mpp: float = option(8.0, "um/px at which tissue is told from glass", group="Tissue")
    min_area_um2: float = option(
        10_000.0, "tissue pieces and holes smaller than this (um2) are ignored", group="Tissue"
    )
    qc: bool = option(True, "leave out pen marks and what is out of focus", group="Tissue")
    tissue: str = option(
        "",
        "masks that replace the tissue finder: folder with <slide_id>.png, .tif or .geojson, or a pattern",
        group="What goes in",
        metavar="FOLDER",
    )
    max_corrupt: float = option(
        0.05,
        "share (0..1) of a slide's tiles that may be unreadable before the slide fails",
        group="Pixels",
        metavar="0..1",
    )
    fast_resample: bool = option(
        False, "let libjpeg shrink tiles while it decodes them: faster, not the exact mean", group="Pixels"
    )
    qc_image: bool = option(
        False, "write the picture that a person checks the tissue by: runs/tile/<slide_id>.png", group="Tissue"
    )
    normalise_stain: bool = option(
        False,
        "read every slide with its mean optical density over tissue brought to one reference; pixels stay",
        group="Pixels",
    )

    def __post_init__(self) -> None:
        check(0 <= self.max_corrupt <= 1, f"tile.max_corrupt: {self.max_corrupt} is not a share between 0 and 1")
        check(0.05 <= self.mpp <= 20, f"tile.mpp: {self.mpp} um/px is outside 0.05..20")
        check(self.patch_px >= 16, f"tile.patch_px: {self.patch_px} is too small; 16 at least")
        check(self.stride_px >= 0, f"tile.stride_px: {self.stride_px} is negative; 0 means the patch size")
        check(0 <= self.min_tissue <= 1, f"tile.min_tissue: {self.min_tissue} is not a share between 0 and 1")
        check(self.codec in ("jpeg", "zstd"), f"tile.codec: {self.codec!r} is not jpeg or zstd")
        check(self.stride_px <= self.patch_px, f"tile.stride_px: {self.stride_px} leaves gaps between patches")
        check(0 < self.tissue_mpp <= 64, f"tile.tissue_mpp: {self.tissue_mpp} um/px is outside 0..64")
        check(self.min_area_um2 >= 0, f"tile.min_area_um2: {self.min_area_um2} is negative")
        check(1 <= self.quality <= 100, f"tile.quality: {self.quality} is outside 1..100")
        override_ok = self.mpp_override == 0 or 0.05 <= self.mpp_override <= 20
        check(override_ok, f"tile.mpp_override: {self.mpp_override} um/px is outside 0.05..20")


@dataclass(frozen=True)
class PseudolabelConfig:
    """Weak labels to patch-level masks. Parameters of a method have their own section, such as `camel:`."""

    labels: str = option(
        "labels.csv",
        "CSV with slide_id, label and optionally x,y,width,height,patient_id,split",
        group="What goes in",
        metavar="CSV",
    )
    method: str = option("camel", "how instances are scored; several as a,b, or all", group="Method", metavar="NAME")
    refine: str = option(
        "",
        "refinement of the scores by the slide's pixels, or none; default: the method's own",
        group="Method",
        metavar="NAME",
    )
    refine_stride_px: int = option(
        8, "largest side, in working px, of the cells that a refinement works on", group="Method"
    )
    name: str = option(
        "",
        "name of the masks in the stores and of the run folder; default: the method",
        group="What comes out",
        metavar="NAME",
    )
    classes: tuple[str, ...] = option(
        (), "class names in mask order; default: those in the labels", group="What goes in", metavar="NAME"
    )
    encoder: str = option(
        "",
        "timm name of the instance encoder; default: that of --weights, else resnet18_half",
        group="Encoder",
        metavar="NAME",
    )
    weights: str = option(
        "",
        "encoder weights: a checkpoint of `wsipipe pretrain`, safetensors, or a PyTorch state dict",
        group="Encoder",
        metavar="PATH",
    )
    pretrain: bool = option(
        True,
        "pretrain the encoder by self-supervision on the slides' own patches, unless it has weights",
        group="Encoder",
    )
    self_train: bool = option(
        True, "add one round of self-training on confident predictions of the method", group="Method"
    )

    def __post_init__(self) -> None:
        check(self.refine_stride_px >= 1, f"pseudolabel.refine_stride_px: {self.refine_stride_px} is below 1")


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervision on the slides' own patches; inside `pseudolabel` the encoder, labels and lattice are its own."""

    name: str = option(
        "pretrain", "name of the run folder that gets the encoder", group="What comes out", metavar="NAME"
    )
    method: str = option("vicreg", "vicreg, simclr, byol, or dino (wants a GPU)", group="Method", metavar="NAME")
    encoder: str = option(
        "resnet18_half", "timm name of the encoder; it starts from scratch", group="Method", metavar="NAME"
    )
    labels: str = option(
        "",
        "CSV with slide_id and split: slides of another split than train are left out",
        group="What goes in",
        metavar="CSV",
    )
    steps: int = option(800, "most training steps", group="Training")
    batch: int = option(128, "patches in a step, each seen twice", group="Training")
    lr: float = option(0.0, "highest learning rate; 0: that of the method", group="Training", metavar="RATE")
    input_px: int = option(64, "side of the encoder's input in its own px", group="Method")
    shrink: int = option(2, "working px per input px", group="Method")
    stain_jitter: float = option(0.4, "strength of the stain jitter; 0: none", group="Training", metavar="0..1")
    patience: int = option(5, PATIENCE, group="Training")

    def __post_init__(self) -> None:
        known = ("vicreg", "simclr", "byol", "dino")
        check(self.method in known, f"pretrain.method: {self.method!r} is not one of {', '.join(known)}")
        check(self.steps >= 1, f"pretrain.steps: {self.steps} is below 1")
        check(self.batch >= 2, f"pretrain.batch: {self.batch} is below 2")
        check(self.lr >= 0, f"pretrain.lr: {self.lr} is negative")
        check(self.input_px >= 16, f"pretrain.input_px: {self.input_px} is below 16")
        check(self.shrink >= 1, f"pretrain.shrink: {self.shrink} is below 1")
        check(0 <= self.stain_jitter <= 1, f"pretrain.stain_jitter: {self.stain_jitter} is outside 0..1")
        check(self.patience >= 0, f"pretrain.patience: {self.patience} is negative; 0 means never to stop early")


@dataclass(frozen=True)
class TrainConfig:
    """Masks to a trained network."""

    masks: str = option(
        "camel", "name of the masks to train on: labels/NAME of the stores", group="What goes in", metavar="NAME"
    )
    labels: str = option(
        "",
        "CSV with slide_id and split: train on its train rows; default: the split that the masks record",
        group="What goes in",
        metavar="CSV",
    )
    name: str = option(
        "",
        "name of the maps in the stores and of the run folder; default: the architecture",
        group="What comes out",
        metavar="NAME",
    )
    architecture: str = option("unet", "segmentation-models-pytorch architecture", group="Network", metavar="NAME")
    encoder: str = option(
        "", "timm name of the encoder; default: that of --weights, else resnet18_half", group="Network", metavar="NAME"
    )
    weights: str = option(
        "",
        "initial encoder weights; default: those of the fit that made the masks, if its encoder is the same",
        group="Network",
        metavar="PATH",
    )
    steps: int = option(900, "training steps", group="Training")
    batch: int = option(8, "patches per step, over all processes of torchrun", group="Training")
    lr: float = option(1e-3, "peak learning rate", group="Training", metavar="RATE")
    ema: bool = option(
        True, "keep the exponential moving average of the weights, not the last weights", group="Training"
    )
    validation: float = option(
        0.0,
        "fraction of patients (or slides) held out for early stopping; 0: none",
        group="Training",
        metavar="0..0.5",
    )
    patience: int = option(5, PATIENCE, group="Training")
    tensorboard: bool = option(
        False, "also write a TensorBoard log (needs wsipipe[tensorboard])", group="Training", fit=False
    )
    gce_q: float = option(
        0.0,
        "q of generalised cross-entropy: 0 = cross-entropy, 1 = MAE; its authors use 0.7",
        group="Noisy masks",
        metavar="0..1",
    )
    self_training_rounds: int = option(
        0, "rounds of self-training after the first: the averaged network labels ignored pixels", group="Noisy masks"
    )
    teacher_threshold: float = option(
        0.9, "probability from which the averaged network's label is used", group="Noisy masks", metavar="0.5..1"
    )
    border_px: int = option(
        0,
        "px on each side of mask borders that are ignored; half an instance suits coarse masks",
        group="Noisy masks",
    )
    max_zoom: float = option(
        1.2, "largest random enlargement or reduction; 1: none", group="Augmentation", metavar="1..2"
    )
    mosaic_prob: float = option(
        0.0,
        "fraction of images built as 2 x 2 mosaics of single-class quarters",
        group="Augmentation",
        metavar="0..1",
    )

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"segment.steps: {self.steps} is below 1")
        check(self.batch >= 2, f"segment.batch: {self.batch} is below 2")
        limits = {
            "gce_q": (0, 1),
            "mosaic_prob": (0, 1),
            "validation": (0, 0.5),
            "teacher_threshold": (0.5, 1),
            "max_zoom": (1, 2),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            check(low <= value <= high, f"segment.{name}: {value} is outside {low}..{high}")
        for name in ("self_training_rounds", "patience", "border_px"):
            check(getattr(self, name) >= 0, f"segment.{name}: {getattr(self, name)} is negative; 0 means none")
        check(
            self.self_training_rounds == 0 or self.ema, "segment.self_training_rounds: needs segment.ema, the teacher"
        )


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
    """Maps against truth."""

    masks: str = option(
        "unet",
        "name of the masks or maps to evaluate, labels/NAME of the stores; with its scores, if there are any",
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
        "CSV with slide_id and label, split, patient_id; default: that of pseudolabel, if it is there",
        group="What goes in",
        metavar="CSV",
    )
    truth_map: str = option(
        "",
        "what mask values or annotation names mean, e.g. 0=ignore,1=0,2=tumour or _0=tumour,_1=tumour,_2=0 (later "
        "covers earlier); `outside` is what lies in no annotation; default: class indices or names",
        group="What goes in",
        metavar="MAP",
    )
    split: str = option(
        "", "judge only the slides of this split; default: all that have a truth", group="What goes in", metavar="NAME"
    )
    glass: str = option(
        "given",
        "pixels that the tissue mask calls glass: given (class 0 on both sides), scored as drawn, or ignored",
        group="Scoring",
        metavar="given|scored|ignored",
    )
    detections: str = option(
        "",
        "CSV slide,class,x_px0,y_px0,p for FROC; default: the maxima of the scores",
        group="What goes in",
        metavar="CSV",
    )
    slide_top: float = option(
        0.01,
        "share (0..1) of a slide's tissue whose mean score, the highest, is that of the slide; 0: the maximum",
        group="Scoring",
        metavar="0..1",
    )
    nms_um: float = option(150.0, "um within which only the highest score is a detection", group="Scoring")

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
        ("ome-tiff", "geojson", "overlay", "areas"),
        "ome-tiff, geojson (QuPath), dicom-seg, overlay (PNG), areas (CSV)",
        group="What comes out",
        metavar="NAME",
    )
    folder: str = option(
        "export", "where the files go: <folder>/<masks>/<slide_id>.*", group="What comes out", metavar="FOLDER"
    )
    verify: bool = option(False, "read every file back and compare it with the mask at level 0", group="What comes out")
    level: int = option(0, "GeoJSON: level of the mask; 0 is exact, each further one 4 times coarser", group="GeoJSON")
    tolerance_um: float = option(
        0.0, "GeoJSON: um by which outlines may deviate to have fewer vertices; 0: exact", group="GeoJSON"
    )
    min_area_um2: float = option(0.0, "GeoJSON: pieces smaller than this (um2) are left out", group="GeoJSON")
    overlay_px: int = option(1600, "overlay: longer side of the picture in px", group="Overlay")
    dicom_kind: str = option(
        "binary",
        "DICOM SEG: binary (what viewers read today) or labelmap",
        group="DICOM SEG",
        metavar="binary|labelmap",
    )
    dicom_source: str = option(
        "",
        "DICOM SEG: folder of the slide as DICOM, {slide_id} in it; default: what the store was tiled from",
        group="DICOM SEG",
        metavar="FOLDER",
    )
    dicom_codes: tuple[str, ...] = option(
        (), "DICOM SEG: what a class is, as CLASS=CODE^SCHEME^MEANING", group="DICOM SEG", metavar="CLASS=CODE"
    )

    def __post_init__(self) -> None:
        check(self.overlay_px >= 16, f"export.overlay_px: {self.overlay_px} is below 16")
        exact = self.level == 0 and self.tolerance_um == 0 and self.min_area_um2 == 0
        check(
            not (self.verify and "geojson" in self.formats and not exact),
            "export.verify: only an exact GeoJSON can be compared with the mask; leave level, tolerance and least area "
            "at 0, or verify the other formats alone",
        )


@dataclass(frozen=True)
class RunConfig:
    """What all stages share."""

    slides: tuple[str, ...] = option(
        (), "slides, folders of slides or patterns, for `wsipipe run`", group="Run", metavar="SLIDE"
    )
    stores: str = option("stores", "folder of the stores", group="Run", metavar="FOLDER")
    runs: str = option("runs", "folder of fits, checkpoints, ledgers and figures", group="Run", metavar="FOLDER")
    device: str = option("auto", "auto, cpu or cuda:N", group="Run", metavar="NAME")
    workers: int = option(0, "threads that read and write pixels; 0: one a processor", group="Run")
    seed: int = option(0, "seed of everything random", group="Run")
    max_failed: str = option(
        "0", "slides that may fail before the exit code is 1: N or P%", group="Run", metavar="N|P%"
    )
    dask: str = option(
        "",
        "dask scheduler that tiling runs on, tcp://host:port, or a number of local processes",
        group="Run",
        metavar="ADDRESS|N",
    )

    def __post_init__(self) -> None:
        number = self.max_failed.removesuffix("%")
        check(
            number.isdecimal(), f"run.max_failed: {self.max_failed!r} is neither a number nor a percentage such as 5%"
        )
        check(self.workers >= 0, f"run.workers: {self.workers} is negative; 0 means one a processor")


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
