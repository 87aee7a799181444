"""Methods and refinements on the command line: several at once, one more in a file of its own, and the comparison."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny_chain import PIPELINE, assert_refused, wsipipe

from wsipipe.geometry import Window
from wsipipe.pseudolabel.registry import method_names, parse_methods, refinement_names
from wsipipe.store import SlideStore

FIFTH = '''"""Redness: paints what is red."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wsipipe.config.options import option
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import ScoreMap, argmax_mask
from wsipipe.pseudolabel.params import MethodParams

REFINEMENT = "none"


@dataclass(frozen=True)
class Params(MethodParams):
    """Parameters of redness."""

    NAME = "redness"
    min_tissue = 0.1

    cell_px: int = option(32, "side of a cell")
    border: float = option(0.5, "redness (0..1) above which a cell is painted", fit=False)


def instance_grid(patch_px, params):
    return InstanceGrid(params.cell_px, params.cell_px, 1)


def build(classes, encoder, instance_grid, params):
    return torch.nn.Linear(1, len(classes))


def fit(bags, instance_grid, params, context):
    return seeded_init(lambda: build(context.classes, None, instance_grid, params), context.compute.seed)


def score(model, context, params):
    store, grid = context.store, context.instance_grid
    n = grid.instance_px
    cells = grid.cells(store, params.min_tissue)
    values = np.full((model.out_features, *store.grid.cells(n)), np.nan, np.float32)
    crops = read_crops(store, np.ascontiguousarray(cells[:, ::-1] * n), grid)
    values[:, cells[:, 0], cells[:, 1]] = crops[:, 0].mean((1, 2)) / 255
    return ScoreMap(values, np.where(np.isnan(values[0]), np.nan, np.float32(params.border)), n)


def mask(scores, params):
    return argmax_mask(scores)
'''

WITH_FIFTH = "import sys, wsipipe.pseudolabel.methods as m; m.__path__.append(sys.argv.pop(1)); "
CONTRACT = Path(__file__).parents[1] / "pseudolabel" / "methods" / "test_contract.py"


def test_a_method_is_one_file(here: Path, tmp_path: Path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "redness.py").write_text(FIFTH)
    (here / "pipeline.yaml").write_text(PIPELINE.replace("  camel:", "  redness: {border: 0.1}\n  camel:"))

    def run(*arguments: str, main: str = "from wsipipe.cli import main; main()") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITH_FIFTH + main, str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "redness" in run("pseudolabel", "--help").stdout
    done = run("pseudolabel", "--method", "redness", "--set", "cell_px=64", "-q")
    assert done.returncode == 0, done.stderr
    store = SlideStore(here / "stores" / "pos.zarr")
    assert store.attributes("scores", "redness")["stride_px"] == 64
    whole = Window(0, 0, *store.grid.size_px)
    mask, tissue = (store.labels(n).read(whole) for n in ("redness", "tissue"))
    assert (mask[tissue == 1] == 1).any(), "nothing is red enough for the default border, all for that of the file"
    assert done.stdout.split() == [f"stores/{n}.zarr" for n in ("extra", "neg", "pos")]
    config = run("config").stdout
    assert "  redness: # Redness" in config
    assert "    border: 0.5 # redness (0..1) above which a cell is painted" in config
    options = ["-p", "no:cacheprovider", "-k", "redness", f"--basetemp={tmp_path / 'inner'}"]
    tested = run(*options, str(CONTRACT), main="import pytest; sys.exit(pytest.main(sys.argv[1:]))")
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout


def test_several_methods_run_one_after_the_other_and_are_compared(here: Path):
    brief = ["--set", "cam.steps=2", "--set", "cam.batch=4"]
    result = wsipipe("pseudolabel", "--method", "camel,cam", *brief)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [f"stores/{n}.zarr" for n in ("extra", "neg", "pos")]
    for path in result.stdout.split():
        assert {"camel", "cam"} <= set(SlideStore(here / path).names("labels"))
    result = wsipipe("compare", "--masks", "camel, cam")
    assert result.exit_code == 0, result.stderr
    assert "cam" in result.stdout
    assert (here / "runs" / "compare" / "comparison.png").stat().st_size > 1000
    result = wsipipe("compare", "--truth", "truth", "--truth-map", "0=0,1=tumour")
    assert result.exit_code == 0, result.stderr
    with (here / "runs" / "compare" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["masks"] for r in rows] == ["cam", "camel", "unet"]
    assert all(0 <= float(r["dice"]) <= 1 for r in rows)


@pytest.mark.parametrize("refine", refinement_names())
def test_any_refinement_follows_any_method(here: Path, refine: str):
    result = wsipipe("pseudolabel", "--refine", refine, "--name", f"camel-{refine}", "--quiet")
    assert result.exit_code == 0, result.stderr
    store = SlideStore(here / "stores" / "pos.zarr")
    stride_px = store.attributes("scores", "camel")["stride_px"]
    assert store.attributes("scores", f"camel-{refine}")["stride_px"] == stride_px, "the scores are those before"
    everything = Window(0, 0, 640, 512)
    before, after = (store.scores(n).read(Window(0, 0, 8, 8)) for n in ("camel", f"camel-{refine}"))
    np.testing.assert_array_equal(before, after)
    blocks = store.labels(f"camel-{refine}").read(everything)[::8, ::8].repeat(8, 0).repeat(8, 1)
    tissue = store.labels("tissue").read(everything) == 1
    np.testing.assert_array_equal(store.labels(f"camel-{refine}").read(everything)[tissue], blocks[tissue])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "dromedary"], "method 'dromedary' is not known; choose from cam"),
        (["--method", "cam,camel", "--name", "x"], "each is named after itself"),
        (["--method", "cam,camel", "--set", "lr=1"], "several methods run; name one, as in --set cam.lr=1"),
        (["--set", "dromedary.lr=1"], "'dromedary' is neither a method nor a refinement"),
    ],
)
def test_unclear_wishes_are_refused(here: Path, arguments: list[str], said: str):
    assert_refused(wsipipe("pseudolabel", *arguments), 2, said)


def test_all_means_every_method():
    assert len(method_names()) >= 5
    assert parse_methods("all") == method_names()
    assert parse_methods("drs, cam,drs") == ["drs", "cam"]
    assert "all" in wsipipe("pseudolabel", "--help").stdout
