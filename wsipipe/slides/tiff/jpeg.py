"""Complete the abbreviated JPEG streams of TIFF tiles without decoding a pixel."""

from __future__ import annotations

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _APP0, _APP14 = 0xDA, 0xE0, 0xEE
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive Huffman frames: those that every decoder supports."""

_MAX_CACHED_HEADERS = 16
"""Distinct headers cached; encoders write the same header for every tile, or (optimised tables) another per tile."""

_TAIL = 64
"""Bytes at the end of a tile that are searched for the end marker: some writers pad tiles."""


class JpegHeaders:
    """Completes the headers of the tiles of one TIFF level with the level's shared tables and its colour space.

    A TIFF stores the quantisation and Huffman tables once per level, and the colour space in a tag rather than in the
    tiles. The completed header contains the tables, and an APP14 marker (Adobe, transform 0 RGB, 1 YCbCr) that states
    the colour space to every decoder; JFIF and Adobe markers that could contradict it are dropped.
    """

    def __init__(self, tables: bytes | None, tile_px: tuple[int, int], rgb: bool) -> None:
        self._tile_px = tile_px
        adobe = b"Adobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
        shared = _without_colour_space(tables, _segments(tables)) if tables else b""
        self._start = SOI + b"\xff\xee\x00\x0e" + adobe + shared
        self._known: list[tuple[bytes, bytes]] = []  # a list: other threads may append during iteration

    def standalone(self, data: bytes, start: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
        """The tile at data[start:end] as a complete JPEG stream in two parts, the header and the rest.

        Raises ValueError if the tile is damaged.
        """
        end = len(data) if end is None else end
        if data.find(EOI, max(start, end - _TAIL), end) < 0:
            raise ValueError("its JPEG stream has no end marker: it is truncated")
        for old, new in self._known:
            if data.startswith(old, start, end):
                return new, data[start + len(old) : end]
        old, new = self._completed(data[start:end])
        if len(self._known) < _MAX_CACHED_HEADERS:
            self._known.append((old, new))
        return new, data[start + len(old) : end]

    def _completed(self, tile: bytes) -> tuple[bytes, bytes]:
        """The header of `tile`, up to its entropy-coded data, and the completed header."""
        segments = _segments(tile)
        self._check_frame(next((tile[i:j] for marker, i, j in segments if marker in _FRAMES), b""))
        if segments[-1][0] != _SOS:
            raise ValueError("its JPEG stream has no pixels")
        return tile[: segments[-1][2]], self._start + _without_colour_space(tile, segments)

    def _check_frame(self, frame: bytes) -> None:
        """Raise ValueError unless the frame header declares 3 channels of 8 bits and the size of a tile."""
        if len(frame) < 10:
            raise ValueError("its JPEG stream has no frame header")
        size = (int.from_bytes(frame[7:9], "big"), int.from_bytes(frame[5:7], "big"))
        if frame[4] != 8 or frame[9] != 3:
            raise ValueError(f"its JPEG stream has {frame[9]} channels of {frame[4]} bits; expected 3 of 8")
        if size != self._tile_px:
            raise ValueError(
                f"its JPEG stream is {size[0]} x {size[1]} px; expected {self._tile_px[0]} x {self._tile_px[1]}"
            )


def _segments(stream: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the scan header or the end marker. Raises ValueError if damaged."""
    if stream[:2] != SOI:
        raise ValueError("it does not start with a JPEG marker")
    found, i = [], 2
    while stream[i : i + 2] != EOI:
        while stream[i : i + 2] == b"\xff\xff":  # fill bytes may precede a marker
            i += 1
        if len(stream) < i + 4 or stream[i] != 0xFF:
            raise ValueError("its JPEG header is damaged")
        marker, end = stream[i + 1], i + 2 + int.from_bytes(stream[i + 2 : i + 4], "big")
        if end > len(stream):
            raise ValueError("its JPEG header is truncated")
        found.append((marker, i, end))
        if marker == _SOS:
            break
        i = end
    return found


def _without_colour_space(stream: bytes, segments: list[tuple[int, int, int]]) -> bytes:
    """The segments of a stream without the JFIF and Adobe markers, which state a colour space."""
    return b"".join(stream[i:j] for marker, i, j in segments if marker not in (_APP0, _APP14))
