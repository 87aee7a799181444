"""The commands: each reads its settings, runs a stage and reports; giants are imported where they are used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

import wsipipe
from wsipipe.cli.options import STORES, assigned, common, dask, options, settings_of
from wsipipe.cli.outcome import Commands, finish, reporting
from wsipipe.config.options import EvaluateConfig
from wsipipe.errors import ConfigError
from wsipipe.labels import LabelTable, read_labels
from wsipipe.pipeline import Settings, map_slides, run_chain
from wsipipe.pseudolabel.registry import chosen
from wsipipe.runtime.memory import share_heap


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(wsipipe.__version__, prog_name="wsipipe")
def main() -> None:
    r"""Weak labels on whole-slide images in, pixel maps out.

    \b
    wsipipe tile slides/*.svs                  slides -> stores
    wsipipe pseudolabel --labels labels.csv    weak labels -> patch-level masks
    wsipipe segment --stitch                   masks -> network -> slide maps

    Every option may also stand in ./pipeline.yaml; a flag wins over the file. Made paths go to stdout, everything else
    to stderr. Exit codes: 0 done, 1 something failed, 2 bad usage, configuration or labels.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # threads that wait asleep: on a shared machine a spinning one holds up all others (20 times slower was measured)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@main.command()
@click.argument("slide", nargs=-1, required=True)
@options("tile")
@dask
@common
def tile(slide: tuple[str, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Turn slides (files, DICOM folders, folders of slides, manifests in CSV) into stores of patches."""
    from wsipipe.slides.probe import Prober

    settings = settings_of(call)
    share_heap()
    with reporting(quiet) as progress, Prober().start() as prober:  # it starts while all the rest is loaded
        from wsipipe.pipeline import slides_of
        from wsipipe.tiling.stage import tile_slides

        slides = slides_of(slide, settings.tile)
        report, stores = tile_slides(slides, settings.tile, settings.run, progress, overwrite, prober)
        if not quiet:
            click.echo(report.table(("patches", "copied", "corrupt", "seconds")), err=True)
    finish(report, stores)


@main.command()
@STORES
@options("pretrain")
@common
def pretrain(store: tuple[Path, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Pretrain an encoder by self-supervision on the patches of STOREs (default: all), for --weights of pseudolabel."""
    settings = settings_of(call)
    from wsipipe.pretrain.stage import pretrain as stage

    with reporting(quiet) as progress:
        report, made = stage(_stores(store, settings), settings.pretrain, settings.run, progress, overwrite)
    finish(report, made)


@main.command()
@STORES
@options("pseudolabel")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="[NAME.]KEY=VALUE",
    help="a parameter of the method, or of method or refinement NAME (repeat)",
)
@common
def pseudolabel(
    store: tuple[Path, ...], assignments: tuple[str, ...], overwrite: bool, quiet: bool, **call: Any
) -> None:
    """Turn weak labels into patch-level masks: labels/<name> and scores/<name> of STOREs (default: all)."""
    settings = settings_of(call)
    settings = settings_of(call, pseudolabel=assigned(assignments, chosen(settings.pseudolabel.method)))
    from wsipipe.pseudolabel.stage import pseudolabel as stage

    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        report, stores = stage(
            paths, settings.pseudolabel, settings.sections, settings.run, progress, overwrite, settings.pretrain
        )
    finish(report, stores)


@main.command()
@STORES
@options("segment")
@click.option("--stitch", is_flag=True, help="map every slide after training")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="predict with this model.json; nothing is trained")
@common
def segment(
    store: tuple[Path, ...], stitch: bool, checkpoint: Path | None, overwrite: bool, quiet: bool, **call: Any
) -> None:
    """Train a network on labels/<labels> and stitch its maps over STOREs (default: all).

    With --checkpoint a STORE may also be a slide that was never tiled: that is done first.
    """
    settings = settings_of(call)
    if checkpoint and not stitch:
        raise ConfigError("--checkpoint without --stitch leaves nothing to do; add --stitch to map the slides")
    from wsipipe.segment.stage import segment as stage

    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        if checkpoint:
            report, made = map_slides(paths, checkpoint, settings, progress, overwrite)
        else:
            report, made = stage(
                paths, settings.segment, settings.run, stitch=stitch, progress=progress, overwrite=overwrite
            )
    finish(report, made)


@main.command()
@STORES
@options("evaluate")
@common
def evaluate(store: tuple[Path, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Compare labels/<labels> of STOREs (default: all) with truth: masks, or annotations of QuPath or ASAP.

    Prints a table; CSV, JSON and a figure go to runs/<labels>/.
    """
    from wsipipe.evaluate.figure import write_figure
    from wsipipe.evaluate.stage import judge
    from wsipipe.evaluate.tables import text_table, write_tables

    settings = settings_of(call)
    config = settings.evaluate
    table, folder = _labels(config, settings), Path(settings.run.runs) / config.labels
    with reporting(quiet) as progress:
        result = judge(_stores(store, settings), config, settings.run, table, progress)
        write_tables(result, folder)
        write_figure(result, folder / "evaluation.png")
    click.echo(text_table(result))
    sys.exit(result.report.exit_code)


@main.command()
@STORES
@click.option(
    "--labels", "names", multiple=True, help="masks or maps to compare, as a,b,c; default: all that every store has"
)
@options("evaluate", "labels", "detections", "nms_um")
@common
def compare(store: tuple[Path, ...], names: tuple[str, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Put several masks or maps of STOREs (default: all) side by side, with the truth if one is given.

    Prints a table; CSV and a picture of the same places by each go to runs/compare/.
    """
    from wsipipe.evaluate import compare as side_by_side
    from wsipipe.evaluate.examples import write_examples

    settings = settings_of(call)
    config, folder = settings.evaluate, Path(settings.run.runs) / "compare"
    with reporting(quiet) as progress:
        table, stores = _labels(config, settings), _stores(store, settings)
        wanted = [name.strip() for text in names for name in text.split(",")]
        found = side_by_side.compare(stores, wanted, config, settings.run, table, progress)
        side_by_side.write_comparison(found, folder / "comparison.csv")
        write_examples(found.paths, found.names, found.classes, config, folder / "comparison.png")
    click.echo(side_by_side.text_table(found))
    sys.exit(found.exit_code)


@main.command()
@STORES
@options("export")
@common
def export(store: tuple[Path, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Write labels/<labels> of STOREs (default: all) as OME-TIFF, QuPath GeoJSON, DICOM SEG, PNG or table of areas."""
    from wsipipe.export.stage import export_stores

    settings = settings_of(call)
    with reporting(quiet) as progress:
        report, made = export_stores(_stores(store, settings), settings.export, settings.run, progress, overwrite)
    finish(report, made)


@main.group()
def labels() -> None:
    """Masks that a user has."""


@labels.command("import")
@STORES
@click.option(
    "--masks",
    required=True,
    help="folder with <slide_id>.png, .tif (masks), .geojson (QuPath) or .xml (ASAP), or a pattern with {slide_id}",
)
@click.option(
    "--map",
    "value_map",
    default="",
    help="what mask values or annotation names mean, e.g. 0=ignore,1=0,2=tumour or Tumor=tumour,outside=ignore",
)
@click.option("--class", "classes", multiple=True, required=True, help="class name, in mask order (repeat)")
@click.option("--name", required=True, help="name of the masks in the stores: labels/<name>")
@common
def import_(
    store: tuple[Path, ...],
    masks: str,
    value_map: str,
    classes: tuple[str, ...],
    name: str,
    overwrite: bool,
    quiet: bool,
    **call: Any,
) -> None:
    """Write masks or annotations in the slide's own frame into labels/<name> of STOREs (default: all)."""
    from wsipipe.import_masks import import_masks

    settings = settings_of(call)
    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        report, stores = import_masks(
            paths, masks, value_map, classes, name, run=settings.run, overwrite=overwrite, progress=progress
        )
    finish(report, stores)


@main.command()
@click.argument("slide", nargs=-1)
@dask
@common
def run(slide: tuple[str, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Run the whole chain of pipeline.yaml: tile, pseudolabel, segment --stitch. Everything is checked first."""
    settings = settings_of(call, run={"slides": slide} if slide else {})
    with reporting(quiet) as progress:
        report, stores = run_chain(settings, progress, overwrite)
    finish(report, stores)


@main.command()
def config() -> None:
    """Print a pipeline.yaml that holds every option at its default, with what it means."""
    from wsipipe.cli.template import template

    click.echo(template(), nl=False)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Say what a store holds."""
    from wsipipe.store.info import describe

    click.echo(describe(store))


@main.command()
@STORES
@click.option("--decode", is_flag=True, help="decode every chunk too: finds what was damaged in the slide already")
@common
def verify(store: tuple[Path, ...], decode: bool, overwrite: bool, quiet: bool, **call: Any) -> None:
    """Read every chunk of STOREs (default: all) that must exist, check every checksum, and name what is damaged."""
    from wsipipe.store.verify import verify_stores

    settings = settings_of(call)
    with reporting(quiet) as progress:
        report, stores = verify_stores(_stores(store, settings), settings.run, decode, progress)
    finish(report, stores)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--quiet", "-q", is_flag=True, help="only warnings and errors on stderr")
def demo(folder: Path, quiet: bool) -> None:
    """Make a small cohort of procedural slides, run the chain on it in FOLDER and judge the maps."""
    from wsipipe.demo.demo import run_demo

    with reporting(quiet) as progress:
        table = run_demo(folder, progress)
    click.echo(table)


def _stores(given: tuple[Path, ...], settings: Settings) -> list[Path]:
    from wsipipe.store import find_stores

    return list(given) or find_stores(Path(settings.run.stores))


def _labels(config: EvaluateConfig, settings: Settings) -> LabelTable | None:
    """The labels that say split, patient and weak label of slides; None if none were given and there are none."""
    path = Path(config.labels_csv or settings.pseudolabel.labels)
    if not (config.labels_csv or config.split or path.is_file()):
        return None
    return read_labels(path, to_fit=False)
