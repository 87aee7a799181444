"""TileJob: one slide to tile, the options and the target store. Tasks receive it by pickle."""

from __future__ import annotations

import glob
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from wsipipe.config.options import TileConfig
from wsipipe.runtime.atomic import partial_path
from wsipipe.runtime.lock import lock_file
from wsipipe.slides import SlideFile


@dataclass(frozen=True)
class TileJob:
    """A slide, the options to tile it with, and the path of its store. Small and picklable."""

    slide_id: str
    file: SlideFile
    config: TileConfig
    target: Path
    overwrite: bool = False
    qc_image: Path | None = None

    @property
    def partial(self) -> Path:
        """The unfinished store, beside the target; renamed when it is complete."""
        return partial_path(self.target)

    @property
    def stride_px(self) -> int:
        """Step between patches, in working px."""
        return self.config.stride_px or self.config.patch_px

    def absolute(self) -> TileJob:
        """The same job with absolute paths, for processes that run in other folders."""
        file = replace(self.file, path=self.file.path.absolute(), mask=self.file.mask and self.file.mask.absolute())
        image = self.qc_image and self.qc_image.absolute()
        return replace(self, file=file, target=self.target.absolute(), qc_image=image)


def remove_partial(job: TileJob) -> None:
    """Remove the unfinished store of a job, with its temporary files."""
    for path in (job.partial, *job.partial.parent.glob(f".{glob.escape(job.partial.name)}.*.partial")):
        shutil.rmtree(path, ignore_errors=True)
    lock_file(job.partial).unlink(missing_ok=True)
