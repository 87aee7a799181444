"""The commands: each reads its settings, runs one stage and reports; giants are imported where they are used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from wsipipe.cli.help import FIRST, OUTPUT, Command, Option
from wsipipe.cli.options import OVERWRITE, STORES, assigned, common, options, settings_of
from wsipipe.cli.outcome import columns, finish, reporting, show, working
from wsipipe.errors import ConfigError
from wsipipe.export import formats
from wsipipe.pipeline import Settings, map_slides, run_chain, slides_of
from wsipipe.pseudolabel.registry import parse_methods


@click.command(cls=Command)
@click.argument("slide", nargs=-1, required=True)
@options("tile")
@common("workers", "dask")
@OVERWRITE
def tile(slide: tuple[str, ...], **call: Any) -> None:
    """Turn slides into patch stores, one <slide_id>.zarr per slide.

    SLIDE: a slide file, a DICOM folder, a folder of slides, or a CSV manifest with a column `slide`.
    """
    from wsipipe.runtime.memory import share_heap
    from wsipipe.slides.probe import Prober

    settings = settings_of(call)
    share_heap()
    with working(settings, call) as context, Prober().start() as prober:  # it starts while the rest is imported
        from wsipipe.tiling import stage

        report, stores = stage.run(slides_of(slide, settings.tile), settings.tile, context, prober=prober)
    if not call["quiet"]:
        show(report.table(("patches", "copied", "corrupt", "seconds")), err=True)
    finish(report, stores)


@click.command(cls=Command)
@STORES
@options("pretrain")
@common("device", "seed")
@OVERWRITE
def pretrain(store: tuple[Path, ...], **call: Any) -> None:
    """Pretrain an encoder by self-supervision on the patches of stores.

    Pass the result on: wsipipe pseudolabel --weights runs/pretrain. Without STORE, all stores are used.
    """
    from wsipipe.pretrain import stage

    settings = settings_of(call)
    with working(settings, call) as context:
        report, made = stage.run(_stores(store, settings), settings.pretrain, context)
    finish(report, made)


@click.command(cls=Command, epilog="Parameters for --set, with their defaults: wsipipe config")
@STORES
@options("pseudolabel")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="[NAME.]KEY=VALUE",
    help="parameter KEY of the method, or of the method or refinement NAME  [may be repeated]",
    cls=Option,
    group="Method",
)
@common("device", "seed")
@OVERWRITE
def pseudolabel(store: tuple[Path, ...], assignments: tuple[str, ...], **call: Any) -> None:
    """Turn weak labels into patch-level masks: labels/<name> and scores/<name> in each store.

    Without STORE, all stores are used.
    """
    from wsipipe.pseudolabel import stage

    settings = settings_of(call)
    settings = settings_of(call, pseudolabel=assigned(assignments, parse_methods(settings.pseudolabel.method)))
    options = stage.PseudolabelOptions(settings.pseudolabel, settings.sections, settings.pretrain)
    with working(settings, call) as context:
        report, stores = stage.run(_stores(store, settings), options, context)
    finish(report, stores)


@click.command(cls=Command)
@STORES
@options("segment")
@click.option("--stitch", is_flag=True, help="map every slide after training", cls=Option, group="Stitching")
@options("stitch")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="map with this model.json; nothing is trained",
    cls=Option,
    group=FIRST,
)
@common("device", "workers", "seed")
@OVERWRITE
def segment(store: tuple[Path, ...], stitch: bool, checkpoint: Path | None, **call: Any) -> None:
    """Train a network on masks and, with --stitch, map every slide.

    Without STORE, all stores are used. With --checkpoint, STORE may also be a slide that was never tiled: it is tiled
    first.
    """
    settings = settings_of(call)
    if checkpoint and not stitch:
        raise ConfigError("--checkpoint without --stitch leaves nothing to do; add --stitch to map the slides")
    from wsipipe.segment import stage

    with working(settings, call) as context:
        paths = _stores(store, settings)
        if checkpoint:
            report, made = map_slides(paths, checkpoint, settings, context)
        else:
            options = stage.SegmentOptions(settings.segment, settings.stitch if stitch else None)
            report, made = stage.run(paths, options, context)
    finish(report, made)


@click.command(cls=Command)
@STORES
@options("evaluate")
@common("seed")
def evaluate(store: tuple[Path, ...], **call: Any) -> None:
    """Score masks or maps against the truth: mask images, or annotations of QuPath or ASAP.

    Prints a table; CSV, JSON and a figure go to runs/<masks>/. Without STORE, all stores are used.
    """
    from wsipipe.evaluate import stage
    from wsipipe.evaluate.cohort import EvaluateInputs
    from wsipipe.evaluate.figure import write_figure
    from wsipipe.evaluate.files import write_files
    from wsipipe.evaluate.text import text_table

    settings = settings_of(call)
    config = settings.evaluate
    with working(settings, call) as context:
        folder = context.runs / config.masks
        result = stage.run(EvaluateInputs(_stores(store, settings), settings.label_table()), config, context)
        write_files(result, folder)
        write_figure(result, folder / "evaluation.png")
    show(text_table(result, columns()))
    sys.exit(result.report.exit_code)


@click.command(cls=Command)
@STORES
@click.option(
    "--masks",
    "names",
    multiple=True,
    metavar="A,B,C",
    help="masks or maps to compare  [may be repeated; default: all that every store has]",
    cls=Option,
    group=FIRST,
)
@options("evaluate", skip=("masks", "detections", "nms_um"))
@common("seed")
def compare(store: tuple[Path, ...], names: tuple[str, ...], **call: Any) -> None:
    """Show several masks or maps side by side, with scores if --truth is given.

    Prints a table; a CSV and a picture of the same places by each go to runs/compare/. Without STORE, all stores are
    used.
    """
    from wsipipe.evaluate import compare as side_by_side
    from wsipipe.evaluate.cohort import EvaluateInputs
    from wsipipe.evaluate.examples import write_examples

    settings = settings_of(call)
    config = settings.evaluate
    with working(settings, call) as context:
        folder = context.runs / "compare"
        wanted = [name.strip() for text in names for name in text.split(",")]
        inputs = EvaluateInputs(_stores(store, settings), settings.label_table())
        found = side_by_side.run(inputs, side_by_side.CompareOptions(wanted, config), context)
        side_by_side.write_comparison(found, folder / "comparison.csv")
        write_examples(found.paths, found.names, found.classes, config, folder / "comparison.png")
    show(side_by_side.text_table(found, columns()))
    sys.exit(found.exit_code)


@click.command(cls=Command, lists={"Formats": formats.summaries()})
@STORES
@options("export")
@common()
@OVERWRITE
def export(store: tuple[Path, ...], **call: Any) -> None:
    """Write masks or maps as files that other programs open.

    Without STORE, all stores are used.
    """
    from wsipipe.export import stage

    settings = settings_of(call)
    with working(settings, call) as context:
        report, made = stage.run(_stores(store, settings), settings.export, context)
    finish(report, made)


@click.group()
def masks() -> None:
    """Import your own masks and annotations."""


@masks.command(
    "import",
    cls=Command,
    renamed={"--masks": "--annotations"},
    short_help="Write your masks or annotations into stores.",
)
@STORES
@click.option(
    "--annotations",
    required=True,
    metavar="FOLDER",
    help="folder with <slide_id>.png or .tif (masks), .geojson (QuPath) or .xml (ASAP), or a pattern with {slide_id}",
    cls=Option,
    group=FIRST,
)
@click.option(
    "--map",
    "value_map",
    default="",
    metavar="MAP",
    help="meaning of mask values or annotation names, e.g. 0=ignore,1=0,2=tumour or Tumor=tumour,outside=ignore",
    cls=Option,
    group=FIRST,
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    required=True,
    metavar="NAME",
    help="class name, in mask order  [may be repeated]",
    cls=Option,
    group=FIRST,
)
@click.option(
    "--name",
    required=True,
    metavar="NAME",
    help="name of the masks in the stores: labels/<name>",
    cls=Option,
    group=OUTPUT,
)
@common()
@OVERWRITE
def import_(
    store: tuple[Path, ...], annotations: str, value_map: str, classes: tuple[str, ...], name: str, **call: Any
) -> None:
    """Write masks or annotations, drawn in the slide's own frame, into labels/<name> of each store.

    Without STORE, all stores are used.
    """
    from wsipipe import import_masks

    settings = settings_of(call)
    with working(settings, call) as context:
        options = import_masks.ImportOptions(annotations, classes, name, value_map)
        report, stores = import_masks.run(_stores(store, settings), options, context)
    finish(report, stores)


@click.command(cls=Command)
@click.argument("slide", nargs=-1)
@common("device", "workers", "seed", "dask")
@OVERWRITE
def run(slide: tuple[str, ...], **call: Any) -> None:
    """Run the chain of pipeline.yaml: tile, pseudolabel, segment --stitch.

    Every option is checked before the first slide is opened. Without SLIDE, run.slides of pipeline.yaml is used.
    """
    settings = settings_of(call, run={"slides": slide} if slide else {})
    with working(settings, call) as context:
        report, stores = run_chain(settings, context)
    finish(report, stores)


@click.command(cls=Command)
def config() -> None:
    """Print a pipeline.yaml that holds every option at its default, with what it means."""
    from wsipipe.cli.template import template

    click.echo(template(), nl=False)


@click.command(cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Summarise a store: slide, resolution, patches, masks, scores and features."""
    from wsipipe.store.info import describe

    show(describe(store))


@click.command(cls=Command)
@STORES
@click.option(
    "--decode",
    is_flag=True,
    help="also decode every chunk: finds damage that was in the slide already",
    cls=Option,
    group=FIRST,
)
@common("workers")
def verify(store: tuple[Path, ...], decode: bool, **call: Any) -> None:
    """Read every chunk of stores, check every checksum, and name what is damaged.

    Without STORE, all stores are checked.
    """
    from wsipipe.store import verify as checking

    settings = settings_of(call)
    with working(settings, call) as context:
        report, stores = checking.run(_stores(store, settings), checking.VerifyOptions(decode), context)
    finish(report, stores)


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--quiet", "-q", is_flag=True, help="only warnings and errors on stderr")
def demo(folder: Path, quiet: bool) -> None:
    """Draw a small synthetic cohort in FOLDER (default: demo), run the chain on it, and score the maps."""
    from wsipipe.demo.demo import run_demo

    with reporting(quiet) as progress:
        table = run_demo(folder, progress)
    show(table)


def _stores(given: tuple[Path, ...], settings: Settings) -> list[Path]:
    """The stores that the command names, or all in the folder of the stores."""
    from wsipipe.store import find_stores

    return list(given) or find_stores(Path(settings.run.stores))
