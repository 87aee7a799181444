"""What IRNet's walk adds to the class maps that it starts from, by region and by boundary.

    python -m benchmarks.quality.own_cam --weak METHODS-WORK/glas-quick/fold1/weak --arm irnet \
        --truth 'MASKS/{slide_id}.png'

Works on a fold of benchmarks/quality/methods.py whose fit exists: paints the slides again by the same fit, without the
walk (`labels/irnet-s0-cam`; the same rules, its own scale of the maps), then judges both. Truth is an image of the
size of the store's level 0, `--positive` its value of the class. A boundary pixel is found where the other mask has
one within `--tolerance-px`; F is of all pixels of all slides of a split.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from wsipipe.config.options import PseudolabelConfig, RunConfig
from wsipipe.config.yaml import build, read_yaml
from wsipipe.geometry import Window
from wsipipe.pseudolabel.fit import Fit
from wsipipe.pseudolabel.inputs import Inputs
from wsipipe.pseudolabel.labeller import SlideLabeller
from wsipipe.pseudolabel.methods.irnet.network import IrNet
from wsipipe.pseudolabel.methods.irnet.window_seeds import mean_maxima
from wsipipe.pseudolabel.options import PseudolabelOptions
from wsipipe.pseudolabel.shared.walk import Walk
from wsipipe.pseudolabel.shared.windows import draw_windows
from wsipipe.runtime.context import RunContext
from wsipipe.store import SlideStore

Mask = NDArray[np.bool_]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", type=Path, required=True, help="folder of the weak methods of a fold")
    parser.add_argument("--arm", default="irnet", help="an arm of irnet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", required=True, help="pattern with {slide_id}, absolute")
    parser.add_argument("--positive", type=int, default=2, help="value of the class in the truth")
    parser.add_argument("--tolerance-px", type=float, default=10.0)
    args = parser.parse_args()
    os.chdir(args.weak)
    fit = fit_of(args.arm, args.seed)
    walked, plain = fit.inputs.name, f"{fit.inputs.name}-cam"
    paint_without_walk(fit, plain)
    print("| slides | masks | Dice | mIoU | boundary F |")
    print("| --- | --- | --- | --- | --- |")
    targets, train_ids = fit.inputs.slides.targets, set(fit.inputs.slides.train_ids)
    for split, stores in (
        ("train", [s for s in targets if s.slide_id in train_ids]),
        ("test", [s for s in targets if s.slide_id not in train_ids]),
    ):
        for name in (plain, walked):
            figures = judged(stores, name, args.truth, args.positive, args.tolerance_px)
            print(f"| {split} | {name} | " + " | ".join(f"{f:.3f}" for f in figures) + " |")


def fit_of(arm: str, seed: int) -> Fit:
    """The fit of the arm, with the inputs that it had."""
    section = read_yaml(Path(f"{arm}.yaml"))["pseudolabel"]
    sections = {"irnet": section.pop("irnet", {})}
    given = {**section, "name": f"{arm}-s{seed}", "weights": f"runs/encoder-s{seed}"}
    options = PseudolabelOptions(build(PseudolabelConfig, given, "pseudolabel"), sections)
    context = RunContext(RunConfig(seed=seed), overwrite=True)
    return Fit(Inputs.resolve(sorted(Path("stores").glob("*.zarr")), options, context), context)


def paint_without_walk(fit: Fit, name: str) -> None:
    """`labels/<name>` of every store by the fit, whose maps stay where they are, on a scale of their own."""

    def stays(model: IrNet, maps: Tensor, x: Tensor, tissue: Tensor, walk: Walk) -> Tensor:
        return maps * tissue[:, None]

    model = fit.model()
    assert isinstance(model, IrNet)
    inputs, params = replace(fit.inputs, name=name), fit.inputs.params
    windows = draw_windows(inputs.bags, inputs.instance_grid, params.windows, params.max_windows, inputs.compute.seed)
    labeller = SlideLabeller.of(replace(fit, inputs=inputs))
    published, IrNet.walked = IrNet.walked, stays  # type: ignore[method-assign]
    try:
        model.top.copy_(mean_maxima(model, windows, params))
        for store in inputs.slides.targets:
            labeller.label(model, store)
    finally:
        IrNet.walked = published  # type: ignore[method-assign]


def judged(stores: list[SlideStore], name: str, truth: str, positive: int, tolerance_px: float) -> tuple[float, ...]:
    """Dice, mIoU and boundary F of the masks, over all pixels of the stores."""
    both = only_mask = only_truth = neither = 0
    found, of_mask, met, of_truth = 0, 0, 0, 0
    for store in stores:
        mask: Mask = store.labels(name).read(Window(0, 0, *store.grid.size_px)) == 1
        true: Mask = np.asarray(Image.open(truth.format(slide_id=store.slide_id))) == positive
        both += int((mask & true).sum())
        only_mask += int((mask & ~true).sum())
        only_truth += int((~mask & true).sum())
        neither += int((~mask & ~true).sum())
        edge, true_edge = boundary(mask), boundary(true)
        found += near(edge, true_edge, tolerance_px)
        met += near(true_edge, edge, tolerance_px)
        of_mask += int(edge.sum())
        of_truth += int(true_edge.sum())
    wrong = only_mask + only_truth
    iou = (both / max(both + wrong, 1), neither / max(neither + wrong, 1))
    precision, recall = found / max(of_mask, 1), met / max(of_truth, 1)
    f = 2 * precision * recall / max(precision + recall, 1e-9)
    return 2 * both / max(2 * both + wrong, 1), sum(iou) / 2, f


def boundary(mask: Mask) -> Mask:
    """Pixels of the mask that touch what is not; the edge of the image is no boundary."""
    return mask & ~binary_erosion(mask, border_value=1)


def near(edge: Mask, other: Mask, tolerance_px: float) -> int:
    """Number of pixels of an edge that lie no further than this from the other."""
    if not other.any():
        return 0
    return int((distance_transform_edt(~other)[edge] <= tolerance_px).sum())


if __name__ == "__main__":
    main()
