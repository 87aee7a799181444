"""Imports: --help answers at once, and each giant is imported in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsipipe"
GIANTS = ("torch", "zarr", "dask", "skimage", "openslide", "scipy", "segmentation_models_pytorch", "timm", "tifffile")


def users_of(module: str) -> list[str]:
    """Files of the package that import `module` or a part of it, anywhere, relative to the package."""
    users = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(n == module or n.startswith(module + ".") for n in names):
                users.append(path.relative_to(PACKAGE).as_posix())
    return sorted(set(users))


def test_the_command_line_loads_no_giant() -> None:
    code = f"import sys, wsipipe.cli; print(*[g for g in {GIANTS!r} if g in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "only"),
    [("openslide", "slides/readers/openslide.py"), ("yaml", "config/yaml.py")],
)
def test_a_giant_is_imported_in_one_file(module: str, only: str) -> None:
    assert users_of(module) == [only]


def test_click_is_imported_only_by_the_command_line() -> None:
    assert users_of("click")
    assert [u for u in users_of("click") if not u.startswith("cli/")] == []


def test_zarr_is_imported_only_by_the_store() -> None:
    assert users_of("zarr")
    assert [u for u in users_of("zarr") if not u.startswith("store/")] == []


def test_segmentation_models_are_imported_in_one_file_of_nn() -> None:
    users = users_of("segmentation_models_pytorch")
    assert len(users) == 1
    assert users[0].startswith("nn/")
