"""Folders for the tests of the command line."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_chain import Chain, make_folder, wsipipe


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, svs_writer, tissue_drawer) -> Path:
    """A folder of tiny slides in which nothing has run. Read only."""
    return make_folder(tmp_path_factory.mktemp("fresh") / "work", svs_writer, tissue_drawer)


@pytest.fixture(scope="session")
def chain(tmp_path_factory, fresh: Path) -> Chain:
    """The three bare commands, run one after the other. Read only."""
    folder = Path(shutil.copytree(fresh, tmp_path_factory.mktemp("chain") / "work"))
    commands = {
        "tile": ("tile", *sorted((folder / "slides").glob("*.svs"))),
        "pseudolabel": ("pseudolabel", "--labels", "labels.csv"),
        "segment": ("segment", "--stitch"),
    }
    with contextlib.chdir(folder):
        return Chain(folder, {name: wsipipe(*command) for name, command in commands.items()})


@pytest.fixture
def here(tmp_path: Path, chain: Chain) -> Iterator[Path]:
    """A copy of the finished chain, as the current folder."""
    folder = Path(shutil.copytree(chain.folder, tmp_path / "work"))
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """An empty current folder."""
    with contextlib.chdir(tmp_path):
        yield tmp_path
