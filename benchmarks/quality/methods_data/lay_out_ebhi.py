"""Lay out EBHI-Seg as slides with one label each: OUT/slides (links), OUT/labels.csv and OUT/truth (class indices).

    python benchmarks/quality/methods_data/lay_out_ebhi.py EBHI OUT --test-share 0.33

EBHI has a folder a class with image/ and label/ (grey, above 127 where the class's tissue is). A case, the first part
of a file's name, is the patient; cases are divided so that each class has some on both sides.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import imagecodecs
import numpy as np

CLASSES = {
    "Adenocarcinoma": "adenocarcinoma",
    "High-grade IN": "high-grade",
    "Low-grade IN": "low-grade",
    "Normal": "normal",
    "Polyp": "polyp",
    "Serrated adenoma": "serrated",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ebhi", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--test-share", type=float, default=0.33)
    args = parser.parse_args()
    for folder in ("slides", "truth"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    images = [(folder, p) for folder in CLASSES for p in sorted((args.ebhi / folder / "image").glob("*.png"))]
    test = divide([(CLASSES[f], case_of(p)) for f, p in images], args.test_share)
    with (args.out / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "label", "patient_id", "split"])
        for folder, path in images:
            slide_id = f"{CLASSES[folder]}_{path.stem}"
            (args.out / "slides" / f"{slide_id}.png").symlink_to(path.resolve())
            mask = imagecodecs.imread(path.parents[1] / "label" / path.name)
            mask = mask if mask.ndim == 2 else mask[..., 0]
            index = list(CLASSES).index(folder) + 1
            truth = np.where(mask > 127, index, 0).astype(np.uint8)
            (args.out / "truth" / f"{slide_id}.png").write_bytes(imagecodecs.png_encode(truth))
            case = case_of(path)
            writer.writerow([slide_id, CLASSES[folder], case, "test" if case in test else "train"])


def case_of(path: Path) -> str:
    """The case that an image is of."""
    return path.stem.partition("-")[0]


def divide(images: list[tuple[str, str]], share: float) -> set[str]:
    """Cases to test on, of images (class, case): of each class about `share` of its images, never all of its cases."""
    of_class: dict[str, list[str]] = {}
    for name, case in images:
        of_class.setdefault(name, []).append(case)
    test: set[str] = set()
    for cases in sorted(of_class.values(), key=lambda cases: len(set(cases))):
        for case in sorted(set(cases), key=lambda case: (cases.count(case), case)):
            if sum(c in test for c in cases) >= share * len(cases):
                break
            if all(set(others) - test - {case} for others in of_class.values()):
                test.add(case)
    return test


if __name__ == "__main__":
    main()
