"""The figure is drawn for everything that an evaluation may or may not hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from support.evaluations import evaluation_of

from wsipipe.evaluate.figure import write_figure


@pytest.mark.parametrize("n", [0, 3, 9])
def test_a_picture_with_a_panel_for_what_there_is(tmp_path: Path, n: int) -> None:
    write_figure(evaluation_of(n), tmp_path / "runs" / "f.png")
    picture = imagecodecs.png_decode((tmp_path / "runs" / "f.png").read_bytes())
    assert picture.shape[1] > 1.5 * picture.shape[0]
    assert (picture.shape[1] > 1500) == (n > 0)
    colours = {tuple(c) for c in np.unique(picture.reshape(-1, picture.shape[2]), axis=0)[:, :3].tolist()}
    assert (0, 0x72, 0xB2) in colours
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["f.png"]


def test_the_plotting_library_is_loaded_only_when_it_draws() -> None:
    code = "import sys, wsipipe.evaluate.figure as f; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "False\n"
