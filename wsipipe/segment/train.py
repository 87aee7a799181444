"""Train a segmentation network on `labels/<name>` of the training stores."""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.config import RunConfig, SegmentConfig, check
from wsipipe.errors import CheckpointError, ConfigError, StoreError
from wsipipe.labels import IGNORE, slide_id_of
from wsipipe.nn.checkpoint import Checkpoint, load_weights_of, maker_of, read_checkpoint, weights_digest, weights_file
from wsipipe.nn.encoders import Statistics, chosen_encoder, expect, load_weights, normalise
from wsipipe.nn.keep import KEEP_S, Keep
from wsipipe.nn.segmenters import create_segmenter, encoder_of
from wsipipe.nn.train import Schedule, fit, fresh
from wsipipe.runtime import Compute, Progress, device, digest
from wsipipe.segment.data import Batches, find_samples
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)

SIDE_MULTIPLE_PX = 32
"""Encoders halve an image five times."""


def train(
    stores: Sequence[SlideStore], config: SegmentConfig, run: RunConfig, progress: Progress, overwrite: bool
) -> Path:
    """Train and save `runs/<name>/model.*`; returns the path of its JSON. The same inputs are not trained twice.

    A training that was killed goes on where its state was last kept, to the same weights.
    """
    chosen = training_stores(stores, config)
    check_side(chosen[0].grid.patch_px)
    classes = _classes(chosen, config.labels)
    folder = Path(run.runs) / (config.name or config.architecture)
    encoder, weights = chosen_encoder(config.encoder, config.weights)
    key = digest(
        [s.attributes("labels", config.labels)["digest"] for s in chosen],
        {k: v for k, v in asdict(config).items() if k not in ("window_px", "overlap", "score_stride_px")},
        run.seed,
        weights_digest(weights),
    )
    path = folder / "model.json"
    if path.exists():
        if read_checkpoint(path).digest == key:
            log.info("%s: trained before on the same masks", path)
            return path
        if not overwrite:
            raise CheckpointError(
                f"{path}: trained on other masks or settings; choose another --name, or replace it with --overwrite"
            )
    samples = find_samples(chosen, config.labels, len(classes))
    log.info("training on %d patches of %d slides, labels/%s", len(samples), len(chosen), config.labels)
    on = device(run.device)
    model = fresh(lambda: create_segmenter(config.architecture, encoder, len(classes) + 1), run.seed)
    statistics = _start_from(model, weights, _fit_of(Path(run.runs) / config.labels, encoder))
    model.to(memory_format=torch.channels_last)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return segmentation_loss(model(normalise(batch[0].to(on))).float(), batch[1].to(on))

    batches = Batches(samples, config.labels, config.batch, run.seed)
    keep = Keep(folder / "training.state", key, KEEP_S)
    fit(model, batches, loss, Schedule(config.steps, config.lr), "train", Compute(on, run.seed, progress), keep=keep)
    grid = chosen[0].grid
    checkpoint = Checkpoint(
        network=config.architecture,
        encoder=encoder,
        classes=classes,
        mpp=sum(grid.mpp) / 2,
        patch_px=grid.patch_px,
        digest=key,
        mean=statistics.mean,
        std=statistics.std,
        settings=asdict(config),
    )
    path = checkpoint.save(folder, model)
    keep.clear()
    return path


def load(path: Path) -> tuple[Checkpoint, nn.Module]:
    """The network of a checkpoint, ready to predict."""
    checkpoint = read_checkpoint(path)
    model = create_segmenter(checkpoint.network, checkpoint.encoder, len(checkpoint.classes) + 1)
    load_weights_of(path, model)
    expect(encoder_of(model), Statistics(checkpoint.mean, checkpoint.std))
    return checkpoint, model.eval()


