"""Many arrays in one HTML page: 8 bits per value where that is enough, one compressed block.

    pack = Pack()
    place = pack.add(array)             # goes into the page's JSON
    text = pack.text()                  # goes into the page

In the browser `atob` and `DecompressionStream` restore the block, and typed arrays are views of it:
nothing is parsed.
"""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"uint8": "u1", "float32": "<f4"}
ALIGNED = 4  # bytes: where a Float32Array may begin


class Pack:
    """A growing block of bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: NDArray[Any]) -> dict[str, Any]:
        """Append an array of uint8 or float32; returns its place: {"at", "shape", "type"}."""
        kind = str(array.dtype)
        data = array.astype(TYPES[kind]).tobytes()
        return {"at": self.add_bytes(data), "shape": list(array.shape), "type": kind}

    def add_bytes(self, data: bytes) -> int:
        """Append bytes; returns where they begin."""
        at = self.size
        padding = -len(data) % ALIGNED
        self.parts += [data, b"\0" * padding]
        self.size += len(data) + padding
        return at

    def text(self) -> str:
        """The block, compressed by gzip, in base64."""
        whole = b"".join(self.parts)
        # No time stamp: the same numbers make the same page.
        return base64.b64encode(gzip.compress(whole, compresslevel=6, mtime=0)).decode()


def eight_bit(x: NDArray[Any], axes: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Each image in its own range: (…, h, w) -> uint8 of that shape, and (…, 2) low and high.

    Args:
        axes: how many of the last axes are an image's.

    Infinities become the nearest end of the range, NaN its lower end.
    """
    last = tuple(range(-axes, 0))
    finite = np.isfinite(x)
    low = np.where(finite, x, np.inf).min(axis=last, keepdims=True)
    high = np.where(finite, x, -np.inf).max(axis=last, keepdims=True)
    low, high = np.where(np.isfinite(low), low, 0), np.where(np.isfinite(high), high, 0)
    span = np.where(high > low, high - low, 1)
    scaled = np.nan_to_num((x - low) / span, nan=0, posinf=1, neginf=0)
    bits = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
    ends = np.stack([low, high], axis=-1).reshape(*x.shape[:-axes], 2)
    return bits, ends.astype(np.float32)
