"""The public interface: its names, their signatures, and what running a stage from Python gives."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_chain import SLIDES, make_folder
from support.types import DrawTissue, WriteSvs

import wsipipe
from wsipipe import api

SIGNATURES = {
    "Patches": "(stores: 'Sequence[Path | str]', *, masks: 'str' = '', scores: 'str' = '', labels: 'Path | str' = '', "
    "split: 'str' = '', patch_px: 'int' = 0, stride_px: 'int' = 0) -> 'None'",
    "SlideStore": "(path: 'Path | str') -> 'None'",
    "Window": "(x_px: 'int', y_px: 'int', width_px: 'int', height_px: 'int') -> None",
    "evaluate_maps": "(stores: 'Sequence[Path | str]' = (), settings: 'Settings | None' = None, *, "
    "progress: 'Progress' = <function silent>) -> 'Evaluation'",
    "find_stores": "(folder: 'Path') -> 'list[Path]'",
    "open_store": "(path: 'Path | str') -> 'SlideStore'",
    "predict": "(inputs: 'Sequence[Path | str]', checkpoint: 'Path | str', settings: 'Settings | None' = None, *, "
    "overwrite: 'bool' = False, progress: 'Progress' = <function silent>) -> 'StageResult'",
    "read_settings": "(file: 'Path | str | None' = None, flags: 'Values | None' = None) -> 'Settings'",
    "run_stage": "(stage: 'Stage', inputs: 'Sequence[Path | str]' = (), settings: 'Settings | None' = None, *, "
    "overwrite: 'bool' = False, progress: 'Progress' = <function silent>) -> 'StageResult'",
}
"""A change here is a change for users: note it in CHANGELOG.md."""


def signature(name: str) -> str:
    """The signature of a public name, without addresses in memory."""
    text = str(inspect.signature(getattr(wsipipe, name)))
    return text.replace(f" at {id(api.silent):#x}", "")


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_do_not_change_unseen(name: str) -> None:
    assert signature(name) == SIGNATURES[name]


def test_the_public_names_do_not_change_unseen() -> None:
    assert sorted(wsipipe.__all__) == sorted([*SIGNATURES, "Settings", "StageResult", "WsipipeError", "__version__"])
    assert wsipipe.StageResult._fields == ("report", "paths")
    assert set(dir(wsipipe)) >= set(wsipipe.__all__)
    assert all(getattr(wsipipe, name).__doc__ for name in wsipipe.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="module 'wsipipe' has no attribute 'nothing'"):
        _ = wsipipe.nothing


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would replace the name."""
    assert not set(wsipipe.__all__) & {p.stem for p in Path(wsipipe.__file__).parent.iterdir()}


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(wsipipe.__file__).with_suffix(".pyi").read_text()
    listed: dict[str, list[str]] = {}
    exec(stub[stub.index("__all__") :], listed)
    assert sorted(listed["__all__"]) == sorted(wsipipe.__all__)
    for name, home in wsipipe._HOMES.items():
        line = next(line for line in stub.splitlines() if line.startswith(f"from {home} import "))
        assert name in line.partition(" import ")[2].split(", ")
    assert (Path(wsipipe.__file__).parent / "py.typed").exists()


def test_import_is_light_and_a_name_loads_only_its_home() -> None:
    code = (
        "import sys, wsipipe; heavy = ('torch', 'zarr', 'numpy', 'click', 'yaml', 'scipy')\n"
        "assert not [m for m in heavy if m in sys.modules]\n"
        "wsipipe.open_store; assert not [m for m in ('torch', 'scipy', 'click') if m in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory, svs_writer: WriteSvs, tissue_drawer: DrawTissue
) -> Iterator[tuple[wsipipe.StageResult, wsipipe.Settings]]:
    """A folder of tiny slides, as the current folder, in which the chain has run from Python."""
    folder = make_folder(tmp_path_factory.mktemp("api") / "work", svs_writer, tissue_drawer)
    with contextlib.chdir(folder):
        settings = wsipipe.read_settings(flags={"evaluate": {"truth": "truth", "truth_map": "0=0,1=tumour"}})
        yield wsipipe.run_stage("run", ["slides"], settings), settings


def test_the_chain_runs_from_python(chain: tuple[wsipipe.StageResult, wsipipe.Settings]) -> None:
    result, settings = chain
    assert result.report.exit_code == 0
    assert [p.stem for p in result.paths] == sorted(SLIDES)
    for stage in ("tile", "pseudolabel", "segment"):
        inputs = ["slides"] if stage == "tile" else []
        again = wsipipe.run_stage(stage, inputs, settings)
        assert again.paths == result.paths
        assert [row["status"] for row in again.report.rows] == ["skipped"] * 3


def test_a_network_maps_a_new_slide_and_maps_are_evaluated_and_exported(
    chain: tuple[wsipipe.StageResult, wsipipe.Settings],
) -> None:
    result, settings = chain
    again = wsipipe.predict(["slides/neg.svs"], "runs/unet/model.json", settings)
    assert [p.stem for p in again.paths] == ["neg"]
    evaluation = wsipipe.evaluate_maps(settings=settings)
    assert sorted(evaluation.slides) == sorted(SLIDES)
    exported = wsipipe.run_stage("export", result.paths[:1], settings)
    assert Path("export/unet/extra.geojson") in exported.paths


def test_pixels_masks_and_scores_are_arrays(chain: tuple[wsipipe.StageResult, wsipipe.Settings]) -> None:
    store = wsipipe.open_store(chain[0].paths[0])
    window = wsipipe.Window(0, 0, 64, 32)
    assert store.read(window).shape == (32, 64, 3)
    assert store.labels("unet").read(window).shape == (32, 64)
    assert store.scores("unet").read(wsipipe.Window(0, 0, 8, 4)).shape == (1, 4, 8)


def test_mistakes_raise(chain: tuple[wsipipe.StageResult, wsipipe.Settings]) -> None:
    with pytest.raises(wsipipe.WsipipeError, match="stage 'magic' is not known; choose one of tile"):
        wsipipe.run_stage("magic")
    with pytest.raises(wsipipe.WsipipeError, match=r"tile\.patch_px: 3 is below 16"):
        wsipipe.read_settings(flags={"tile": {"patch_px": 3}})
