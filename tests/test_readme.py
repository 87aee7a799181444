"""README.md: its commands and its Python run as they are written, one after the other, on tiny slides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from support.tiny_chain import BIN

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

PIPELINE = """\
run: {device: cpu, workers: 1}
tile: {patch_px: 128}
pretrain: {steps: 2, batch: 8}
pseudolabel:
  encoder: resnet18_quarter
  camel: {warm_steps: 2, selector_steps: 2, retrain_steps: 2, self_train_steps: 2, batch: 8, views: 1}
  drs: {steps: 2, refiner_steps: 2, refiner_batch: 4, batch: 4}
segment: {encoder: resnet18_quarter, steps: 2, batch: 2}
"""


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, svs_writer, tissue_drawer) -> Path:
    """Slides, labels and truth as README.md describes them, and a pipeline.yaml with the shortest schedules."""
    here: Path = tmp_path_factory.mktemp("readme")
    for name in ("slides", "truth", "new"):
        (here / name).mkdir()
    places = [*(f"slides/case_0{i}" for i in (1, 2, 3)), "new/slide", "new/other"]
    for seed, place in enumerate(places):
        rgb, tissue = tissue_drawer((640, 512), seed)
        svs_writer(here / f"{place}.svs", rgb, factors=(4,))
        truth = np.where(tissue, 2, 1).astype(np.uint8)
        (here / "truth" / f"{Path(place).name}.png").write_bytes(imagecodecs.png_encode(truth))
    (table,) = (block for block in blocks("text") if block.startswith("slide_id,"))
    (here / "labels.csv").write_text(table)
    (here / "cohort.csv").write_text("slide\nnew/other.svs\n")
    (here / "pipeline.yaml").write_text(PIPELINE)
    return here


def test_the_commands_run_as_written(folder: Path):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 12
    env = {**os.environ, "PATH": f"{BIN.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for command in commands:
        assert command.startswith("wsipipe ")
        done = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (folder / "export" / "unet" / "case_01.ome.tif").exists()
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 ('tumour',)\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = (document.parent / path).resolve()
            assert linked.exists(), target
            if anchor:
                assert f"# {anchor}" in linked.read_text(encoding="utf-8").lower().replace("`", "")


def test_sentences_of_the_readme_are_short():
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith(("|", "#", "!")))
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    for sentence in re.split(r"(?<=[.:])\s+", prose.replace("\n\n", ".\n\n")):
        assert len(sentence.split()) <= 25, sentence


def test_the_files_of_the_map_are_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 120
