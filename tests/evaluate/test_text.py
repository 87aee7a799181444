"""Tables for people: what stands in them, on how many columns, and a dash for what is undefined."""

from __future__ import annotations

import dataclasses

import pytest
from support.evaluations import evaluation_of

from wsipipe.evaluate.text import text_table


def test_metrics_and_coverage_without_scores() -> None:
    assert text_table(evaluation_of()).splitlines() == [
        "answer      class    IoU   Dice  precision  recall",
        "----------  -----  -----  -----  ---------  ------",
        "net         a      0.364  0.533      0.667   0.444",
        "net         b          -      -          -       -",
        "all tissue  a      0.429  0.600      0.429   1.000",
        "",
        "net: all classes together",
        "metric                                           value",
        "-----------------------------------------------  -----",
        "mean IoU                                         0.476",
        "mean IoU without background                      0.364",
        "frequency-weighted IoU                           0.492",
        "IoU weighted by 1 / log frequency (HistoSegNet)  0.472",
        "pixel accuracy                                   0.667",
        "",
        "no scores of this name in the stores: no slide AUC, no calibration, no FROC",
        "",
        "scored: 105 px of 2 slides, where the truth is not ignore",
        "glass (tissue mask), background in truth and answer: 19.0 % of the scored px",
        "classes drawn on glass, not scored: 5 px (10.0 % of those drawn)",
        "ignore (255) in the masks, scored as background: 4.8 % of the scored px",
        "-: undefined",
    ]


def test_intervals_and_scores() -> None:
    lines = text_table(evaluation_of(9)).splitlines()
    assert lines[6:11] == [
        "net: 95 % intervals, bootstrap over 9 slides",
        "class           IoU          Dice     precision        recall",
        "-----  ------------  ------------  ------------  ------------",
        "a      0.364..0.364  0.533..0.533  0.667..0.667  0.444..0.444",
        "b                 -             -             -             -",
    ]
    assert lines[13].split() == ["metric", "value", "95", "%", "interval"]
    assert lines[15].startswith("mean IoU                                         0.476   0.4")
    assert lines[21:] == [
        "net: scores of slides (truth: labels) and of tissue pixels",
        "class  slide AUC  95 % interval  ECE of pixels  ECE of slides",
        "-----  ---------  -------------  -------------  -------------",
        "a          0.750   0.500..1.000          0.100          0.497",
        "b              -              -          0.100          0.529",
        "ECE: expected calibration error, 15 bins",
        "",
        "net: sensitivity at false positives per slide (FROC of Camelyon16)",
        "class   0.25    0.5      1      2      4      8   mean",
        "-----  -----  -----  -----  -----  -----  -----  -----",
        "a      0.500  0.500  0.500  0.500  0.500  0.500  0.500",
        "b          -      -      -      -      -      -      -",
        "lesions: a 18 (9 more below 275 um), b 0 (0 more below 275 um)",
        "",
        "scored: 105 px of 2 slides, where the truth is not ignore",
        "glass (tissue mask), background in truth and answer: 19.0 % of the scored px",
        "classes drawn on glass, not scored: 5 px (10.0 % of those drawn)",
        "ignore (255) in the masks, scored as background: 4.8 % of the scored px",
        "-: undefined",
    ]


def test_the_interval_of_froc() -> None:
    result = evaluation_of(9)
    assert result.froc is not None
    curve = dataclasses.replace(result.froc["a"], interval=(0.25, 0.75))
    lines = text_table(dataclasses.replace(result, froc={**result.froc, "a": curve})).splitlines()
    assert "class   0.25    0.5      1      2      4      8   mean  95 % interval" in lines
    assert "a      0.500  0.500  0.500  0.500  0.500  0.500  0.500   0.250..0.750" in lines
    assert "b          -      -      -      -      -      -      -              -" in lines


def test_few_groups_are_listed() -> None:
    lines = text_table(dataclasses.replace(evaluation_of(3), groups=("p", "q", "r"))).splitlines()
    at = lines.index("net: Dice of 3 patients; intervals need 8 or more")
    assert [line.split() for line in lines[at + 1 : at + 6]] == [
        ["patient", "a", "b"],
        ["-------", "-----", "-"],
        ["s0", "0.533", "-"],
        ["s1", "0.533", "-"],
        ["s2", "0.533", "-"],
    ]
    assert not any("95 %" in line for line in lines)


@pytest.mark.parametrize("n", [0, 3, 9])
@pytest.mark.parametrize("width", [0, 80, 50])
def test_no_line_is_longer_than_a_terminal(n: int, width: int) -> None:
    tables = text_table(evaluation_of(n), width).split("\nscored: ")[0].splitlines()
    assert max(map(len, tables)) <= (80 if width != 50 else 75), "a legend is broken by the command line"
