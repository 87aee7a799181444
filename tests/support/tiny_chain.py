"""What the tests of the whole chain share: a folder of tiny slides with labels, truth and a pipeline.yaml."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from click.testing import CliRunner, Result

from wsipipe.cli import main

BIN = Path(sys.executable).with_name("wsipipe")

SLIDES = ("pos", "neg", "extra")  # extra has no row in labels.csv

PIPELINE = """\
run: {device: cpu, workers: 1}
tile: {patch_px: 128}
pretrain: {steps: 2, batch: 8}
pseudolabel:
  encoder: resnet18_quarter
  camel: {warm_steps: 2, selector_steps: 2, retrain_steps: 2, self_train_steps: 2, batch: 8, views: 1}
segment: {encoder: resnet18_quarter, steps: 2, batch: 2}
"""

LABELS = "slide_id,label\npos,tumour\nneg,\n"


def make_folder(folder: Path, svs_writer: Callable[..., None], tissue_drawer: Callable[..., tuple[Any, Any]]) -> Path:
    """slides/*.svs, truth/*.png (1: tissue), labels.csv and pipeline.yaml in `folder`."""
    for name in ("slides", "truth"):
        (folder / name).mkdir(parents=True)
    for seed, name in enumerate(SLIDES):
        rgb, tissue = tissue_drawer((640, 512), seed)
        svs_writer(folder / "slides" / f"{name}.svs", rgb, factors=(4,))
        (folder / "truth" / f"{name}.png").write_bytes(imagecodecs.png_encode(tissue.astype(np.uint8)))
    (folder / "labels.csv").write_text(LABELS)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    return folder


def add_broken_slide(folder: Path) -> None:
    """slides/broken.svs, which nothing can open, with a row in labels.csv."""
    (folder / "slides" / "broken.svs").write_bytes(b"II*\0" + bytes(range(256)) * 40)
    with (folder / "labels.csv").open("a") as f:
        f.write("broken,tumour\n")


def wsipipe(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@dataclass(frozen=True)
class Chain:
    """A folder in which the three commands have run, and what they said."""

    folder: Path
    results: dict[str, Result]


def assert_refused(result: Result, code: int, *fragments: str) -> None:
    """The command ended with `code` and one line on stderr that says why."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if line.startswith("wsipipe: error: ")]
    assert len(said) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in said[0]
