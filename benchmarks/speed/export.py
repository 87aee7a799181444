"""Time and peak memory of exporting and verifying the mask of a large slide, each in a process of its own.

    python -m benchmarks.speed.export FOLDER [--side 100000] [--formats ome_tiff,labelmap,binary]

The mask is discs of two classes on a background of 0, one a shard, in a border of 255 that the store leaves out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import SHARD_PX

MPP, CELL_PX = 0.5, 64
"""um/px of the slide, and pixels of one cell of the drawn mask."""

JOBS = ("open", "ome_tiff", "labelmap", "binary")


def pattern() -> NDArray[np.uint8]:
    """A disc of class 1 around one of class 2, ragged by cells: uint8 [SHARD_PX, SHARD_PX]."""
    at = np.arange(SHARD_PX)
    y, x = at[:, None], at[None]
    ragged = (y // CELL_PX * 31 + x // CELL_PX * 17) % 7 * 24
    far = np.hypot(y - SHARD_PX / 2, x - SHARD_PX / 2).astype(np.float32) + ragged
    return ((far < 1100).astype(np.uint8) + (far < 500)).astype(np.uint8)


def make_store(path: Path, side_px: int) -> SlideStore:
    """A store without pixels whose `labels/net` is the drawn mask."""
    grid = Grid((side_px, side_px), (MPP, MPP), (1.0, 1.0), 256, 256)
    info = {"path": "none", "vendor": "dicom", "size_px0": [side_px, side_px], "mpp0": [MPP, MPP]}
    store = SlideStore.create(path, grid, 0, {"slide_id": path.stem, "pixel_digest": "p", "slide": info})

    def shards() -> Iterator[tuple[tuple[int, int], NDArray[np.uint8]]]:
        disc, last = pattern(), store.mask_spec.shards[0] - 1
        for shard, window in shard_windows(store.mask_spec):
            border = {0, last} & set(shard)
            part = disc[: window.height_px, : window.width_px]
            yield shard, np.full_like(part, 255) if border else part

    store.write_labels("net", {0: "none", 1: "stroma", 2: "tumour", 255: "ignore"}, {"digest": "d"}, shards())
    return store


def make_source(folder: Path, side_px: int) -> None:
    """A DICOM whole-slide image of that size by its attributes alone: nothing looks at its pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = "2.25.1"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    d.Modality, d.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    d.TotalPixelMatrixColumns = d.TotalPixelMatrixRows = side_px
    d.Rows = d.Columns = 512
    d.NumberOfFrames = (-(-side_px // 512)) ** 2
    d.DimensionOrganizationType = "TILED_FULL"
    d.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20", "50"
    measures.PixelSpacing = [MPP / 1000, MPP / 1000]
    measures.SliceThickness = "0.001"
    shared.PixelMeasuresSequence = [measures]
    d.TotalPixelMatrixOriginSequence, d.SharedFunctionalGroupsSequence = [origin], [shared]
    folder.mkdir(exist_ok=True)
    d.save_as(folder / "level-0.dcm", enforce_file_format=True)


def job(kind: str, step: str, folder: Path) -> dict[str, float]:
    """Run one step in this process: seconds, peak MiB, and MB of the file."""
    store = SlideStore(folder / "large.zarr")
    target = folder / ("large.ome.tiff" if kind == "ome_tiff" else f"large.{kind}.dcm")
    began = time.perf_counter()
    if kind == "ome_tiff":
        from wsipipe.export.formats import ome_tiff

        if step == "write":
            ome_tiff.write_ome_tiff(store, "net", target)
        else:
            ome_tiff.verify_ome_tiff(target, store, "net")
    elif kind != "open":
        from wsipipe.export.formats import dicom_seg

        if step == "write":
            dicom_seg.write_dicom_seg(store, "net", target, kind=kind, source=folder / "dicom")
        else:
            dicom_seg.verify_dicom_seg(target, store, "net", source=folder / "dicom")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_mib": peak_mib(),
        "file_mb": round(target.stat().st_size / 1e6, 1) if target.exists() else 0.0,
    }


def peak_mib() -> int:
    """Peak resident memory of this process alone: getrusage counts that of the process which started it too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main() -> None:
    """Make what is missing, then run every job in a fresh process and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--formats", default=",".join(JOBS))
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(json.dumps(job(*asked.job, asked.folder)))
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not (asked.folder / "large.zarr").exists():
        make_store(asked.folder / "large.zarr", asked.side)
        make_source(asked.folder / "dicom", asked.side)
    for kind in asked.formats.split(","):
        for step in ("write", "verify"):
            command = [sys.executable, "-m", "benchmarks.speed.export", str(asked.folder), "--job", kind, step]
            print(
                kind,
                step,
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(),
                flush=True,
            )


if __name__ == "__main__":
    main()
