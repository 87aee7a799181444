"""The stage: verify stores. Reads every checksum and every chunk that must exist, and lists the damage."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from wsipipe.errors import StoreError
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.executor import map_in_threads
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress, silent
from wsipipe.store import layout
from wsipipe.store.codec import jpeg_decode
from wsipipe.store.label_images import shard_key
from wsipipe.store.shards import Cell, Shard, ShardedArray, shard_file
from wsipipe.store.slide_store import SlideStore

log = logging.getLogger(__name__)

COLUMNS = ("cell", "tissue", "status")
"""Columns of a patch table."""

_UNKNOWN = "not listed in the store"

_MAX_NAMED = 5
"""Damaged chunks of one shard that are named; of the others only the number."""


@dataclass(frozen=True)
class VerifyOptions:
    """decode: also decode every chunk, beyond checking its checksum."""

    decode: bool = False


@dataclass(frozen=True)
class Damage:
    """A damaged file or folder, relative to the store, and what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """The result of verifying one store.

    chunks: number of chunks of pixels, masks and scores that were read. leftovers: files and folders of interrupted
    runs or other programs; harmless, may be deleted.
    """

    path: Path
    chunks: int
    damage: tuple[Damage, ...]
    leftovers: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no damage."""
        return not self.damage


def verify(path: Path, decode: bool = False, progress: Progress = silent, workers: int = 1) -> Verdict:
    """Verify the store at `path`; with `decode`, also that every chunk can be decoded.

    Each of `workers` threads keeps one chunk in memory. Raises StoreError if `path` is not a wsipipe store. No process
    may write to the store meanwhile.
    """
    check = _Check(path, decode)
    try:
        store = SlideStore(path)
        name = store.slide_id
        check.tables.add(f"patches/{store.grid.patch_px}_{store.grid.stride_px}")
    except StoreError as error:
        if not _is_ours(path):
            raise
        name = path.stem
        check.found.append(Damage("zarr.json", f"the store does not open ({error})"))
    shards = [(array, *each) for array, stored in check.arrays() for each in check.shards(array, stored)]

    def settle(_: object, result: tuple[int, list[Damage]]) -> None:
        check.done += 1
        check.chunks += result[0]
        check.found += result[1]
        progress(f"verify {name}", check.done, len(shards))

    map_in_threads(lambda each: check.shard(*each), shards, workers, settle)
    check.features()
    check.attributes("patches")
    for table in sorted({*check.tables, *check.folders("patches")}):
        check.table(table)
    unknown = list(check.unknown())
    leftovers = tuple(where for where in unknown if Path(where).name.startswith("."))
    check.found += [Damage(where, _UNKNOWN) for where in unknown if where not in leftovers]
    return Verdict(path, check.chunks, tuple(sorted(check.found, key=str)), leftovers)


def run(inputs: Sequence[Path], options: VerifyOptions, context: RunContext) -> tuple[Report, list[Path]]:
    """Verify stores; returns the ledger, written to `<runs>/verify.csv`, and the stores without damage."""
    report = context.report()
    undamaged = []
    for path in inputs:
        with report.guard(path.stem):
            verdict = verify(path, options.decode, context.progress, context.run.workers)
            for where in verdict.leftovers:
                log.info("%s: %s is a leftover of an interrupted run and may be deleted", path, where)
            for damage in verdict.damage:
                log.error("%s: %s", path, damage)
            if verdict.ok:
                undamaged.append(path)
                report.add(path.stem, "done", chunks=verdict.chunks)
            else:
                report.add(path.stem, "failed", "; ".join(map(str, verdict.damage)), chunks=verdict.chunks)
    report.write(context.runs / "verify.csv")
    return report, undamaged


@dataclass
class _Check:
    """The state of verifying one store: the damage found so far, and the files that belong to the store.

    known: files. tables: folders of patch tables. opaque: folders of arrays with damaged metadata, so that their files
    cannot be judged.
    """

    path: Path
    decode: bool
    found: list[Damage] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)
    chunks: int = 0
    done: int = 0

    def arrays(self) -> Iterator[tuple[ShardedArray, dict[str, int] | None]]:
        """Every sharded array that opens, with shard (row.col) -> number of chunks; None if that is unknown."""
        yield from self._levels("")
        for kind in ("labels", "scores"):
            listed = self.attributes(kind).get("ome", {}).get("labels", [])
            for where in sorted({*self.folders(kind), *(f"{kind}/{name}" for name in listed)}):
                yield from self._levels(where)

    def shards(self, array: ShardedArray, stored: Mapping[str, int] | None) -> Iterator[tuple[Cell, int | None]]:
        """Every shard of an array with the number of its chunks (None: unknown); adds its file to `known`."""
        for row, col in product(*map(range, array.spec.shards)):
            self.known.add(self._where(shard_file(array.path, array.spec, (row, col))))
            yield (row, col), None if stored is None else stored.get(shard_key((row, col)), 0)

    def shard(self, array: ShardedArray, cell: Cell, expected: int | None) -> tuple[int, list[Damage]]:
        """Check one shard file: whether it should exist, its index, the number of its chunks, and every chunk.

        Returns the number of chunks read and the damage. Thread-safe.
        """
        file = shard_file(array.path, array.spec, cell)
        where, n = self._where(file), array.spec.per_shard
        try:
            shard = Shard(file, n * n)
        except FileNotFoundError:
            return 0, [Damage(where, f"missing ({_chunks(expected)})")] if expected else []
        except StoreError:
            return 0, [Damage(where, "damaged index: none of its chunks can be read")]
        except OSError as error:
            return 0, [Damage(where, f"cannot be read ({error.strerror})")]
        present, found = shard.present(), []
        if expected == 0:
            found.append(Damage(where, f"{_UNKNOWN} ({_chunks(len(present))})"))
        elif expected is not None and len(present) != expected:
            found.append(Damage(where, f"{_chunks(len(present))}, expected {expected}"))
        wrong: dict[str, list[Cell]] = {}
        for i in present:
            if what := self._wrong(array, shard, i):
                wrong.setdefault(what, []).append((cell[0] * n + i // n, cell[1] * n + i % n))
        found += [Damage(where, f"{_named(cells)}: {what}") for what, cells in wrong.items()]
        return len(present), found

    def _wrong(self, array: ShardedArray, shard: Shard, i: int) -> str:
        """What is wrong with one chunk of a shard, empty if nothing is."""
        try:
            body = shard.body(i) or b""
        except StoreError:
            return "the checksum does not match"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if not self.decode:
            return ""
        try:
            if array.spec.quality:
                jpeg_decode(body, strict=True)
            array.spec.decode(body)
        except (ValueError, RuntimeError) as error:
            return f"the checksum matches, but decoding fails ({error})"
        return ""

    def table(self, where: str) -> None:
        """Check a patch table: every column can be read, and all have the same length."""
        self.attributes(where)
        lengths = set()
        for column in (f"{where}/{name}" for name in COLUMNS):
            if not self.attributes(column):
                self.opaque.add(column)
                continue
            self.known |= {f"{column}/{file}" for file in layout.chunk_files(self.path / column)}
            try:
                (values,) = layout.read_table(self.path, [column])
                lengths.add(len(values))
            except StoreError as error:
                self.found.append(Damage(column, str(error).removeprefix(f"{self.path / column}: ")))
        if len(lengths) > 1:
            self.found.append(Damage(where, f"columns of different lengths: {sorted(lengths)}"))

    def features(self) -> None:
        """Check the existing chunks of every feature array; missing ones are no damage."""
        if not (self.path / "features").is_dir():
            return
        self.attributes("features")
        for where in [w for encoder in self.folders("features") for w in (encoder, *self.folders(encoder))]:
            if not self.attributes(where) or where.count("/") < 2:
                continue
            for file in layout.chunk_files(self.path / where):
                self.known.add(f"{where}/{file}")
            for name, what in layout.damaged_chunks(self.path / where):
                self.found.append(Damage(f"{where}/{name}", f"{what}; delete the file, and it will be computed again"))

    def attributes(self, where: str) -> dict[str, Any]:
        """The attributes of a group or array; {} with a damage added if its zarr.json is missing or changed."""
        file = f"{where}/zarr.json".lstrip("/")
        self.known.add(file)
        try:
            return layout.check_seal(self.path / where)
        except StoreError as error:
            self.found.append(Damage(file, str(error)))
            return {}

    def folders(self, kind: str) -> list[str]:
        """The folders below `kind`: masks, maps, patch tables or features."""
        folder = self.path / kind
        inside = folder.iterdir() if folder.is_dir() else ()
        return sorted(f"{kind}/{p.name}" for p in inside if p.is_dir() and not p.name.startswith("."))

    def unknown(self) -> Iterator[str]:
        """Files that do not belong to the store, or a folder if none of its files does."""
        places = {str(parent) for where in self.known for parent in Path(where).parents}
        for folder, inside, files in os.walk(self.path):
            here = Path(folder)
            for name in sorted(inside):
                where = self._where(here / name)
                if where in self.opaque or where not in places:
                    inside.remove(name)
                    if where not in self.opaque and any(p.is_file() for p in (here / name).rglob("*")):
                        yield where
            yield from (w for w in sorted(self._where(here / name) for name in files) if w not in self.known)

    def _levels(self, where: str) -> Iterator[tuple[ShardedArray, dict[str, int] | None]]:
        """The arrays of one image: the pixels, a mask or a map."""
        attributes = self.attributes(where)
        stored: dict[str, dict[str, int]] | None = attributes.get("wsipipe", {}).get("stored")
        if attributes and stored is None:
            self.found.append(Damage(f"{where}/zarr.json".lstrip("/"), "the list of stored chunks is missing"))
        there = {p.name for p in (self.path / where).glob("[0-9]*") if p.is_dir()}
        for level in sorted(there if stored is None else stored):
            path = f"{where}/{level}".lstrip("/")
            if not self.attributes(path):
                self.opaque.add(path)
                continue
            try:
                yield ShardedArray(self.path / path), None if stored is None else stored[level]
            except StoreError as error:
                self.found.append(Damage(f"{path}/zarr.json", str(error)))

    def _where(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def _is_ours(path: Path) -> bool:
    """Whether a folder that does not open is a damaged wsipipe store."""
    try:
        layout.check_seal(path)
        return False  # undamaged, but of another kind or version
    except StoreError:
        try:
            return layout.SEAL.encode() in (path / "zarr.json").read_bytes()
        except OSError:
            return False


def _chunks(n: int) -> str:
    return f"{n} chunk{'s' if n != 1 else ''}"


def _named(cells: list[Cell]) -> str:
    """The chunks by their (row, col)."""
    shown = ", ".join(map(str, cells[:_MAX_NAMED]))
    more = f" and {len(cells) - _MAX_NAMED} more" if len(cells) > _MAX_NAMED else ""
    return f"chunk{'s' if len(cells) > 1 else ''} {shown}{more}"
