"""What self-supervision gives: frozen encoders, pretrained and not, under the same head fitted on slide labels.

    python -m benchmarks.quality.encoders --stores MADE/stores --labels MADE/labels.csv \
        --truth 'MADE/{slide_id}.truth.png'

For each seed, `wsipipe pretrain` makes an encoder of the training slides, and the same network is taken as the seed
makes it. Frozen, both give the features of the instances of every slide; a linear head is fitted by CAMEL2's prevalence
rule on the labels of the training slides, and another, to tell what the features hold from what such labels bring out
of it, on the truth of their instances. Judged on the test slides, by the area under the ROC curve of their instances:
those with half or more of their pixels of the class, against those with a twentieth or less. What was made is not
made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from wsipipe.annotations.mask_image import read_mask
from wsipipe.labels import WeakLabel, read_labels
from wsipipe.nn.encoders import chosen_encoder, create_encoder
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.features import embed
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods.camel.rules import prevalence
from wsipipe.pseudolabel.methods.camel.selectors import score_features, train_selector
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

GRID = InstanceGrid(64, 128, 2)
SHARE = 0.1
"""Of the instances of a positive slide, those that are surely positive."""

HEAD = Schedule(400, 3e-3, weight_decay=1e-2)
HEADS = ("slide labels", "truth")
ENCODERS = ("from scratch", "pretrained")


def main() -> None:
    """Command line."""
    args = _arguments()
    table = read_labels(args.labels)
    stores = {p.name.removesuffix(".zarr"): SlideStore(p) for p in sorted(args.stores.glob("*.zarr"))}
    rows = [row for row in table.rows if row.slide_id in stores]
    bags, _ = make_bags(table, rows, stores, GRID, 0.5)
    split = {row.slide_id: row.split for row in rows}
    truth = [class_share(b, args) for b in bags]
    errors: dict[tuple[str, str], list[float]] = {(head, name): [] for head in HEADS for name in ENCODERS}
    for seed in range(args.seeds):
        made = pretrained(args, seed)
        for name, weights in zip(ENCODERS, (None, made), strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                kind, found = chosen_encoder(args.encoder, str(weights or ""))
                encoder = create_encoder(kind, found)
            features = embed(encoder.eval(), bags, GRID, ComputeContext(torch.device("cpu"), seed))
            for head in HEADS:
                auc = instance_auc(head, features, bags, split, truth, seed)
                errors[head, name].append(1 - auc)
                print(f"seed {seed}, {name}, head by {head}: instance AUC {auc:.4f}", file=sys.stderr, flush=True)
    print("\n".join(page(args, rows, errors)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=Path, required=True, help="folder of tiled slides")
    parser.add_argument("--labels", type=Path, required=True, help="CSV with slide_id, label and split")
    parser.add_argument("--truth", required=True, help="mask of a slide, with {slide_id}; used at the end only")
    parser.add_argument("--value", type=int, default=2, help="value of the class in the truth")
    parser.add_argument("--encoder", default="resnet18_half", help="timm name")
    parser.add_argument("--method", default="vicreg", help="of pretraining")
    parser.add_argument("--steps", type=int, default=250, help="of pretraining")
    parser.add_argument("--batch", type=int, default=64, help="of pretraining")
    parser.add_argument("--stain-jitter", type=float, default=0.4, help="strength of the stain jitter of pretraining")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--work", type=Path, default=Path("encoders-work"), help="folder for the encoders")
    return parser.parse_args()


def pretrained(args: argparse.Namespace, seed: int) -> Path:
    """The run folder of the encoder of a seed, pretrained on the training slides."""
    name = f"{args.encoder}-{args.method}-{args.steps}-{args.stain_jitter}-s{seed}"
    wsipipe = [sys.executable, "-c", "from wsipipe.cli import main; main()"]
    command = [*wsipipe, "pretrain", *args.stores.glob("*.zarr"), "--name", name, "--labels", args.labels]
    for option in ("encoder", "method", "steps", "batch", "stain-jitter"):
        command += [f"--{option}", getattr(args, option)]
    command += ["--seed", seed, "--device", "cpu", "--runs", args.work, "--quiet"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return Path(args.work) / name


def class_share(bag: Bag, args: argparse.Namespace) -> NDArray[np.float64]:
    """The share of the class in every instance of a bag, by the truth: float [M]."""
    of_class = read_mask(Path(args.truth.replace("{slide_id}", bag.id)), bag.store.grid) == args.value
    m = GRID.instance_px
    return np.array([of_class[y : y + m, x : x + m].mean() for x, y in bag.xy_px])


def instance_auc(
    head: str,
    features: Sequence[Tensor],
    bags: Sequence[Bag],
    split: dict[str, str],
    truth: Sequence[NDArray[np.float64]],
    seed: int,
) -> float:
    """Area under the ROC curve of the test slides' instances, by a `head` of `HEADS` on features float [M, D]."""
    train, test = ([i for i, b in enumerate(bags) if split[b.id] == s] for s in ("train", "test"))
    if head == "truth":  # all instances of a kind of a slide are a bag, of which all are surely so
        sure = [(features[i][select(truth[i])], y) for i in train for y, select in ((1.0, of_class), (0.0, of_none))]
        known = [(x, y) for x, y in sure if len(x)]
        shown, labels, share = [x for x, _ in known], torch.tensor([[y] for _, y in known]), 1.0
    else:
        shown, labels, share = [features[i] for i in train], torch.tensor([bags[i].label for i in train]), SHARE
    compute = ComputeContext(torch.device("cpu"), seed)
    fitted = train_selector(shown, labels, [partial(prevalence, ratio=share)] * len(shown), HEAD, compute)
    scores = torch.cat(score_features(fitted, [features[i] for i in test]))[:, 0].numpy()
    shares = np.concatenate([truth[i] for i in test])
    positive, negative = scores[of_class(shares)], scores[of_none(shares)]
    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def of_class(share: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which instances count as the class."""
    return share >= 0.5


def of_none(share: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which instances count as none."""
    return share <= 0.05


def page(args: argparse.Namespace, rows: Sequence[WeakLabel], errors: dict[tuple[str, str], list[float]]) -> list[str]:
    """The table as markdown."""
    count = {s: sum(row.split == s for row in rows) for s in ("train", "test")}
    lines = [
        f"{args.encoder}, {args.method}, {args.steps} steps of {args.batch}, stain jitter {args.stain_jitter}; "
        f"1 - AUC of the instances of {count['test']} test slides, {count['train']} training slides",
        "",
        "| seed | " + " | ".join(f"head by {head}, {name}" for head, name in errors) + " |",
        "| --- " * (1 + len(errors)) + "|",
    ]
    for i, row in enumerate(zip(*errors.values(), strict=True)):
        lines.append(f"| {i} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    cells = []
    for head in HEADS:
        scratch, made = (mean(errors[head, name]) for name in ENCODERS)
        cells += [f"{scratch:.3f}", f"{made:.3f}, cut by {1 - made / scratch:.0%}"]
    return [*lines, f"| mean | {' | '.join(cells)} |"]


if __name__ == "__main__":
    main()
