"""What self-supervision gives: frozen encoders, pretrained and not, under the same head fitted on slide labels.

    python benchmarks/encoders.py --stores MADE/stores --labels MADE/labels.csv --truth 'MADE/{slide_id}.truth.png'

For each seed, `wsipipe pretrain` makes an encoder of the training slides, and the same network is taken as the seed
makes it. Frozen, both give the features of the instances of every slide; a linear head is fitted by CAMEL2's prevalence
rule on the labels of the training slides. Judged on the test slides, by the area under the ROC curve of their
instances: those with half or more of their pixels of the class, against those with a twentieth or less. What was made
is not made again.
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
from torch import Tensor, nn

from wsipipe.labels import WeakLabel, read_labels
from wsipipe.nn.encoders import chosen_encoder, create_encoder
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.embed import embed
from wsipipe.pseudolabel.lattice import Lattice
from wsipipe.pseudolabel.parts.mil import prevalence
from wsipipe.pseudolabel.parts.selectors import score_features, train_selector
from wsipipe.runtime import Compute
from wsipipe.slides.mask import read_mask
from wsipipe.store import SlideStore

LATTICE = Lattice(64, 128, 2)
SHARE = 0.1
"""Of the instances of a positive slide, those that are surely positive."""

HEAD = Schedule(400, 3e-3, weight_decay=1e-2)


def main() -> None:
    """Command line."""
    args = _arguments()
    table = read_labels(args.labels)
    stores = {p.name.removesuffix(".zarr"): SlideStore(p) for p in sorted(args.stores.glob("*.zarr"))}
    rows = [row for row in table.rows if row.slide_id in stores]
    bags, _ = make_bags(table, rows, stores, LATTICE, 0.5)
    split = {row.slide_id: row.split for row in rows}
    truth = {b.id: class_share(b, args) for b in bags if split[b.id] == "test"}
    errors: dict[str, list[float]] = {"pretrained": [], "from scratch": []}
    for seed in range(args.seeds):
        made = pretrained(args, seed)
        for name, weights in (("pretrained", made), ("from scratch", None)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                kind, found = chosen_encoder(args.encoder, str(weights or ""))
                encoder = create_encoder(kind, found)
            auc = instance_auc(encoder, bags, split, truth, seed)
            errors[name].append(1 - auc)
            print(f"seed {seed}, {name}: instance AUC {auc:.4f}", file=sys.stderr, flush=True)
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
    parser.add_argument("--stain", type=float, default=0.4, help="strength of the stain jitter of pretraining")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--work", type=Path, default=Path("encoders-work"), help="folder for the encoders")
    return parser.parse_args()


def pretrained(args: argparse.Namespace, seed: int) -> Path:
    """The run folder of the encoder of a seed, pretrained on the training slides."""
    name = f"{args.encoder}-{args.method}-{args.steps}-{args.stain}-s{seed}"
    command = [
        sys.executable,
        "-c",
        "from wsipipe.cli import main; main()",
        "pretrain",
        *map(str, args.stores.glob("*.zarr")),
    ]
    command += ["--labels", str(args.labels), "--encoder", args.encoder, "--method", args.method, "--name", name]
    command += ["--steps", str(args.steps), "--batch", str(args.batch), "--stain", str(args.stain), "--seed", str(seed), "--device", "cpu"]
    subprocess.run([*command, "--runs", str(args.work), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return Path(args.work) / name


def class_share(bag: Bag, args: argparse.Namespace) -> NDArray[np.float64]:
    """The share of the class in every instance of a bag, by the truth: float [M]."""
    of_class = read_mask(Path(args.truth.replace("{slide_id}", bag.id)), bag.store.grid) == args.value
    m = LATTICE.instance_px
    return np.array([of_class[y : y + m, x : x + m].mean() for x, y in bag.xy_px])


def instance_auc(
    encoder: nn.Module, bags: Sequence[Bag], split: dict[str, str], truth: dict[str, NDArray[np.float64]], seed: int
) -> float:
    """Area under the ROC curve of the test slides' instances, by a head on the frozen features of `encoder`."""
    compute = Compute(torch.device("cpu"), seed)
    features: list[Tensor] = embed(encoder.eval(), bags, LATTICE, compute)
    train = [i for i, b in enumerate(bags) if split[b.id] == "train"]
    labels = torch.tensor([bags[i].label for i in train])
    rule = partial(prevalence, ratio=SHARE)
    head = train_selector([features[i] for i in train], labels, [rule] * len(train), HEAD, compute)
    test = [i for i, b in enumerate(bags) if split[b.id] == "test"]
    scores = torch.cat(score_features(head, [features[i] for i in test]))[:, 0].numpy()
    share = np.concatenate([truth[bags[i].id] for i in test])
    positive, negative = scores[share >= 0.5], scores[share <= 0.05]
    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def page(args: argparse.Namespace, rows: Sequence[WeakLabel], errors: dict[str, list[float]]) -> list[str]:
    """The table as markdown."""
    count = {s: sum(row.split == s for row in rows) for s in ("train", "test")}
    lines = [
        f"{args.encoder}, {args.method}, {args.steps} steps of {args.batch}, stain jitter {args.stain}; {count['train']} training slides, "
        f"{count['test']} test slides",
        "",
        "| seed | 1 - AUC from scratch | 1 - AUC pretrained |",
        "| --- | --- | --- |",
    ]
    scratch, made = errors["from scratch"], errors["pretrained"]
    lines += [f"| {i} | {a:.3f} | {b:.3f} |" for i, (a, b) in enumerate(zip(scratch, made, strict=True))]
    cut = 1 - mean(made) / mean(scratch)
    return [*lines, f"| mean | {mean(scratch):.3f} | {mean(made):.3f}, cut by {cut:.0%} |"]


if __name__ == "__main__":
    main()
