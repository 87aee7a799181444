"""The command line: options from the configuration, paths on stdout, progress and log on stderr, exit codes."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import wsipipe
from wsipipe.config import SECTIONS, EvaluateConfig, RunConfig, scalar
from wsipipe.errors import ConfigError, WsipipeError
from wsipipe.labels import LabelTable, read_labels
from wsipipe.pipeline import Settings, read_settings, run_chain
from wsipipe.progress import bars, lines
from wsipipe.pseudolabel.registry import ALL, NONE, chosen, names, refinements
from wsipipe.runtime import Progress, Report, share_heap

log = logging.getLogger("wsipipe")

F = typing.TypeVar("F", bound=Callable[..., Any])

_SHORT = {"patch_px": "patch", "stride_px": "stride", "window_px": "window", "score_stride_px": "score-stride"}
_STORES_ARGUMENT = click.argument("store", nargs=-1, type=click.Path(path_type=Path))


def options(section: str, *skip: str) -> Callable[[F], F]:
    """Click options for every field of a section's dataclass; what is not given stays out of the call."""
    config = SECTIONS[section]
    hints = typing.get_type_hints(config)

    def decorate(function: F) -> F:
        for field in reversed(dataclasses.fields(config)):
            if field.name not in skip:
                function = _option(section, field, hints[field.name])(function)
        return function

    return decorate


def _option(section: str, field: dataclasses.Field[Any], kind: Any) -> Callable[[F], F]:
    flag = _SHORT.get(field.name, field.name.replace("_um2", "").replace("_", "-"))
    help = field.metadata["help"]
    if field.default not in ("", (), 0, 0.0) and kind is not bool:
        help += f"  [default: {field.default}]"
    name = f"{section}__{field.name}"
    if kind is bool:
        help += f"  [default: {'on' if field.default else 'off'}]"
        return click.option(f"--{flag}/--no-{flag}", name, default=None, help=help)
    if kind in (int, float):
        return click.option(f"--{flag}", name, type=kind, default=None, help=help)
    if section == "pseudolabel" and field.name == "method":
        return click.option(f"--{flag}", name, metavar="|".join((*names(), ALL)), default=None, help=help)
    if section == "pseudolabel" and field.name == "refine":
        return click.option(f"--{flag}", name, type=click.Choice((*refinements(), NONE)), default=None, help=help)
    if typing.get_origin(kind) is tuple:
        return click.option(f"--{flag}", name, multiple=True, default=None, help=help + " (repeat the option)")
    return click.option(f"--{flag}", name, default=None, help=help)


def common(function: F) -> F:
    """Options that every command has."""
    function = click.option("--overwrite", is_flag=True, help="replace what was made from other inputs")(function)
    function = click.option("--quiet", "-q", is_flag=True, help="only warnings and errors on stderr")(function)
    function = click.option(
        "--config", type=click.Path(path_type=Path), default=None, help="YAML file instead of ./pipeline.yaml"
    )(function)
    return options("run", "slides", "dask")(function)


def settings_of(call: dict[str, Any], **more: dict[str, Any]) -> Settings:
    """Settings from the parameters of a command call, the YAML file and `more` values."""
    flags: dict[str, dict[str, Any]] = {s: {} for s in SECTIONS}
    for key, value in call.items():
        section, _, name = key.partition("__")
        if name and value is not None and value != ():
            flags[section][name] = value
    for section, values in more.items():
        flags[section].update(values)
    return read_settings(call.get("config"), flags)


def _dask(function: F) -> F:
    """The option of commands that can run on a dask cluster."""
    return options("run", *(f.name for f in dataclasses.fields(RunConfig) if f.name != "dask"))(function)


class _Commands(click.Group):
    """A group whose commands end expected errors as one line and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WsipipeError as error:
            click.echo(f"wsipipe: error: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("wsipipe: interrupted; run the same command again to continue", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            click.echo(f"wsipipe: error: {error}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
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
@_dask
@common
def tile(slide: tuple[str, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Turn slides (files, DICOM folders, folders of slides, manifests in CSV) into stores of patches."""
    from wsipipe.slides.probe import Prober

    settings = settings_of(call)
    share_heap()
    with reporting(quiet) as progress, Prober().start() as prober:  # it starts while all the rest is loaded
        from wsipipe.pipeline import slides_of
        from wsipipe.tiling.tile import tile_slides

        slides = slides_of(slide, settings.tile)
        report, stores = tile_slides(slides, settings.tile, settings.run, progress, overwrite, prober)
        if not quiet:
            click.echo(report.table(("patches", "copied", "corrupt", "seconds")), err=True)
    finish(report, stores)


