"""The demonstration: the truth stays out of reach until the maps are finished, and the table names what to beat."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wsipipe.demo import demo
from wsipipe.demo.cohort import CohortConfig
from wsipipe.demo.demo import run_demo
from wsipipe.demo.results import Results
from wsipipe.errors import WsipipeError
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import silent
from wsipipe.store import SlideStore

SMALL = CohortConfig(train_slides=2, test_slides=1, size_px0=(640, 512), patch_px0=128)
SLIDES = ("test_00", "train_00", "train_01")

QUICK = """\
run: {slides: [slides], device: cpu, workers: 1}
tile: {patch_px: 128}
pretrain: {steps: 2, batch: 8}
pseudolabel:
  labels: labels.csv
  encoder: resnet18_quarter
  camel: {warm_steps: 2, selector_steps: 2, retrain_steps: 2, self_train_steps: 2, batch: 8, views: 1}
segment: {encoder: resnet18_quarter, steps: 2, batch: 2}
"""


@dataclasses.dataclass
class Shown:
    """What a demonstration left and what was seen of the truth while the chain ran."""

    folder: Path
    text: str
    truth_seen: list[Path]
    tasks: set[str]


@contextlib.contextmanager
def small() -> Iterator[pytest.MonkeyPatch]:
    """The demonstration with a small cohort and next to no training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "COHORT", SMALL)
        patch.setattr(demo, "PIPELINE", QUICK)
        yield patch


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The demonstration, run twice in one folder; the second run is the one that is shown."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "demo"
    seen: list[Path] = []
    tasks: set[str] = set()
    real = demo.run_chain

    def watched(*args: Any, **kwargs: Any) -> Any:
        def look() -> None:
            found = [p for p in folder.rglob("*") if p.is_file() and p.name != "training.png"]
            maps = [p for p in found if p.parent.name == "pictures" and p.stem in SLIDES]
            seen.extend(p for p in found if p not in maps and (p.suffix == ".png" or "truth" in p.parts))

        look()
        result = real(*args, **kwargs)
        look()
        return result

    with small() as patch:
        patch.setattr(demo, "run_chain", watched)
        run_demo(folder, lambda task, done, total, note="": tasks.add(task))
        text = run_demo(folder, silent)
    return Shown(folder, text, seen, tasks)


def test_no_truth_lies_in_the_folder_while_the_chain_runs_not_even_of_an_earlier_run(shown: Shown) -> None:
    assert shown.truth_seen == []
    assert sorted(p.name for p in (shown.folder / "truth").iterdir()) == [f"{i}.png" for i in SLIDES]


def test_the_table_has_masks_and_maps_and_all_trivial_answers(shown: Shown) -> None:
    for fragment in (
        "\npseudo-masks   ",
        "\nfinal maps   ",
        "\n  empty  ",
        "\n  all tissue is tumour  ",
        "\n  all tissue of slides with tumour  ",
        "\n  best colour threshold *  ",
        "\n  colour histogram classifier *  ",
    ):
        assert fragment in shown.text
    for name, split in (("camel", "train"), ("camel", "test"), ("unet", "test")):
        assert (shown.folder / "runs" / name / split / "evaluation.csv").is_file()


def test_the_table_fits_80_columns_and_ends_with_the_pictures_and_the_minutes(shown: Shown) -> None:
    *lines, pictures, minutes = shown.text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines if line.count("  ") > 4}) == 1  # one table, its columns aligned
    assert str(shown.folder / "pictures" / "overview.png") in pictures
    assert re.fullmatch(r"finished in \d+\.\d minutes", minutes)


def test_there_is_a_picture_of_every_slide_and_an_overview(shown: Shown) -> None:
    stores = sorted((shown.folder / "stores").glob("*.zarr"))
    pictures = {p.stem: p for p in (shown.folder / "pictures").iterdir()}
    assert pictures.keys() == {"overview", *(p.stem for p in stores)}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures.values())
    assert all("unet" in SlideStore(p).names("labels") for p in stores)
    with Image.open(pictures["overview"]) as overview:
        assert overview.size[0] == 1200
    assert pictures["overview"].stat().st_size < 300_000


def test_progress_names_every_part(shown: Shown) -> None:
    assert {
        "draw",
        "tile",
        "pretrain",
        "select",
        "retrain",
        "score",
        "train",
        "stitch",
        "draw maps",
        "evaluate",
    } <= shown.tasks


def test_the_folder_repeats_the_run_from_its_own_pipeline_yaml(shown: Shown) -> None:
    assert (shown.folder / "pipeline.yaml").read_text() == QUICK
    ledger = (shown.folder / "runs" / "unet" / "segment.csv").read_text()
    assert ledger.count("skipped") == 3  # the second run found all of the first


def test_a_chain_that_fails_is_an_error_and_shows_no_truth(tmp_path: Path) -> None:
    report = Report()
    report.failed("train_00", WsipipeError("no luck"))
    with small() as patch:
        patch.setattr(demo, "run_chain", lambda *args, **kwargs: (report, []))
        with pytest.raises(WsipipeError, match=r"the chain failed on its own cohort.*no luck"):
            run_demo(tmp_path / "demo", silent)
    assert not (tmp_path / "demo" / "truth").exists()


def test_the_real_settings_are_valid_and_say_where_the_labels_are(tmp_path: Path) -> None:
    settings = demo._settings(tmp_path / "demo")
    assert settings.run.stores == str(tmp_path / "demo" / "stores")
    assert settings.run.slides == (str(tmp_path / "demo" / "slides"),)
    assert settings.pseudolabel.labels == str(tmp_path / "demo" / "labels.csv")
    assert demo.COHORT.train_slides > SMALL.train_slides


def test_files_of_the_user_beside_the_truth_stay(tmp_path: Path) -> None:
    own = [tmp_path / "truth" / "mine.png", tmp_path / "pictures" / "mine.png"]
    for file in own:
        file.parent.mkdir()
        file.write_bytes(b"")
    with small() as patch:
        patch.setattr(demo, "run_chain", lambda *args, **kwargs: (Report(), []))
        patch.setattr(demo, "evaluate_demo", lambda *args: Results("table", 0.0))
        patch.setattr(demo, "draw_overview", lambda *args: args[-1])
        assert run_demo(tmp_path, silent).startswith("table\n")
    assert all(file.exists() for file in own)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_demonstration_reaches_its_dice(tmp_path: Path) -> None:
    text = run_demo(tmp_path / "demo", silent)
    rows = {line[:18].strip(): line.split() for line in text.splitlines()}
    dice = text.splitlines()[0].split().index("Dice")
    reached = float(rows["final maps"][dice - len(text.splitlines()[0].split())])
    trivial = [float(re.split(r"  +", line.strip())[3]) for line in text.splitlines() if line.startswith("  ")]
    assert reached >= 0.8
    assert max(trivial) < 0.5
