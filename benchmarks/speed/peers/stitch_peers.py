"""Other tools from a slide file to its map of classes; runs in the peers' environment.

    PEERS/bin/python benchmarks/speed/peers/stitch_peers.py monai|tiatoolbox|lazyslide \
        --slide SLIDE.svs --reference MAP.npy

The network is one convolution, so that reading and merging are what is measured; windows are 256 px, 128 px apart, all
over the slide. Importing is not timed. The answer is a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stitch_network import BATCH, CLASSES, MEAN, MPP, STD, STRIDE_PX, WINDOW_PX, convolution, resident_mib
from torch import nn

Job = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]
"""The whole work, which is timed, and what makes of its answer a map of classes: integers [h, w]."""


class Probabilities(nn.Module):
    """Grey levels 0..255 [B, 3, h, w] to the probabilities of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = convolution()
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution((x.float() - self.mean) / self.std).softmax(1)


def monai(slide: Path, folder: Path) -> Job:
    """`sliding_window_inference` with Gaussian weights over the whole slide in memory; it reads no slides itself."""
    import openslide
    from monai.inferers import sliding_window_inference

    network = Probabilities()

    def run() -> np.ndarray:
        with openslide.OpenSlide(slide) as opened, torch.inference_mode():
            rgb = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
            image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
            side = (WINDOW_PX, WINDOW_PX)
            merged = sliding_window_inference(
                image, side, BATCH, network, 1 - STRIDE_PX / WINDOW_PX, mode="gaussian", progress=False
            )
            found = merged[0].argmax(0).to(torch.uint8).numpy()
        np.save(folder / "map.npy", found)
        return found

    return run, np.asarray


def tiatoolbox(slide: Path, folder: Path) -> Job:
    """`SemanticSegmentor` on a whole slide, answer as zarr."""
    import zarr
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    class Network(ModelABC):
        def __init__(self) -> None:
            super().__init__()
            self.network = Probabilities()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

        @staticmethod
        def infer_batch(model: nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
            with torch.inference_mode():
                return model(batch_data.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return image.argmax(-1)

    def run() -> Path:
        segmentor = SemanticSegmentor(model=Network(), batch_size=BATCH, num_workers=0, verbose=False)
        resolution, side = [{"units": "mpp", "resolution": MPP}], (WINDOW_PX, WINDOW_PX)
        config = IOSegmentorConfig(resolution, side, (STRIDE_PX, STRIDE_PX), resolution, patch_output_shape=side)
        written = segmentor.run(
            images=[slide], patch_mode=False, save_dir=folder / "out", output_type="zarr", auto_get_mask=False,
            ioconfig=config, device="cpu",
        )  # fmt: skip
        return Path(next(iter(written.values())))

    def read(path: Path) -> np.ndarray:
        opened: Any = zarr.open(str(path), mode="r")
        return np.asarray(opened["predictions"])

    return run, read


def lazyslide(slide: Path, folder: Path) -> Job:
    """`seg.semantic` on tiles all over the slide; its answer is polygons, painted here after the clock has stopped."""
    import cv2
    import lazyslide as zs
    from lazyslide_models.base import SegmentationOutput
    from wsidata import open_wsi

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Probabilities()

        def get_transform(self) -> Callable[[np.ndarray], torch.Tensor]:
            return lambda rgb: torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)

        def segment(self, image: torch.Tensor) -> SegmentationOutput:
            return SegmentationOutput(probability_map=self.network(image))

    def run() -> Any:
        wsi = open_wsi(str(slide), store=str(folder / "lazy.zarr"))
        zs.pp.tile_tissues(wsi, WINDOW_PX, stride_px=STRIDE_PX, mpp=MPP, edge=True, background_filter=False)
        zs.seg.semantic(
            wsi, Network(), batch_size=BATCH, device="cpu", ignore_index=None, pbar=False, class_names=list(CLASSES)
        )
        return wsi

    def painted(wsi: Any) -> np.ndarray:
        height, width = wsi.properties.shape
        canvas = np.full((height, width), 255, np.uint8)
        shapes = wsi["anatomical_structures"]
        for polygon, name in zip(shapes.geometry, shapes["class"], strict=True):
            rings = [np.rint(np.asarray(r.coords)).astype(np.int32) for r in (polygon.exterior, *polygon.interiors)]
            cv2.fillPoly(canvas, rings, CLASSES.index(name))
        return canvas

    return run, painted


TOOLS = {"monai": monai, "tiatoolbox": tiatoolbox, "lazyslide": lazyslide}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=tuple(TOOLS))
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        run, as_map = TOOLS[args.tool](args.slide, folder)
        before_mib, started = resident_mib(), time.perf_counter()
        answer = run()
        seconds, peak_mib = time.perf_counter() - started, resident_mib("VmHWM")
        same = float((as_map(answer) == np.load(args.reference)).mean())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"seconds": seconds, "before_mib": before_mib, "peak_mib": peak_mib, "same": same}))


if __name__ == "__main__":
    main()