@main.command()
@_STORES_ARGUMENT
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
@_STORES_ARGUMENT
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
    settings = settings_of(call, pseudolabel=_assigned(assignments, chosen(settings.pseudolabel.method)))
    from wsipipe.pseudolabel.label import pseudolabel as stage

    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        report, stores = stage(
            paths, settings.pseudolabel, settings.sections, settings.run, progress, overwrite, settings.pretrain
        )
    finish(report, stores)


@main.command()
@_STORES_ARGUMENT
@options("segment")
@click.option("--stitch", is_flag=True, help="map every slide after training")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="predict with this model.json; nothing is trained")
@common
def segment(
    store: tuple[Path, ...], stitch: bool, checkpoint: Path | None, overwrite: bool, quiet: bool, **call: Any
) -> None:
    """Train a network on labels/<labels> and stitch its maps over STOREs (default: all)."""
    settings = settings_of(call)
    if checkpoint and not stitch:
        raise ConfigError("--checkpoint without --stitch leaves nothing to do; add --stitch to map the slides")
    from wsipipe.segment.segment import segment as stage

    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        report, made = stage(
            paths,
            settings.segment,
            settings.run,
            stitch=stitch,
            checkpoint=checkpoint,
            progress=progress,
            overwrite=overwrite,
        )
    finish(report, made)


@main.command()
@_STORES_ARGUMENT
@options("evaluate")
@common
def evaluate(store: tuple[Path, ...], overwrite: bool, quiet: bool, **call: Any) -> None:
    """Compare labels/<labels> of STOREs (default: all) with truth: masks, or annotations of QuPath or ASAP.

    Prints a table; CSV, JSON and a figure go to runs/<labels>/.
    """
    from wsipipe.evaluate.figure import write_figure
    from wsipipe.evaluate.judge import judge
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


@main.group()
def labels() -> None:
    """Masks that a user has."""


@labels.command("import")
@_STORES_ARGUMENT
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
    from wsipipe.annotations import import_masks

    settings = settings_of(call)
    with reporting(quiet) as progress:
        paths = _stores(store, settings)
        report, stores = import_masks(
            paths, masks, value_map, classes, name, run=settings.run, overwrite=overwrite, progress=progress
        )
    finish(report, stores)


@main.command()
@click.argument("slide", nargs=-1)
@_dask
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
    from wsipipe.template import template

    click.echo(template(), nl=False)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Say what a store holds."""
    from wsipipe.store.info import describe

    click.echo(describe(store))


@main.command()
@_STORES_ARGUMENT
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


def _assigned(assignments: tuple[str, ...], methods: list[str]) -> dict[str, dict[str, Any]]:
    """[NAME.]KEY=VALUE texts as values by name (default: the one method), each read as YAML would."""
    values: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        name, dot, last = key.strip().rpartition(".")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as --set prevalence=0.2")
        if not dot and len(methods) > 1:
            raise ConfigError(f"--set {text}: of which method? Say it as --set {methods[0]}.{text}")
        if dot and name not in (*names(), *refinements()):
            raise ConfigError(f"--set {text}: {name!r} is neither a method nor a refinement")
        values.setdefault(name or methods[0], {})[last] = scalar(value)
    return values


def _stores(given: tuple[Path, ...], settings: Settings) -> list[Path]:
    from wsipipe.store import find_stores

    return list(given) or find_stores(Path(settings.run.stores))


def _labels(config: EvaluateConfig, settings: Settings) -> LabelTable | None:
    """The labels that say split, patient and weak label of slides; None if none were given and there are none."""
    path = Path(config.labels_csv or settings.pseudolabel.labels)
    if not (config.labels_csv or config.split or path.is_file()):
        return None
    return read_labels(path, to_fit=False)


def finish(report: Report, made: list[Path]) -> None:
    """Paths on stdout, failures on stderr, and the exit code."""
    for path in made:
        click.echo(path)
    failed = report.of("failed")
    if failed:
        count = f"{len(failed)} of {len(report.rows)} failed (allowed: {report.max_failed})"
        names = ", ".join(row["item"] for row in failed)
        click.echo(f"wsipipe: {count}: {names}; the reasons are above and in {report.ledger}", err=True)
    sys.exit(report.exit_code)


@contextmanager
def reporting(quiet: bool) -> Iterator[Progress]:
    """Log to stderr, and progress as bars on a terminal or as a line now and then elsewhere."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    root = logging.getLogger("wsipipe")
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_level=True, markup=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    try:
        if quiet:
            yield lambda task, done, total, note="": None
        elif console.is_terminal:
            with bars(console) as progress:
                yield progress
        else:
            yield lines(log)
    finally:
        root.removeHandler(handler)
