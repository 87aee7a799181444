"""Small generated slides, a fake slide, and a tiled store, shared by all tests."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage
from support import examples
from support.types import Drawing, DrawTissue, WriteSvs

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.runtime.context import RunContext
from wsipipe.slides.base import SlideFile, SlideInfo
from wsipipe.store import SlideStore
from wsipipe.tiling.stage import run as tile_slides

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GLASS_GREY = 243

examples.register()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", type=int, help="run the tests in an order drawn from this seed")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("shuffle")
    return None if seed is None else f"order of tests: --shuffle={seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests, but keep those of a file together: their fixtures are dear."""
    seed = config.getoption("shuffle")
    if seed is not None:
        files = list(dict.fromkeys(item.path for item in items))
        order = random.Random(seed)
        order.shuffle(files)
        rank = {item: (files.index(item.path), order.random()) for item in items}
        items.sort(key=rank.__getitem__)


class ArraySlide:
    """A slide whose level 0 is an array; coarser levels are area means by whole `downsamples`, cut at the end."""

    def __init__(
        self,
        rgb: NDArray[np.uint8],
        downsamples: tuple[int, ...] = (1,),
        mpp0: tuple[float, float] = (0.5, 0.5),
        slide_id: str = "array",
    ) -> None:
        self.id = slide_id
        self.levels = [shrunk(rgb, d) for d in downsamples]
        self.downsamples = tuple(float(d) for d in downsamples)
        size = (rgb.shape[1], rgb.shape[0])
        self.info = SlideInfo("memory", "array", "0", size, mpp0, "slide", (0, 0, *size))
        self.reads: list[tuple[int, int]] = []

    def level_size(self, level: int) -> tuple[int, int]:
        return self.levels[level].shape[1], self.levels[level].shape[0]

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        self.reads.append(size_level_px)
        pixels = self.levels[level]
        x, y = (round(v / self.downsamples[level]) for v in xy_px0)
        w, h = size_level_px
        out = np.full((h, w, 3), 255, np.uint8)
        y1, y2, x1, x2 = max(y, 0), min(y + h, pixels.shape[0]), max(x, 0), min(x + w, pixels.shape[1])
        if y2 > y1 and x2 > x1:
            out[y1 - y : y2 - y, x1 - x : x2 - x] = pixels[y1:y2, x1:x2]
        return out

    def tiles(self, level: int) -> None:
        return None

    def tile_px(self, level: int) -> tuple[int, int]:
        return 256, 256

    def close(self) -> None:
        self.levels = []


def shrunk(rgb: NDArray[np.uint8], f: int) -> NDArray[np.uint8]:
    """Area mean by a whole factor; an incomplete last row or column is dropped, as scanners do."""
    h, w = rgb.shape[0] // f, rgb.shape[1] // f
    return rgb[: h * f, : w * f].reshape(h, f, w, f, 3).mean((1, 3)).round().astype(np.uint8)


def draw_tissue(size_px0: tuple[int, int], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A wobbly blob of pink tissue with purple nuclei on grey glass: uint8 [h, w, 3] and its mask bool [h, w]."""
    rng = np.random.default_rng(seed)
    w, h = size_px0
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    angle = np.arctan2(y, x)
    mask = np.hypot(x, y) < 0.62 + 0.06 * np.sin(3 * angle + seed) + 0.03 * np.sin(7 * angle)
    rgb = np.full((h, w, 3), GLASS_GREY, np.float32) + rng.normal(0, 1.2, (h, w, 1)).astype(np.float32)
    fibre = ndimage.gaussian_filter(rng.standard_normal((h, w)), (1.5, 4.0))[..., None] / 0.1
    rgb[mask] = (np.array([226, 160, 192]) + 9 * fibre)[mask]
    nuclei = ndimage.gaussian_filter(rng.standard_normal((h, w)), 3.0)
    rgb[mask & (nuclei > np.quantile(nuclei, 0.85))] = (104, 62, 142)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8), mask


def write_svs(path: Path, rgb: NDArray[np.uint8], mpp: str = "0.5", factors: tuple[int, ...] = (4, 16)) -> None:
    """An Aperio-like file: tiled JPEG levels, the thumbnail between the first two, resolution in the description."""
    h, w = rgb.shape[:2]
    head = f"Aperio Image Library v12.0.15\r\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=87"
    facts = f"|AppMag = 20|MPP = {mpp}" if mpp else "|AppMag = 20"
    codec = {"compression": "jpeg", "compressionargs": {"level": 87, "outcolorspace": "ycbcr"}, "subsampling": (2, 2)}
    kind = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rgb, tile=(256, 256), description=head + facts, **codec, **kind)
        tiff.write(shrunk(rgb, 8), rowsperstrip=16, description=head, **codec, **kind)
        for f in factors:
            tiff.write(shrunk(rgb, f), tile=(256, 256), description=head, **codec, **kind)


@pytest.fixture(scope="session")
def array_slide() -> type[ArraySlide]:
    """The class of the fake slide."""
    return ArraySlide


@pytest.fixture(scope="session")
def svs_writer() -> WriteSvs:
    """`write_svs(path, rgb, mpp="0.5", factors=(4, 16))`."""
    return write_svs


@pytest.fixture(scope="session")
def tissue_drawer() -> DrawTissue:
    """`draw_tissue(size_px0, seed=0)` -> rgb, mask."""
    return draw_tissue


@pytest.fixture(scope="session")
def tissue_rgb() -> Drawing:
    """Level 0 of the generated slide, 1200 x 900 px, and its tissue mask."""
    return draw_tissue((1200, 900))


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: Drawing) -> Path:
    """Folder with one generated slide, `blob.svs`."""
    folder = tmp_path_factory.mktemp("slides")
    write_svs(folder / "blob.svs", tissue_rgb[0])
    return folder


@pytest.fixture(scope="session")
def svs_path(slide_folder: Path) -> Path:
    """The generated slide: 1200 x 900 px at 0.5 um/px, levels 1, 1/4, 1/16."""
    return slide_folder / "blob.svs"


@pytest.fixture(scope="session")
def png_path(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: Drawing) -> Path:
    """A plain image, 400 x 300 px, that does not say its resolution."""
    path = tmp_path_factory.mktemp("plain") / "image.png"
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(tissue_rgb[0][300:600, 400:800])))
    return path


@pytest.fixture(scope="session")
def tiled(tmp_path_factory: pytest.TempPathFactory, svs_path: Path) -> Path:
    """The store of the generated slide at its native 0.5 um/px, patches of 128 px. Read only: shared by all tests."""
    folder = tmp_path_factory.mktemp("tiled")
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=2)
    report, stores = tile_slides({"blob": SlideFile(svs_path)}, TileConfig(patch_px=128), RunContext(run))
    assert report.exit_code == 0, report.rows
    return stores[0]


@pytest.fixture
def store(tmp_path: Path, tiled: Path) -> SlideStore:
    """A copy of the tiled store that a test may write to."""
    return SlideStore(Path(shutil.copytree(tiled, tmp_path / "stores" / tiled.name)))


@pytest.fixture(scope="session")
def real_wsi() -> Path:
    """Folder of real slides; the test is skipped where it is absent."""
    if not (REAL_DATA / "wsi").is_dir():
        pytest.skip(f"no real slides at {REAL_DATA / 'wsi'}")
    return REAL_DATA / "wsi"
