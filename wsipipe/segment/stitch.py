"""Stitching within a memory budget: the order of strips and windows, and how finished rows become shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.segment.accumulate import BAND_ROWS, Band, WindowAccumulator, argmax_mask, cell_means
from wsipipe.store.shards import SHARD_PX, Cell
from wsipipe.windows import WindowLattice, blend_weight

READ_AHEAD = 4
"""Most batches of pixels that wait for the network."""

WAITING = 2
"""Most batches of network outputs that wait to be added."""

MOST_SHARDS_WIDE = 2
"""Shards across the widest strip. Wider strips save little: 1 window in 65 crosses a seam at the default settings."""


@dataclass(frozen=True)
class Stitching:
    """How windows become a map.

    window_px, stride_px: of the windows. blend: one of `windows.BLENDS`. cell_px: px of the map per score.
    views: test-time views per window. memory_mb: budget for sums, buffers and queues, in 10^6 bytes.
    """

    window_px: int
    stride_px: int
    cell_px: int = 8
    blend: str = "hann"
    views: int = 1
    memory_mb: int = 512


@dataclass(frozen=True)
class StripPlan:
    """The strips of one map, and the shards that they fill.

    size_px: (w, h). width_px: of a strip, a multiple or an integer fraction of `shard_px`. Strips as wide as a shard or
    wider run from top to bottom; narrower ones fill one shard after the other. A window on the seam of two strips is
    predicted for both.
    """

    size_px: tuple[int, int]
    cover: WindowLattice
    width_px: int
    cell_px: int = 1
    shard_px: int = SHARD_PX

    def shard(self, shard: Cell) -> Window:
        """The pixels of a shard."""
        n, (width, height) = self.shard_px, self.size_px
        y, x = shard[0] * n, shard[1] * n
        return Window(x, y, min(n, width - x), min(n, height - y))

    def area(self, own: Window) -> Window:
        """A window grown to whole score cells, clipped to the map."""
        c = self.cell_px
        x, y = own.x_px // c * c, own.y_px // c * c
        right, bottom = (
            min(n, -(-end // c) * c)
            for n, end in zip(self.size_px, (own.x_px + own.width_px, own.y_px + own.height_px), strict=True)
        )
        return Window(x, y, right - x, bottom - y)

    def wanted(self) -> list[Cell]:
        """The shards that a window, or a score cell beginning in them, reaches."""
        cols, rows = (range(-(-n // self.shard_px)) for n in self.size_px)
        return [s for s in product(rows, cols) if self.cover.count(self.area(self.shard(s)))]

    def strips(self, todo: Collection[Cell]) -> Iterator[Window]:
        """The parts of the map (px) that fill the shards `todo`, in stitching order."""
        n, (width, height) = self.shard_px, self.size_px
        if self.width_px < n:
            for shard in sorted(todo):
                own = self.shard(shard)
                for x in range(0, own.width_px, self.width_px):
                    yield Window(own.x_px + x, own.y_px, min(self.width_px, own.width_px - x), own.height_px)
            return
        across = self.width_px // n
        rows: dict[int, set[int]] = {}
        for row, col in todo:
            rows.setdefault(col // across, set()).add(row)
        for strip in sorted(rows):
            x = strip * self.width_px
            for first, last in _runs(rows[strip]):
                yield Window(x, first * n, min(self.width_px, width - x), min(last * n, height) - first * n)


def _runs(numbers: Collection[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as (first, one after the last)."""
    ordered = sorted(numbers)
    starts = [i for i in ordered if i - 1 not in numbers]
    ends = [i + 1 for i in ordered if i + 1 not in numbers]
    yield from zip(starts, ends, strict=True)


