"""Which slides a network is trained on, and which are held out for early stopping."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from wsipipe.config.options import TrainConfig
from wsipipe.errors import ConfigError, StoreError, check
from wsipipe.labels import match_slide_id
from wsipipe.store import SlideStore, stain


def training_stores(stores: Sequence[SlideStore], config: TrainConfig) -> list[SlideStore]:
    """The stores to train on: split `train` of `config.labels`, else of the split that the masks record, else all.

    Raises ConfigError or StoreError if none is left.
    """
    having = [s for s in stores if config.masks in s.names("labels")]
    if not having:
        raise StoreError(
            f"no store has labels/{config.masks}; make it with: wsipipe pseudolabel, or: wsipipe masks import"
        )
    if config.labels:
        wanted = train_ids(Path(config.labels), [s.slide_id for s in stores])
        having = [s for s in having if s.slide_id in wanted]
    else:
        splits = {s.slide_id: s.attributes("labels", config.masks).get("split") for s in having}
        if any(v is not None for v in splits.values()):
            having = [s for s in having if splits[s.slide_id] == "train"]
    having = [s for s in having if len(s.patches().cell)]
    if not having:
        raise ConfigError(f"no training slide has labels/{config.masks} and tissue; check the splits")
    if len({s.grid.patch_px for s in having}) > 1:
        raise ConfigError("the training stores have patches of different sizes; tile them alike")
    stain.common_setting(s.is_normalised for s in having)
    return having


def train_ids(path: Path, known: Collection[str]) -> set[str]:
    """Ids of the `known` slides in train rows; the file may look as labels.csv may, only these two columns count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a CSV in UTF-8 with --labels") from None
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
        name = match_slide_id(row[slide], known)
        found[row[split].lower() in ("", "train")].add(name)
    both = found[True] & found[False]
    check(not both, f"{path}: {', '.join(sorted(both))}: in train and in another split; a slide has one split")
    return found[True]


def held_out(
    stores: Sequence[SlideStore], labels: str, share: float, seed: int
) -> tuple[list[SlideStore], list[SlideStore]]:
    """The stores to learn from, and those of a `share` (rounded, one at least) of the patients, drawn by `seed`.

    A slide whose masks name no patient is a patient of its own. ConfigError if nothing would be left to learn from.
    """
    if share == 0:
        return list(stores), []
    of = {s.path: str(s.attributes("labels", labels).get("patient") or s.slide_id) for s in stores}
    patients = sorted(set(of.values()))
    count = max(1, round(share * len(patients)))
    check(count < len(patients), f"segment.validation: {share} of {len(patients)} patients leaves none to learn from")
    aside = set(np.random.default_rng(seed).permutation(patients)[:count].tolist())
    return [s for s in stores if of[s.path] not in aside], [s for s in stores if of[s.path] in aside]
