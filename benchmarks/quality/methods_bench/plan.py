"""The steps of a fold: weak methods in a folder of their own, the supervised bound in another, judgement in a third."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.methods_bench.dataset import COLUMNS, Arm, DataSet, Fold
from benchmarks.quality.methods_bench.steps import WSIPIPE, Step

RAW_MASKS = Path(__file__).with_name("raw_masks.py")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Place:
    """Folders of a fold: `made` (drawn data), `weak` (without truth), `supervised`, `judged`, `records` of steps."""

    top: Path

    def __getattr__(self, name: str) -> Path:
        if name not in ("made", "weak", "supervised", "judged", "records"):
            raise AttributeError(name)
        return self.top / name


@dataclass(frozen=True)
class Plan:
    """Names and commands of all steps of one fold of a data set."""

    data: DataSet
    fold: Fold
    place: Place
    device: str

    def name(self, *parts: str) -> str:
        """The name of a step."""
        return "/".join((self.data.name, f"fold{self.fold.number}", *parts))

    def make(self) -> list[Step]:
        """Drawing the data, where it is drawn."""
        steps: list[Step] = []
        for i, argv in enumerate(self.data.commands(self.fold, self.place.made)):
            clears = (self.place.made,) if i == 0 else ()
            needs = (steps[-1].name,) if steps else ()
            steps.append(Step(self.name(f"make{i + 1}"), "make", tuple(argv), self.place.top, needs, clears=clears))
        return steps

    def lay_out(self) -> None:
        """Links to the slides, labels.csv and the options of every method; nothing is written that is there already."""
        slides = self.data.slides(self.place.made)
        rows = self.data.label_rows(self.place.made, self.fold)
        for folder in (self.place.weak, self.place.supervised):
            links = folder / "slides"
            links.mkdir(parents=True, exist_ok=True)
            wanted = {s.name: s.resolve() for s in slides}
            for old in links.iterdir():
                if old.name not in wanted:
                    old.unlink()
            for name, target in wanted.items():
                if not (links / name).exists():
                    (links / name).symlink_to(target)
            with (folder / "labels.csv").open("w", newline="") as f:
                writer = csv.DictWriter(f, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            for section in ("tile", "pretrain", "segment"):
                _write_yaml(folder / f"{section}.yaml", {section: self.data.options(section, self.place.made)})
        for arm in self.data.arms:
            _write_yaml(self.place.weak / f"{arm.name}.yaml", self._options(arm))

    def _options(self, arm: Arm) -> dict[str, dict[str, Any]]:
        pseudolabel = {**self.data.sections["pseudolabel"], **arm.options, "method": arm.method}
        pseudolabel |= {"labels": "labels.csv", "classes": list(self.data.classes)}
        if arm.params:
            pseudolabel[arm.method] = dict(arm.params)
        return {"pseudolabel": pseudolabel}

    def weak(self) -> Iterator[Step]:
        """Everything that sees weak labels only."""
        weak = self.place.weak
        yield self._tile("weak", weak)
        for seed in range(self.data.seeds):
            if self.data.sections["pretrain"]:
                argv = (*WSIPIPE, "pretrain", "--config", "pretrain.yaml", "--name", f"encoder-s{seed}")
                argv += ("--labels", "labels.csv", *self._chosen(seed))
                inputs = (weak / "pretrain.yaml", weak / "labels.csv")
                yield Step(self.name(f"encoder-s{seed}"), "weak", argv, weak, (self.name("weak", "tile"),), inputs)
            for arm in self.data.arms:
                yield from self._weak_arm(arm, seed)

    def _chosen(self, seed: int) -> tuple[str, ...]:
        return "--device", self.device, "--seed", str(seed), "--quiet"

    def _tile(self, track: str, folder: Path) -> Step:
        needs = tuple(s.name for s in self.make()[-1:])
        argv = (*WSIPIPE, "tile", "slides", "--config", "tile.yaml", "--quiet")
        clears = (folder / "stores",)
        return Step(self.name(track, "tile"), track, argv, folder, needs, (folder / "tile.yaml",), clears)

    def _weak_arm(self, arm: Arm, seed: int) -> Iterator[Step]:
        """Fit, raw masks, segmenter and its maps of the test slides."""
        weak, run = self.place.weak, run_name(arm, seed)
        fit, needs = self.name(run, "fit"), [self.name("weak", "tile")]
        argv = (*WSIPIPE, "pseudolabel", "--config", f"{arm.name}.yaml", "--name", run, *self._chosen(seed))
        if self.data.sections["pretrain"] and arm.options.get("pretrain", True):
            argv += ("--weights", f"runs/encoder-s{seed}")
            needs.append(self.name(f"encoder-s{seed}"))
        yield Step(fit, "weak", argv, weak, tuple(needs), (weak / f"{arm.name}.yaml", weak / "labels.csv"))
        raw = self.name(run, "raw")
        argv = (*WSIPIPE[:1], str(RAW_MASKS), "stores", run, f"raw/{run}")
        yield Step(raw, "weak", argv, weak, (fit,))
        classes = [word for c in self.data.classes for word in ("--class", c)]
        argv = (*WSIPIPE, "masks", "import", "--annotations", f"raw/{run}", *classes, "--name", f"{run}-raw", "--quiet")
        yield Step(self.name(run, "import"), "weak", argv, weak, (raw,))
        yield from self._segment("weak", weak, run, f"{run}-segmenter", (fit,), seed)

    def _segment(
        self,
        track: str,
        folder: Path,
        masks: str,
        name: str,
        needs: tuple[str, ...],
        seed: int,
        start: tuple[str, ...] = (),
    ) -> Iterator[Step]:
        """Train the network on `masks`, then map the test slides."""
        chosen = ("--config", "segment.yaml", "--name", name, *self._chosen(seed))
        trained = self.name(name, "train")
        argv = (*WSIPIPE, "segment", "--masks", masks, "--labels", "labels.csv", *chosen, *start)
        clears = (folder / "runs" / name,)
        yield Step(trained, track, argv, folder, needs, (folder / "segment.yaml",), clears)
        stores = [f"stores/{i}.zarr" for i in self.slides_of("test")]
        argv = (*WSIPIPE, "segment", *stores, "--stitch", "--checkpoint", f"runs/{name}/model.json", *chosen)
        yield Step(self.name(name, "map"), track, argv, folder, (trained,))

    def slides_of(self, split: str) -> list[str]:
        """Ids of the slides of a split."""
        rows = self.data.label_rows(self.place.made, self.fold)
        return sorted({r["slide_id"] for r in rows if (r["split"] or "train") == split})

    def supervised(self) -> Iterator[Step]:
        """The bound: the same network, start and budget, on the truth of the training slides.

        `segment` starts from the encoder of the fit that painted the masks; the bound is given that of the last method,
        so that the segmenter of that method and the bound differ in nothing but their masks.
        """
        folder, last = self.place.supervised, self.data.arms[-1]
        yield self._tile("supervised", folder)
        classes = [word for c in self.data.classes for word in ("--class", c)]
        argv = (*WSIPIPE, "masks", "import", "--annotations", self.data.truth(self.place.made), *classes)
        argv += ("--map", self.data.values["truth_map"], "--name", "truth", "--quiet")
        imported = self.name("supervised", "import")
        yield Step(imported, "supervised", argv, folder, (self.name("supervised", "tile"),))
        for seed in range(self.data.seeds):
            run = run_name(last, seed)
            needs = (imported, self.name(run, "fit"))
            start = ("--weights", str(self.place.weak / "runs" / run))
            yield from self._segment("supervised", folder, "truth", f"supervised-s{seed}", needs, seed, start)

    def judge(self) -> Iterator[Step]:
        """Comparison with the truth, the last thing that is done."""
        for seed in range(self.data.seeds):
            for arm in self.data.arms:
                run = run_name(arm, seed)
                for split in SPLITS:
                    yield self._judge("weak", f"{run}-raw", split, self.name(run, "import"))
                    yield self._judge("weak", run, split, self.name(run, "fit"))
                yield self._judge("weak", f"{run}-segmenter", "test", self.name(f"{run}-segmenter", "map"))
            name = f"supervised-s{seed}"
            yield self._judge("supervised", name, "test", self.name(name, "map"))

    def _judge(self, track: str, masks: str, split: str, after: str) -> Step:
        folder: Path = self.place.top / track
        out = self.place.judged / split
        argv = (*WSIPIPE, "evaluate", "--masks", masks, "--truth", self.data.truth(self.place.made))
        argv += ("--truth-map", self.data.values["truth_map"], "--split", split, "--labels", "labels.csv")
        argv += ("--runs", str(out), "--quiet")
        return Step(self.name("judge", split, masks), "judge", argv, folder, (after,), clears=(out / masks,))


def run_name(arm: Arm, seed: int) -> str:
    """The name of masks and run folder."""
    return f"{arm.name}-s{seed}"


def _write_yaml(path: Path, content: object) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=True))
