"""Turn abbreviated JPEG streams of TIFF tiles into whole ones, without decoding a pixel."""

from __future__ import annotations

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _APP0, _APP14 = 0xDA, 0xE0, 0xEE
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive Huffman frames: what all decoders take."""

_MOST_HEADS = 16
"""Distinct headers remembered; encoders write one for all tiles, or (with optimised tables) one for each."""

_TAIL = 64
"""Bytes at the end of a tile in which its end marker is looked for: some writers pad tiles."""


class JpegHeads:
    """Headers of the tiles of one TIFF level, with the level's shared tables and its colour space written into them.

    A tile of a TIFF lacks its quantisation and Huffman tables, which the file holds once, and often says nothing of
    its colours, which the file's tag tells. An APP14 marker (Adobe, transform 0 RGB, 1 YCbCr) says it to every
    decoder; JFIF and Adobe markers that may contradict it are dropped.
    """

    def __init__(self, tables: bytes | None, tile_px: tuple[int, int], rgb: bool) -> None:
        self._tile_px = tile_px
        adobe = b"Adobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
        kept = _colourless(tables, _segments(tables)) if tables else b""
        self._start = SOI + b"\xff\xee\x00\x0e" + adobe + kept
        self._known: list[tuple[bytes, bytes]] = []  # a list: other threads may add to it during a look

    def standalone(self, data: bytes, start: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
        """The tile at data[start:end] as a whole JPEG stream in two pieces: header and the rest.

        ValueError says what is damaged.
        """
        end = len(data) if end is None else end
        if data.find(EOI, max(start, end - _TAIL), end) < 0:
            raise ValueError("its JPEG stream has no end: it is cut off")
        for old, new in self._known:
            if data.startswith(old, start, end):
                return new, data[start + len(old) : end]
        old, new = self._rewritten(data[start:end])
        if len(self._known) < _MOST_HEADS:
            self._known.append((old, new))
        return new, data[start + len(old) : end]

    def _rewritten(self, tile: bytes) -> tuple[bytes, bytes]:
        """The header of `tile`, up to its entropy-coded data, and the header that replaces it."""
        segments = _segments(tile)
        self._check_frame(next((tile[i:j] for marker, i, j in segments if marker in _FRAMES), b""))
        if segments[-1][0] != _SOS:
            raise ValueError("its JPEG stream has no pixels")
        return tile[: segments[-1][2]], self._start + _colourless(tile, segments)

    def _check_frame(self, frame: bytes) -> None:
        if len(frame) < 10:
            raise ValueError("its JPEG stream has no frame header")
        size = (int.from_bytes(frame[7:9], "big"), int.from_bytes(frame[5:7], "big"))
        if frame[4] != 8 or frame[9] != 3:
            raise ValueError(f"its JPEG stream has {frame[9]} channels of {frame[4]} bits, not 3 of 8")
        if size != self._tile_px:
            raise ValueError(
                f"its JPEG stream is of {size[0]} x {size[1]} px, not {self._tile_px[0]} x {self._tile_px[1]}"
            )


def _segments(stream: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the scan header or the end marker; ValueError if they are broken."""
    if stream[:2] != SOI:
        raise ValueError("it does not begin as a JPEG stream")
    found, i = [], 2
    while stream[i : i + 2] != EOI:
        while stream[i : i + 2] == b"\xff\xff":  # fill bytes may stand before a marker
            i += 1
        if len(stream) < i + 4 or stream[i] != 0xFF:
            raise ValueError("its JPEG header is broken")
        marker, end = stream[i + 1], i + 2 + int.from_bytes(stream[i + 2 : i + 4], "big")
        if end > len(stream):
            raise ValueError("its JPEG header is cut off")
        found.append((marker, i, end))
        if marker == _SOS:
            break
        i = end
    return found


def _colourless(stream: bytes, segments: list[tuple[int, int, int]]) -> bytes:
    """The segments of a stream without those that speak of its colour space."""
    return b"".join(stream[i:j] for marker, i, j in segments if marker not in (_APP0, _APP14))