def check_side(side_px: int) -> None:
    """ConfigError unless a network takes images of this side."""
    check(
        side_px % SIDE_MULTIPLE_PX == 0,
        f"a patch or window of {side_px} px is not a multiple of {SIDE_MULTIPLE_PX} px, which the network needs; "
        "change --window of segment or --patch of tile",
    )


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the pixels that are not 255: logits [B, C, H, W], mask int64 [B, H, W].

    Dice loss: 1 - mean over classes of 2 sum(p y) / (sum(p) + sum(y)), pooled over the batch.
    """
    known = mask != IGNORE
    if not known.any():
        return logits.sum() * 0
    entropy = F.cross_entropy(logits, mask, ignore_index=IGNORE)
    target = F.one_hot(mask.where(known, 0), logits.shape[1]).movedim(-1, 1) * known.unsqueeze(1)
    p = logits.softmax(1) * known.unsqueeze(1)
    overlap, total = (p * target).sum((0, 2, 3)), (p + target).sum((0, 2, 3))
    return entropy + 1 - ((2 * overlap + 1) / (total + 1)).mean()


def training_stores(stores: Sequence[SlideStore], config: SegmentConfig) -> list[SlideStore]:
    """The stores to train on: split `train` of `config.splits` if given, else of the masks' own record, else all.

    Raises ConfigError or StoreError where nothing is left.
    """
    having = [s for s in stores if config.labels in s.names("labels")]
    if not having:
        raise StoreError(
            f"no store has labels/{config.labels}; make it with: wsipipe pseudolabel, or: wsipipe labels import"
        )
    if config.splits:
        wanted = train_ids(Path(config.splits), [s.slide_id for s in stores])
        having = [s for s in having if s.slide_id in wanted]
    else:
        splits = {s.slide_id: s.attributes("labels", config.labels).get("split") for s in having}
        if any(v is not None for v in splits.values()):
            having = [s for s in having if splits[s.slide_id] == "train"]
    having = [s for s in having if len(s.patches().cell)]
    if not having:
        raise ConfigError(f"no training slide has labels/{config.labels} and tissue; check the splits")
    if len({s.grid.patch_px for s in having}) > 1:
        raise ConfigError("the training stores have patches of different sizes; tile them alike")
    return having


def train_ids(path: Path, known: Collection[str]) -> set[str]:
    """Ids of the `known` slides in train rows; the file may look as labels.csv may, only these two columns count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a CSV in UTF-8 with --splits") from None
    lines = [line for line in text.splitlines() if line.strip(" ,;\t")]
    separator = max(",;\t", key=(lines or [""])[0].count)
    rows = [[cell.strip() for cell in cells] for cells in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    slide = next((header.index(name) for name in ("slide_id", "slide") if name in header), None)
    if slide is None or "split" not in header:
        raise ConfigError(f"{path}: expected columns slide_id and split")
    split = header.index("split")
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for cells in rows[1:]:
        row = cells + [""] * len(header)
        name = slide_id_of(row[slide])
        name = name if name in known else name.rsplit(".", 1)[0]  # the id may carry the suffix of its file
        found[row[split].lower() in ("", "train")].add(name)
    both = found[True] & found[False]
    check(not both, f"{path}: {', '.join(sorted(both))}: in train and in another split; a slide has one split")
    return found[True]


def _classes(stores: Sequence[SlideStore], labels: str) -> tuple[str, ...]:
    found = {tuple(s.attributes("labels", labels)["classes"]) for s in stores}
    if len(found) > 1:
        raise ConfigError(f"labels/{labels} names different classes in different stores: {sorted(found)}")
    return found.pop()


def _fit_of(folder: Path, encoder: str) -> Path | None:
    """The fit that painted the masks, if its encoder is of the same kind and its weights are there."""
    made = maker_of(folder)
    return folder if made and made.encoder == encoder and weights_file(folder).exists() else None


def _start_from(model: nn.Module, weights: Path | None, fit_of_masks: Path | None) -> Statistics:
    """Start the encoder from `weights`, else from the fit of the masks; returns what they expect of the channels."""
    source = weights or fit_of_masks
    if source is None:
        return Statistics()
    inner = encoder_of(model)
    try:
        statistics = load_weights(inner, source)
    except CheckpointError as error:
        if weights:
            raise
        log.warning("the encoder starts from scratch, not from the fit of the masks: %s", error)
        return Statistics()
    expect(inner, statistics)
    log.info("the encoder starts from %s", source)
    return statistics