@dataclass
class Stitcher:
    """Accumulates network outputs per strip, and turns finished rows into shards.

    `write` gets (shard, mask uint8 [h, w] of the channel with the highest value or 255, scores uint8 [C - 1, rows,
    cols] of all channels but the first, 255 = 1.0); a score belongs to the shard in which its first pixel lies.
    """

    plan: StripPlan
    channels: int
    weight: NDArray[np.float32]
    write: Callable[[Cell, NDArray[np.uint8], NDArray[np.uint8]], None]
    todo: set[Cell]
    _strip: Window | None = None
    _accumulator: WindowAccumulator | None = None
    _open: dict[Cell, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = field(default_factory=dict)

    def windows(self) -> Iterator[tuple[Window, Window]]:
        """(strip, window) in the order in which `add` must get their outputs."""
        for strip in list(self.plan.strips(self.todo)):
            for window in self.plan.cover.touching(self.plan.area(strip)):
                yield strip, window

    def count(self) -> int:
        """Number of windows still to predict."""
        return sum(self.plan.cover.count(self.plan.area(s)) for s in self.plan.strips(self.todo))

    def add(self, items: Sequence[tuple[Window, Window]], answers: NDArray[np.float32]) -> None:
        """Add the network outputs float32 [N, C, side, side] of N (strip, window)."""
        for (strip, window), p in zip(items, answers, strict=True):
            accumulator = self._accumulator if strip == self._strip and self._accumulator else self._begin(strip)
            self._take(strip, accumulator, window.y_px)
            accumulator.add(window, p)

    def end(self) -> None:
        """Finish the shards that are not written yet; no window follows."""
        self._end_strip()
        self._write(list(self._open))

    def _begin(self, strip: Window) -> WindowAccumulator:
        self._end_strip()
        shards = self._shards(strip, strip.y_px, strip.y_px + strip.height_px)
        self._write([shard for shard in self._open if shard not in shards])
        for shard in shards:
            if not self._holds(strip, shard):
                self._buffers(shard)
        self._strip, self._accumulator = (
            strip,
            WindowAccumulator(self.plan.area(strip), self.channels, self.weight, self._cell),
        )
        return self._accumulator

    def _end_strip(self) -> None:
        if self._strip is not None and self._accumulator is not None:
            area = self._accumulator.area
            self._take(self._strip, self._accumulator, area.y_px + area.height_px)
        self._strip = self._accumulator = None

    def _holds(self, strip: Window, shard: Cell) -> bool:
        """Whether the strip covers the width of a shard, so that the shard needs no other strip."""
        return strip.width_px >= self.plan.shard(shard).width_px

    def _write(self, shards: Sequence[Cell]) -> None:
        for shard in shards:
            self.write(shard, *self._buffers(shard))
            del self._open[shard]
            self.todo.discard(shard)

    @property
    def _cell(self) -> int:
        return self.plan.cell_px

    def _take(self, strip: Window, accumulator: WindowAccumulator, until_px: int) -> None:
        if until_px <= accumulator.next_px:
            return
        for band in accumulator.take(until_px):
            self._paint(strip, band)
        areas = {s: self.plan.area(self.plan.shard(s)) for s in self._shards(strip, strip.y_px, accumulator.next_px)}
        self._write(
            [
                s
                for s, area in areas.items()
                if area.y_px + area.height_px <= accumulator.next_px and self._holds(strip, s)
            ]
        )

    def _shards(self, strip: Window, y1: int, y2: int) -> list[Cell]:
        """The unwritten shards in the strip and in rows [y1, y2)."""
        n = self.plan.shard_px
        y1, y2 = max(y1, strip.y_px), min(y2, strip.y_px + strip.height_px)
        cells = product(range(y1 // n, -(-y2 // n)), range(strip.x_px // n, -(-_right(strip) // n)))
        return [cell for cell in cells if cell in self.todo]

    def _paint(self, strip: Window, band: Band) -> None:
        """Copy a band into the buffers of the shards that it covers."""
        mask = argmax_mask(band, IGNORE)
        scores = np.rint(cell_means(band, self._cell, first=1) * 255).astype(np.uint8)
        y, x, c = band.y_px, band.x_px, self._cell
        for shard in self._shards(strip, y, y + len(mask)):
            into, its_scores = self._buffers(shard)
            own = self.plan.shard(shard)
            # narrow strips share a shard: pixels beyond the strip belong to its neighbour, which sees more windows
            rows, cols = (slice(a, b) for a, b in _common(own, strip))
            _paste(into, (own.y_px, own.x_px), mask, (y, x), (rows, cols))
            first = -(-own.y_px // c), -(-own.x_px // c)
            within = tuple(slice(-(-s.start // c), -(-s.stop // c)) for s in (rows, cols))
            _paste(its_scores, first, scores, (y // c, x // c), within)

    def _buffers(self, shard: Cell) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if shard not in self._open:
            own, c = self.plan.shard(shard), self._cell
            rows, cols = (
                -(-(start + length) // c) + (-start // c)
                for start, length in ((own.y_px, own.height_px), (own.x_px, own.width_px))
            )
            mask = np.full((own.height_px, own.width_px), IGNORE, np.uint8)
            self._open[shard] = mask, np.zeros((self.channels - 1, rows, cols), np.uint8)
        return self._open[shard]


def _right(window: Window) -> int:
    return window.x_px + window.width_px


def _common(a: Window, b: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns that two windows share."""
    rows = max(a.y_px, b.y_px), min(a.y_px + a.height_px, b.y_px + b.height_px)
    return rows, (max(a.x_px, b.x_px), min(_right(a), _right(b)))


def _paste(
    into: NDArray[np.uint8],
    at: tuple[int, int],
    values: NDArray[np.uint8],
    origin: tuple[int, int],
    within: tuple[slice, ...],
) -> None:
    """Copy the part of `values`, which begin at `origin`, inside `within` into an array that begins at `at`."""
    inside = []
    for own, length, first, n, bounds in zip(at, into.shape[-2:], origin, values.shape[-2:], within, strict=True):
        a, b = max(first, bounds.start, own), min(first + n, bounds.stop, own + length)
        if a >= b:
            return
        inside.append((slice(a - own, b - own), slice(a - first, b - first)))
    (to_rows, rows), (to_cols, cols) = inside
    into[..., to_rows, to_cols] = values[..., rows, cols]


def stitcher(
    plan: StripPlan,
    channels: int,
    blend: str,
    write: Callable[[Cell, NDArray[np.uint8], NDArray[np.uint8]], None],
    done: Collection[Cell] = (),
) -> Stitcher:
    """A `Stitcher` of the shards of the plan that are wanted and not `done`."""
    weight = blend_weight(plan.cover.side_px, blend)
    return Stitcher(plan, channels, weight, write, set(plan.wanted()) - set(done))


def fit_to_budget(how: Stitching, channels: int, batch: int, shard_px: int = SHARD_PX) -> tuple[int, int]:
    """The largest (windows per batch, strip width in px) within the budget, up to `batch` and `MOST_SHARDS_WIDE`.

    ConfigError, with the memory needed, if nothing fits.
    """
    batches = [batch >> i for i in range(batch.bit_length())]
    wide = [n * shard_px for n in range(MOST_SHARDS_WIDE, 0, -1)]
    narrow = [shard_px >> i for i in range(1, shard_px.bit_length()) if shard_px >> i >= how.window_px]
    options = [(b, w) for b in batches for w in wide] + [(b, w) for w in narrow for b in batches]
    for option in options:
        if needed_bytes(how, channels, *option, shard_px) <= how.memory_mb * 1e6:
            return option
    least = min(needed_bytes(how, channels, *option, shard_px) for option in options)
    raise ConfigError(
        f"stitch.memory_mb: {how.memory_mb} MB are too few for windows of {how.window_px} px and "
        f"{channels - 1} classes: {-(-least // 10**6)} MB are needed; raise --stitch-memory or "
        "choose a smaller --window"
    )


def needed_bytes(how: Stitching, channels: int, batch: int, width_px: int, shard_px: int = SHARD_PX) -> int:
    """Most memory of sums, open shards and queued batches; independent of the slide's size."""
    n, c = how.window_px, how.cell_px
    across = width_px + 2 * c
    sums = 4 * (channels + 1) * (n + c) * across + 4 * channels * n * n
    bands = (2 * 4 * channels + 16) * max(BAND_ROWS, c) * across
    shards = max(width_px, shard_px) * shard_px
    scores = 2 * (channels - 1) * (max(width_px, shard_px) // c + 1) * (shard_px // c + 1)
    queues = batch * n * n * (3 * (READ_AHEAD + 2) + 4 * channels * (WAITING + 3))
    return sums + bands + shards + scores + queues
