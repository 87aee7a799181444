"""A procedural H&E-like cohort for the demonstration: slide files, weak labels, and the pixel truth."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.io import imsave

from wsipipe.demo.drawing import GLASS, TUMOUR, draw_slide
from wsipipe.runtime.executor import thread_count

CLASSES = ("tumour",)
COLUMNS = ("slide_id", "label", "x", "y", "width", "height", "patient_id", "split")
MIN_TISSUE_SHARE = 0.25  # a grid patch with less tissue gets no label row
NOTICED_SHARE = 0.03  # a reader calls a patch tumour above this share of it
LEVEL_FACTORS = (4, 16)
DRAWN_AT_ONCE = 4  # slides; each needs about 120 bytes per pixel while it is drawn


@dataclass(frozen=True)
class CohortConfig:
    """Size and seed of a cohort; `size_px0` is (width, height)."""

    train_slides: int = 10
    test_slides: int = 4
    size_px0: tuple[int, int] = (2304, 2048)
    mpp0: float = 0.5
    patch_px0: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Cohort:
    """Where a written cohort lies."""

    slides: tuple[Path, ...]
    labels_csv: Path
    truth_dir: Path
    classes: tuple[str, ...]


def _shrink(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Box average uint8 [h // factor, w // factor, 3]."""
    h, w = rgb.shape[0] // factor, rgb.shape[1] // factor
    blocks = rgb[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return np.asarray(np.rint(blocks.mean((1, 3), dtype=np.float32)), np.uint8)


def _write_svs(path: Path, rgb: NDArray[np.uint8], mpp0: float) -> None:
    """Write rgb uint8 [h, w, 3] as an Aperio-like pyramid that OpenSlide opens with its resolution."""
    size = f"{rgb.shape[1]}x{rgb.shape[0]}"
    about = f"Aperio Image Library v12.0.15\r\n{size} [0,0 {size}] (256x256) JPEG/RGB Q=87"
    scale = f"|AppMag = {round(10 / mpp0)}|MPP = {mpp0}"
    jpeg: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 87, "outcolorspace": "ycbcr"}}
    jpeg |= {"photometric": "rgb", "subsampling": (2, 2), "metadata": None, "software": False}
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        tiff.write(rgb, tile=(256, 256), description=about + scale, **jpeg)
        # The Aperio layout keeps a striped thumbnail right behind the full image; the tiled levels follow it.
        tiff.write(_shrink(rgb, 8), rowsperstrip=16, description=about, **jpeg)
        for factor in LEVEL_FACTORS:
            tiff.write(_shrink(rgb, factor), tile=(256, 256), description=about, **jpeg)


def _label_rows(slide_id: str, split: str, patient: str, truth: NDArray[np.uint8], patch_px0: int) -> list[list[str]]:
    """Rows of labels.csv: one per whole tissue patch of a train slide, one in all for a test slide."""
    if split == "test":
        return [[slide_id, "tumour" if (truth == TUMOUR).any() else "", "", "", "", "", patient, split]]
    rows = []
    for y in range(0, truth.shape[0] - patch_px0 + 1, patch_px0):
        for x in range(0, truth.shape[1] - patch_px0 + 1, patch_px0):
            patch = truth[y : y + patch_px0, x : x + patch_px0]
            if (patch != GLASS).mean() >= MIN_TISSUE_SHARE:
                label = "tumour" if (patch == TUMOUR).mean() > NOTICED_SHARE else ""
                rows.append([slide_id, label, *map(str, (x, y, patch_px0, patch_px0)), patient, split])
    return rows


def _plan(config: CohortConfig) -> list[tuple[str, str, str, int]]:
    """Slide id, split, patient id and number of lesions of every slide; about a third have none."""
    rng = np.random.default_rng(config.seed)
    plan: list[tuple[str, str, str, int]] = []
    patient = 0
    for split, count in (("train", config.train_slides), ("test", config.test_slides)):
        free = set(rng.permutation(count)[: round(count / 3)].tolist())
        for k in range(count):
            # A patient keeps the next slide with even odds, up to two, and never across the split.
            second = k > 0 and plan[-1][2] != (plan[-2][2] if k > 1 else "") and rng.random() < 0.5
            patient += not second
            plan.append((f"{split}_{k:02d}", split, f"P{patient:02d}", 0 if k in free else int(rng.integers(1, 5))))
    return plan


def make_cohort(
    folder: Path,
    config: CohortConfig = CohortConfig(),
    on_done: Callable[[str, int, int], None] | None = None,
    truth_dir: Path | None = None,
) -> Cohort:
    """Write slides/<id>.svs and labels.csv under `folder`, and <id>.png (as in `draw_slide`) under `truth_dir`.

    Train slides carry patch labels, test slides one slide label; `on_done(slide_id, done, total)` follows each slide.
    """
    slides, truth_dir = folder / "slides", truth_dir or folder / "truth"
    slides.mkdir(parents=True, exist_ok=True)
    truth_dir.mkdir(parents=True, exist_ok=True)
    plan = _plan(config)

    def write(k: int) -> list[list[str]]:
        """Draw and write slide k of the plan; its rows of labels.csv."""
        slide_id, split, patient, lesions = plan[k]
        rgb, truth = draw_slide(config.size_px0, lesions, np.random.default_rng([config.seed, k]))
        _write_svs(slides / f"{slide_id}.svs", rgb, config.mpp0)
        imsave(truth_dir / f"{slide_id}.png", truth, check_contrast=False)
        return _label_rows(slide_id, split, patient, truth, config.patch_px0)

    rows: list[list[str]] = []
    with ThreadPoolExecutor(min(thread_count(0), DRAWN_AT_ONCE)) as pool:
        for k, own in enumerate(pool.map(write, range(len(plan)))):
            rows += own
            if on_done:
                on_done(plan[k][0], k + 1, len(plan))
    labels_csv = folder / "labels.csv"
    with labels_csv.open("w", newline="") as file:
        csv.writer(file).writerows([list(COLUMNS), *rows])
    return Cohort(tuple(slides / f"{row[0]}.svs" for row in plan), labels_csv, truth_dir, CLASSES)
