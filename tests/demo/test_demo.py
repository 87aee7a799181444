"""The demonstration: the truth stays out of reach until the maps are finished, and the table names what to beat."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsipipe.demo import demo
from wsipipe.demo.cohort import CohortConfig
from wsipipe.demo.demo import run_demo
from wsipipe.errors import WsipipeError
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import silent
from wsipipe.store import SlideStore

SMALL = CohortConfig(train_slides=2, test_slides=1, size_px0=(640, 512), patch_px0=128)

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
        patch.setattr(demo, "CohortConfig", lambda: SMALL)
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
            found = [p for p in folder.rglob("*") if "pictures" not in p.parts and p.name != "training.png"]
            seen.extend(p for p in found if p.suffix == ".png" or "truth" in p.name)

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
    assert sorted(p.name for p in (shown.folder / "truth").iterdir()) == ["test_00.png", "train_00.png", "train_01.png"]


def test_the_table_has_masks_and_maps_and_both_trivial_answers(shown: Shown) -> None:
    for fragment in (
        "\npseudo-masks, training slides  ",
        "\npseudo-masks, test slides  ",
        "\nfinal maps, test slides  ",
        "trivial: all tissue is tumour",
        "trivial: best colour threshold (",
        "trivial: colour histogram classifier",
    ):
        assert fragment in shown.text
    for name, split in (("camel", "train"), ("camel", "test"), ("unet", "test")):
        assert (shown.folder / "runs" / name / split / "evaluation.csv").is_file()
    assert "finished in " in shown.text
    assert len({len(line) for line in shown.text.splitlines()[:12]}) == 1  # one table, its columns aligned


def test_there_is_a_picture_of_every_slide(shown: Shown) -> None:
    stores = sorted((shown.folder / "stores").glob("*.zarr"))
    pictures = sorted((shown.folder / "pictures").glob("*.png"))
    assert [p.stem for p in pictures] == [p.stem for p in stores]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)
    assert all("unet" in SlideStore(p).names("labels") for p in stores)


def test_progress_names_every_part(shown: Shown) -> None:
    assert {"draw", "tile", "pretrain", "select", "retrain", "score", "train", "stitch", "draw maps"} <= shown.tasks


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
    assert settings.sections[settings.pseudolabel.method]["selector_steps"] > 2
