"""The JPEG codec of pixels: plain functions, and a Zarr v3 codec under its public name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

if TYPE_CHECKING:
    from zarr.core.common import JSON


def jpeg_encode(rgb: NDArray[np.uint8], quality: int) -> bytes:
    """uint8 [h, w, 3] -> JPEG stream (YCbCr, 4:2:0)."""
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(rgb), level=quality))


def jpeg_decode(stream: bytes, out: NDArray[np.generic] | None = None, strict: bool = False) -> NDArray[np.uint8]:
    """JPEG stream -> uint8 [h, w, 3], written to `out` (contiguous) if given.

    Raises ValueError if it cannot be decoded; with `strict` also for damage that libjpeg would conceal.
    """
    import simplejpeg

    return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", buffer=out, strict=strict), np.uint8)


@dataclass(frozen=True)
class Jpeg(ArrayBytesCodec):
    """Zarr v3 codec `imagecodecs_jpeg`: a uint8 [y, x, 3] chunk as one JPEG stream.

    The name and the key `level` are those of the imagecodecs-zarr package, whose users can read the stores without
    wsipipe. That package needs Python 3.12; on 3.11 the entry point of wsipipe registers the codec.
    """

    level: int = 90
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Parse an entry of `codecs` in zarr.json."""
        configuration: Any = data.get("configuration", {})
        return cls(level=int(configuration.get("level", 90)))

    def to_dict(self) -> dict[str, JSON]:
        """The entry of `codecs` in zarr.json."""
        return {"name": "imagecodecs_jpeg", "configuration": {"level": self.level}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return chunk_spec.prototype.nd_buffer.from_numpy_array(jpeg_decode(chunk_data.to_bytes()))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        stream = jpeg_encode(np.asarray(chunk_data.as_numpy_array(), np.uint8), self.level)
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not called: zarr asks only codecs of fixed size."""
        raise NotImplementedError
