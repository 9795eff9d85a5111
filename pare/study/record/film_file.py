"""Frames to a film: a GIF by Pillow, or an MP4 (H.264) by PyAV, which binds FFmpeg's libraries."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pare.errors import MissingExtraError, OutputError

LAST = 1.5  # seconds for which the last frame is shown
QUALITY = 18  # H.264's constant rate factor: 0 is lossless, 18 visually lossless
MOST_COMMENT = 60_000  # bytes; a GIF's comment can be longer, but not every reader takes it


def check_film(path: Path) -> Path:
    """Check the name of a film.

    Raises:
        OutputError: neither .mp4 nor .gif.
        MissingExtraError: .mp4, and PyAV is not installed.
    """
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise OutputError(f"the film is {path}", expected="a name that ends in .mp4 or .gif")
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "PyAV is not installed, which writes .mp4",
                fix="run `pip install 'pare[study]'`, or write a .gif",
            ) from error
    return path


def write_film(
    frames: Sequence[Image.Image], file: BinaryIO, kind: str, *, fps: float, comment: str = ""
) -> None:
    """Write the frames, all of one size, into an open file; the last one is shown longer.

    Args:
        kind: ".mp4" or ".gif".
        comment: kept in the file: a GIF's comment, an MP4's tag of that name.
    """
    if kind == ".gif":
        write_gif(frames, file, fps, comment)
    else:
        write_mp4(frames, file, fps, comment)


def write_gif(frames: Sequence[Image.Image], file: BinaryIO, fps: float, comment: str) -> None:
    # A GIF's durations are hundredths of a second; readers slow down what is shorter than two.
    each = max(20, round(100 / fps) * 10)
    durations = [each] * (len(frames) - 1) + [max(each, round(1000 * LAST))]
    first, *rest = (frame.convert("RGB") for frame in frames)
    first.save(
        file, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0,
        comment=comment.encode()[:MOST_COMMENT],
    )  # fmt: skip


def write_mp4(frames: Sequence[Image.Image], file: BinaryIO, fps: float, comment: str) -> None:
    import av

    rate = Fraction(fps).limit_denominator(1000)
    # Into memory first: FFmpeg would lose the error of a full disk.
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(QUALITY)})
        # The colour planes have half the size, so sides must be even.
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"  # the one that every player supports
        for frame in itertools.chain(frames, held(frames[-1], fps)):
            padded = np.asarray(even(frame))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())
    file.write(buffer.getvalue())


def held(frame: Image.Image, fps: float) -> Iterator[Image.Image]:
    """Repeats of the last frame, so that it is shown for LAST seconds in all."""
    yield from itertools.repeat(frame, max(0, round(LAST * fps) - 1))


def even(frame: Image.Image) -> Image.Image:
    """The frame, padded to even sides."""
    size = frame.width + frame.width % 2, frame.height + frame.height % 2
    page = Image.new("RGB", size, "white")
    page.paste(frame, (0, 0))
    return page
