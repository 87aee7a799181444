"""Tile a slide many times over, each time killed at another change of the folder of stores.

    python killed.py SLIDE FOLDER POINTS

Makes FOLDER/whole without being killed, then FOLDER/<k>, killed before its k-th change, for POINTS values of k spread
evenly (0: all of them). A change is a file or folder that is opened for writing, renamed or removed. Prints the k.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.slides.probe import Prober
from wsipipe.tiling.stage import run as tile_slides

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def tile(slide: Path, folder: Path, most: int) -> int:
    """Tile in this process, which kills itself before change number `most`; returns the number of changes."""
    seen = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if watched and (opened or event in CHANGES):
            seen += 1
            if seen == most:
                os.kill(os.getpid(), signal.SIGKILL)

    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1)
    sys.addaudithook(count)
    watched = True
    tile_slides({slide.stem: SlideFile(slide)}, TileConfig(patch_px=128), RunContext(run))
    watched = False
    return seen


def forked(slide: Path, folder: Path, most: int) -> int:
    """The same in a child; returns its number of changes, 0 if it was killed."""
    folder.mkdir(parents=True)
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, str(tile(slide, folder, most)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return int(said or 0)


def main() -> None:
    """The whole run, then the killed ones."""
    slide, folder, points = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    Prober.check = lambda *_: None  # type: ignore[method-assign]  # it changes nothing in the stores
    changes = forked(slide, folder / "whole", 0)
    chosen = range(1, changes + 1) if not points else sorted({1 + i * (changes - 1) // points for i in range(points)})
    for k in chosen:
        assert forked(slide, folder / str(k), k) == 0
        sys.stdout.write(f"{k}\n")


if __name__ == "__main__":
    main()
