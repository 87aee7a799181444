"""Options of the stages that train networks: pretrain, pseudolabel and segment."""

from __future__ import annotations

from dataclasses import dataclass

from wsipipe.config.option import option
from wsipipe.errors import check

PATIENCE = "early-stopping patience in checks (20 per run), active in the second half; 0: no early stopping"


@dataclass(frozen=True)
class PseudolabelConfig:
    """Weak labels to patch-level masks. Parameters of a method have their own section, such as `camel:`."""

    labels: str = option(
        "labels.csv",
        "CSV with slide_id, label and optionally x,y,width,height,patient_id,split",
        group="What goes in",
        metavar="CSV",
    )
    method: str = option(
        "camel", "method that scores instances; several as a,b, or all", group="Method", metavar="NAME"
    )
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
    """Self-supervision on the slides' own patches; `pseudolabel` uses its own encoder, labels and instance grid."""

    name: str = option("pretrain", "name of the encoder's run folder", group="What comes out", metavar="NAME")
    method: str = option(
        "vicreg", "objective: vicreg, simclr, byol, or dino (needs a GPU)", group="Method", metavar="NAME"
    )
    encoder: str = option(
        "resnet18_half", "timm name of the encoder; it starts from scratch", group="Method", metavar="NAME"
    )
    labels: str = option(
        "",
        "CSV with slide_id and split: slides of other splits than train are left out",
        group="What goes in",
        metavar="CSV",
    )
    steps: int = option(800, "maximum number of training steps", group="Training")
    batch: int = option(128, "patches per step, two views of each", group="Training")
    lr: float = option(0.0, "peak learning rate; 0: that of the objective", group="Training", metavar="RATE")
    input_px: int = option(64, "side of the encoder's input, in its own px", group="Method")
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
