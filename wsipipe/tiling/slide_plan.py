"""SlidePlan: everything decided about a slide before its pixels are written, saved so that a later run can resume."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import StoreError
from wsipipe.geometry import Grid
from wsipipe.runtime.atomic import write_bytes
from wsipipe.slides.level import BadTile
from wsipipe.store import PatchTable
from wsipipe.tiling.plan import Bits
from wsipipe.tiling.recipe import Recipe
from wsipipe.tiling.records import bad_from_rows, bad_to_rows
from wsipipe.tissue.detect import TissueMask


@dataclass(frozen=True)
class SlidePlan:
    """Grid, tissue, patches and chunks of one slide.

    chunks: the chunks of level 0 to write. bad: tiles that could not be read while the tissue was detected -> reason.
    """

    recipe: Recipe
    grid: Grid
    tissue: TissueMask
    table: PatchTable
    chunks: Bits
    bad: dict[BadTile, str]

    def save(self, path: Path) -> None:
        """Write the plan to one file."""
        facts = {
            "recipe": asdict(self.recipe),
            "grid": self.grid.to_dict(),
            "step_px": self.tissue.step_px,
            "note": self.tissue.note,
            "bad": bad_to_rows(self.bad),
        }
        arrays: dict[str, Any] = {
            "kind": self.tissue.kind,
            "chunks": self.chunks,
            "cell": self.table.cell,
            "tissue": self.table.tissue,
            "status": self.table.status,
        }
        buffer = io.BytesIO()
        np.savez(buffer, facts=np.array(json.dumps(facts)), **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> SlidePlan:
        """Read a plan. Raises StoreError if it is missing or damaged."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                facts = json.loads(str(arrays["facts"]))
                grid = Grid.from_dict(facts["grid"])
                return cls(
                    Recipe(**facts["recipe"]),
                    grid,
                    TissueMask(arrays["kind"], facts["step_px"], facts["note"]),
                    PatchTable(grid, arrays["cell"], arrays["tissue"], arrays["status"]),
                    arrays["chunks"],
                    bad_from_rows(facts["bad"]),
                )
        except Exception as error:  # noqa: BLE001 - zipfile and numpy raise many types; all mean a damaged file
            raise StoreError(f"{path}: the plan is missing or damaged ({error})") from None
