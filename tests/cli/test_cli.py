"""The command line: paths on stdout, everything else on stderr, one line for each mistake, and the right exit code."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from support.tiny_chain import BIN, LABELS, SLIDES, Chain, add_broken_slide, assert_refused, wsipipe

from wsipipe.store import SlideStore

# --- the chain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["tile", "pseudolabel", "segment"])
def test_each_bare_command_ends_well_and_prints_nothing_but_the_stores(chain: Chain, command: str):
    result = chain.results[command]
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [f"stores/{name}.zarr" for name in sorted(SLIDES)]
    assert result.stderr  # progress and log


def test_the_chain_leaves_what_the_readme_says(chain: Chain):
    for name in SLIDES:
        store = SlideStore(chain.folder / "stores" / f"{name}.zarr")
        assert {"tissue", "camel", "unet"} <= set(store.names("labels"))
        assert {"camel", "unet"} <= set(store.names("scores"))
        assert store.attributes("labels", "unet")["classes"] == ["tumour"]
    runs = chain.folder / "runs"
    for file in ("tile/tile.csv", "camel/fit.json", "camel/labels.csv", "camel/pseudolabel.csv", "unet/model.json"):
        assert (runs / file).is_file()
    assert (runs / "unet" / "model.safetensors").is_file()
    assert sorted(p.name for p in (chain.folder / "slides").iterdir()) == sorted(f"{n}.svs" for n in SLIDES)


def test_a_slide_without_a_row_is_mapped_all_the_same_with_a_note(chain: Chain):
    assert "1 stores have no row in labels.csv: scored, not trained on" in chain.results["pseudolabel"].stderr
    assert "stores/extra.zarr" in chain.results["segment"].stdout


def test_run_again_everything_is_skipped_and_the_same_paths_are_printed(here: Path, chain: Chain):
    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file() and p.suffix != ".csv"}

    before = stamps()
    for name, command in {
        "tile": ("tile", *sorted(Path("slides").glob("*.svs"))),
        "pseudolabel": ("pseudolabel",),
        "segment": ("segment", "--stitch"),
    }.items():
        again = wsipipe(*command)
        assert again.exit_code == 0, again.stderr
        assert again.stdout == chain.results[name].stdout
    for ledger in ("tile/tile", "camel/pseudolabel", "unet/segment"):
        with (here / "runs" / f"{ledger}.csv").open() as f:
            assert [r["status"] for r in csv.DictReader(f)] == ["skipped"] * 3
    assert stamps() == before


def test_run_does_the_same_as_the_three_commands(here: Path, chain: Chain):
    result = wsipipe("run", "slides")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == chain.results["segment"].stdout
    with (here / "runs/camel/pseudolabel.csv").open() as f:
        assert [r["status"] for r in csv.DictReader(f)] == ["skipped"] * 3


def test_labels_with_a_bom_and_semicolons_say_the_same(here: Path):
    (here / "labels.csv").write_text("\ufeffslide ; tumour\n pos.svs ; 1\n neg ; 0\n", encoding="utf-8")
    result = wsipipe("pseudolabel")
    assert result.exit_code == 0, result.stderr
    assert "fitted before with the same inputs" in result.stderr


def test_quiet_leaves_nothing_but_the_paths(here: Path, chain: Chain):
    result = wsipipe("pseudolabel", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == chain.results["pseudolabel"].stdout


def test_on_a_terminal_bars_are_drawn_and_stdout_still_holds_only_paths(here: Path, chain: Chain, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    result = wsipipe("segment", "--stitch", "--name", "drawn")
    assert result.exit_code == 0
    assert result.stdout == chain.results["segment"].stdout
    assert "\x1b[" in result.stderr
    assert "stitch" in result.stderr


def test_chosen_stores_only(here: Path):
    result = wsipipe(
        "segment", "--stitch", "--checkpoint", "runs/unet/model.json", "--name", "again", "stores/neg.zarr"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "stores/neg.zarr\n"
    assert "again" in SlideStore(here / "stores/neg.zarr").names("labels")
    assert "again" not in SlideStore(here / "stores/pos.zarr").names("labels")


def test_segment_without_stitch_prints_the_checkpoint(here: Path):
    result = wsipipe("segment")
    assert (result.exit_code, result.stdout) == (0, "runs/unet/model.json\n")


def test_other_inputs_under_a_name_are_refused_and_overwrite_replaces_them(here: Path):
    assert_refused(wsipipe("segment", "--stitch", "--lr", "0.01"), 1, "--name", "--overwrite")
    assert_refused(wsipipe("pseudolabel", "--set", "prevalence=0.3"), 1, "--name", "--overwrite")
    assert wsipipe("segment", "--stitch", "--lr", "0.01", "--overwrite").exit_code == 0
    assert wsipipe("pseudolabel", "--set", "prevalence=0.3", "--overwrite").exit_code == 0
    result = wsipipe("tile", "slides", "--quality", "50")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "wsipipe: 3 of 3 failed (allowed: 0):" in result.stderr
    assert wsipipe("tile", "slides", "--quality", "50", "--overwrite").exit_code == 0


def test_info_describes_a_store(here: Path):
    result = wsipipe("info", "stores/pos.zarr")
    assert result.exit_code == 0
    for fragment in ("stores/pos.zarr", "640 x 512 px", "0.5 um/px", "camel", "unet", "128 px every 128 px"):
        assert fragment in result.stdout


# --- bad input ---------------------------------------------------------------------------------------------------


def test_nothing_to_tile(empty: Path):
    assert_refused(wsipipe("tile", "none.svs"), 2, "none.svs: no such file or folder")
    assert_refused(wsipipe("tile", "slides/*.svs"), 2, "slides/*.svs: matches no file")
    (empty / "slides").mkdir()
    (empty / "slides" / "notes.txt").write_text("x")
    assert_refused(wsipipe("tile", "slides"), 2, "slides: no slides in this folder")
    assert not (empty / "stores").exists()


def test_an_encoder_pretrained_by_itself_is_given_to_pseudolabel(here: Path):
    options = ("--encoder", "resnet18_quarter", "--input-px", "32", "--labels", "labels.csv", "--steps", "3")
    made = wsipipe("pretrain", *options)
    assert (made.exit_code, made.stdout) == (0, "runs/pretrain/model.json\n")
    assert "loss " in made.stderr
    assert " s/step" in made.stderr
    assert_refused(wsipipe("pretrain", *options, "--seed", "1"), 1, "choose another --name", "--overwrite")
    weights = ("--weights", "runs/pretrain", "--name", "own")
    assert_refused(wsipipe("pseudolabel", *weights, "--encoder", "resnet18"), 1, "leave --encoder out")
    result = wsipipe("pseudolabel", *weights, "--set", "warm_steps=0")
    assert result.exit_code == 0, result.stderr
    assert "features   resnet18_quarter-" in wsipipe("info", "stores/pos.zarr").stdout


def test_stages_before_tile_say_what_to_run_first(empty: Path):
    for command in (("pretrain",), ("pseudolabel",), ("segment", "--stitch"), ("evaluate", "--truth", "truth")):
        assert_refused(wsipipe(*command), 2, "stores: contains no stores; make some with: wsipipe tile")
    assert_refused(wsipipe("info", "none.zarr"), 1, "none.zarr: not a store (no zarr.json)")


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (LABELS, ("--classes", "stroma"), "line 2: unknown class tumour; the classes are stroma"),
        (LABELS + "ghost,tumour\n", (), "line 4: no store for slide ghost; tile the slide or remove the row"),
        ("slide_id,label\npos,tumour\nneg,tumour\n", (), "have the same label"),
        ("slide_id,label\npos,\nneg,\n", (), "no row has a class"),
        ("name,label\npos,tumour\n", (), "no column slide_id"),
        ("", (), "the file is empty"),
        (None, (), "no such file; set it with --labels"),
        (LABELS, ("--set", "selector_stps=3"), "camel.selector_stps: unknown key; did you mean 'selector_steps'?"),
        (LABELS, ("--set", "selector_steps=many"), "camel.selector_steps: expected int, found 'many'"),
        (LABELS, ("--set", "prevalence"), "--set prevalence: expected KEY=VALUE"),
        (LABELS, ("--name", "../up"), "name '../up': use letters"),
        (LABELS, ("--device", "gpu"), "device 'gpu': expected auto, cpu or cuda:N"),
        (LABELS, ("--encoder", "resnet18_quater", "--name", "n"), "'resnet18_quater' is not known to timm"),
    ],
)
def test_bad_labels_and_parameters_stop_before_any_work(here: Path, labels: str | None, arguments, message: str):
    (here / "labels.csv").unlink()
    if labels is not None:
        (here / "labels.csv").write_text(labels)
    assert_refused(wsipipe("pseudolabel", *arguments), 2, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile: {pach_px: 64}\n", "pipeline.yaml: tile.pach_px: unknown key; did you mean 'patch_px'?"),
        ("tiles: {patch_px: 64}\n", "pipeline.yaml: tiles: unknown key; did you mean 'tile'?"),
        ("tile: {patch_px: big}\n", "pipeline.yaml: tile.patch_px: expected int, found 'big'"),
        ("tile: {mpp: 100}\n", "pipeline.yaml: tile.mpp: 100.0 um/px is outside 0.05..20"),
        ("pseudolabel: {camel: 3}\n", "pipeline.yaml: pseudolabel.camel: expected keys below it, found 3"),
        ("tile: [\n", "pipeline.yaml: not valid YAML"),
    ],
)
def test_a_bad_pipeline_yaml_stops_every_command(empty: Path, text: str, message: str):
    (empty / "pipeline.yaml").write_text(text)
    for command in (("tile", "x.svs"), ("pseudolabel",), ("segment",), ("evaluate",), ("run",)):
        assert_refused(wsipipe(*command), 2, message)


def test_an_unknown_method(here: Path):
    flag = wsipipe("pseudolabel", "--method", "magic")
    assert flag.exit_code == 2
    assert "'magic' is not" in flag.stderr
    assert "camel" in flag.stderr
    (here / "pipeline.yaml").write_text("pseudolabel: {method: magic}\n")
    assert_refused(wsipipe("pseudolabel"), 2, "pipeline.yaml: method 'magic' is not known; choose from")


def test_a_folder_of_another_kind_is_no_store(empty: Path):
    zarr.open_group(str(empty / "other.zarr"), mode="w")
    for command in (("info",), ("segment", "--stitch"), ("pseudolabel",)):
        assert_refused(wsipipe(*command, "other.zarr"), 1, "other.zarr: a Zarr group, but not a wsipipe store")


def test_segment_says_what_it_lacks(here: Path, tmp_path: Path):
    assert_refused(wsipipe("segment", "--masks", "drs"), 1, "no store has labels/drs", "wsipipe pseudolabel")
    assert_refused(wsipipe("segment", "--checkpoint", "runs/unet"), 2, "--checkpoint without --stitch")
    assert_refused(
        wsipipe("segment", "--stitch", "--checkpoint", "none.json"), 1, "none.json: no checkpoint here; train one with"
    )
    assert_refused(wsipipe("segment", "--stitch", "--window", "100"), 2, "100 px is not a multiple of 32")
    assert_refused(wsipipe("segment", "--architecture", "unett", "--name", "n"), 2, "'unett' is not known; choose one")


def test_evaluate_says_what_it_lacks(here: Path):
    assert_refused(wsipipe("evaluate"), 2, "evaluate.truth: no truth given; name a folder of masks with --truth")
    assert_refused(wsipipe("evaluate", "--truth", "nowhere"), 2, "no mask for any of the 3 slides")
    assert_refused(wsipipe("evaluate", "--truth", "truth", "--truth-map", "0=0"), 2, "values 1 that have no meaning")
    assert_refused(
        wsipipe("masks", "import", "--annotations", "no", "--class", "a", "--name", "m"), 2, "no mask for any"
    )


@pytest.mark.parametrize(
    "arguments", [("tile",), ("tile", "--no-such", "x"), ("nothing",), ("tile", "x", "--patch", "a"), ("info",)]
)
def test_bad_usage_is_2_and_says_how_to_get_help(empty: Path, arguments):
    result = wsipipe(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert "--help" in result.stderr or "-h" in result.stderr


# --- failures within what is allowed -----------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("1", 0), ("50%", 0), ("49%", 1), ("1%", 1), ("100%", 0)])
def test_max_failed_decides_the_exit_code_and_the_failed_slide_is_named(empty: Path, fresh: Path, allowed, code):
    (empty / "broken.svs").write_bytes(b"no slide")
    result = wsipipe("tile", fresh / "slides/pos.svs", "broken.svs", "--max-failed", allowed, "--patch", "128")
    assert result.exit_code == code
    assert result.stdout == "stores/pos.zarr\n"
    assert f"wsipipe: 1 of 2 failed (allowed: {allowed}): broken; the reasons are above and in " in result.stderr
    assert result.stderr.count("ERROR broken: failed: broken.svs: no reader knows this format") == 1
    assert "Traceback" not in result.stderr
    with (empty / "runs/tile/tile.csv").open() as f:
        assert [(r["item"], r["status"]) for r in csv.DictReader(f)] == [("pos", "done"), ("broken", "failed")]


def test_a_malformed_max_failed_is_refused(empty: Path):
    assert_refused(wsipipe("tile", "x.svs", "--max-failed", "few"), 2, "run.max_failed: 'few' is neither a number")


def test_labels_of_a_slide_that_failed_to_tile_are_left_out_with_a_warning(here: Path):
    add_broken_slide(here)
    tiled = wsipipe("tile", "slides", "--max-failed", "1")
    assert tiled.exit_code == 0
    result = wsipipe("pseudolabel")
    assert result.exit_code == 0, result.stderr
    assert "labels.csv: skipped 1 of 3 rows: their slides could not be tiled" in result.stderr
    assert "fitted before with the same inputs" in result.stderr  # it is the same fit as without the row
    (here / "labels.csv").write_text((here / "labels.csv").read_text() + "ghost,tumour\n")
    assert_refused(wsipipe("pseudolabel"), 2, "no store for slide ghost")


SCRIPT = """\
set -euo pipefail
wsipipe tile slides/*.svs --max-failed 1 | tee tiled.txt
wsipipe pseudolabel --labels labels.csv | xargs ls -d > labelled.txt
wsipipe segment --stitch | while read -r store; do test -d "$store/labels/unet"; echo "$store" >> mapped.txt; done
"""


def test_a_shell_script_survives_one_bad_slide(tmp_path: Path, fresh: Path):
    folder = Path(shutil.copytree(fresh, tmp_path / "work"))
    add_broken_slide(folder)
    env = {**os.environ, "PATH": f"{BIN.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stores = [f"stores/{name}.zarr" for name in sorted(SLIDES)]
    assert done.stdout.splitlines() == stores
    for file in ("tiled.txt", "labelled.txt", "mapped.txt"):
        assert (folder / file).read_text().splitlines() == stores
    assert "broken" in done.stderr
    assert "Traceback" not in done.stderr


# --- interruption and surprises ----------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[..., None]:
    def stage(*args: object, **kwargs: object) -> None:
        raise error

    return stage


def test_ctrl_c_is_130_and_one_line(empty: Path, fresh: Path, monkeypatch):
    monkeypatch.setattr("wsipipe.tiling.stage.run", raising(KeyboardInterrupt()))
    result = wsipipe("tile", fresh / "slides/pos.svs")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "wsipipe: interrupted; run the same command again to continue\n"


def test_ctrl_c_while_a_slide_is_written_leaves_no_store_and_the_next_run_makes_it(empty, fresh, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("wsipipe.tiling.stage.write_shard", raising(KeyboardInterrupt()))
        assert wsipipe("tile", fresh / "slides/pos.svs").exit_code == 130
    assert [p.name for p in (empty / "stores").iterdir()] == [".pos.zarr.partial"]
    assert wsipipe("tile", fresh / "slides/pos.svs").stdout == "stores/pos.zarr\n"
    assert [p.name for p in (empty / "stores").iterdir()] == ["pos.zarr"]


def test_a_full_disk_is_one_line(empty: Path, fresh: Path, monkeypatch):
    monkeypatch.setattr("wsipipe.tiling.stage.run", raising(OSError(28, "No space left on device")))
    assert_refused(wsipipe("tile", fresh / "slides/pos.svs"), 1, "No space left on device")


def test_a_programming_mistake_is_not_hidden(empty: Path, fresh: Path, monkeypatch):
    monkeypatch.setattr("wsipipe.tiling.stage.run", raising(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        wsipipe("tile", fresh / "slides/pos.svs")
