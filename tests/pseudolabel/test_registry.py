"""The registry: the folder of methods is the list of methods, and listing them loads none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wsipipe.pseudolabel.methods
from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.registry import load_method, method_names


def test_listing_the_methods_imports_none_of_them():
    code = (
        "import sys; from wsipipe.pseudolabel.registry import method_names; print(*method_names()); "
        "folder = 'wsipipe.pseudolabel.methods.'; "
        "print(*[m for m in sys.modules if m in ('torch', 'numpy', 'zarr') or m.startswith(folder)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    listed, loaded = run.stdout.split("\n")[:2]
    assert listed.split() == method_names()
    assert loaded == ""


def test_every_file_of_the_folder_is_a_method():
    folder = Path(wsipipe.pseudolabel.methods.__file__).parent
    assert method_names() == sorted(p.stem for p in folder.iterdir() if p.stem not in ("__init__", "__pycache__"))
    assert "camel" in method_names()


def test_loading_gives_the_module_of_that_name():
    assert load_method("camel").__name__ == "wsipipe.pseudolabel.methods.camel"


@pytest.mark.parametrize("name", ["dromedary", "", "__init__", "../label", "Camel"])
def test_an_unknown_method_is_answered_with_those_that_there_are(name: str):
    with pytest.raises(ConfigError, match=r"is not known; choose one of .*camel"):
        load_method(name)
