"""--preview: the predicted x0 while the model samples, in the terminal or as a file.

Terminals that draw images are known by their environment: kitty and those with its graphics
protocol, iTerm2 and those with its inline images.  In any other the preview is a PNG that is
replaced as sampling goes on; most image viewers show it again each time.
"""

from __future__ import annotations

import base64
import copy
import functools
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pare.cli import terminal
from pare.io.whole_files import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline
    from pare.schedulers import Prediction

SHARE = 0.2  # of the run's time that may go into decoding previews
CHUNK = 4096  # characters of base64 in one escape sequence of kitty's protocol

Show = Callable[["Image.Image"], None]


def with_preview(pipe: Pipeline, path: Path) -> Pipeline:
    """The pipeline, not copied, whose predictions of x0 are shown as they come.

    It draws no noise and changes no bit of the run.

    Args:
        path: the file of the preview, where the terminal draws no images.
    """
    show = shower(os.environ, path) if sys.stderr.isatty() else to_file(path)
    watched, clock = copy.copy(pipe), PreviewClock()

    def predict(*given: Any, **named: Any) -> Prediction:
        prediction = pipe.predict(*given, **named)
        if clock.due():
            with clock:
                show(pil_of(pipe, prediction))
        return prediction

    watched.predict = predict  # type: ignore[method-assign]
    return watched


def pil_of(pipe: Pipeline, prediction: Prediction) -> Image.Image:
    """The first image of the batch."""
    from pare.io.images import to_pil

    return to_pil(pipe.decode(prediction.x0.detach()[:1]))[0]


class PreviewClock:
    """Lets previews take no more than `SHARE` of the time."""

    def __init__(self) -> None:
        self.began = self.next = time.perf_counter()

    def due(self) -> bool:
        return time.perf_counter() >= self.next

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took = time.perf_counter() - self.began
        self.next = time.perf_counter() + took / SHARE


# --- where it is shown --------------------------------------------------------------------


def shower(environment: Mapping[str, str], path: Path) -> Show:
    """What draws an image in the terminal of this environment, or writes it to `path`."""
    program = environment.get("TERM_PROGRAM")
    if "KITTY_WINDOW_ID" in environment or program in ("ghostty", "WezTerm"):
        return lambda image: draw(kitty(png(image)))
    if program == "iTerm.app" or "ITERM_SESSION_ID" in environment:
        return lambda image: draw(iterm(png(image)))
    return to_file(path)


def to_file(path: Path) -> Show:
    """Writes each image to `path`, whole, over the one before; says so once."""
    said: list[Path] = []

    def show(image: Image.Image) -> None:
        write_whole(path, functools.partial(image.save, format="PNG"), force=True)
        if not said:
            terminal.note(f"the preview is {path}")
            said.append(path)

    return show


def draw(sequence: str) -> None:
    terminal.clear_busy()
    sys.stderr.write(sequence)
    sys.stderr.flush()


def kitty(data: bytes) -> str:
    """A PNG in kitty's graphics protocol, in the place of the one before."""
    text = base64.b64encode(data).decode()
    parts = [text[k : k + CHUNK] for k in range(0, len(text), CHUNK)]
    head = "a=T,f=100,i=1,p=1,C=1,q=2,"  # draw, PNG, one identity, cursor stays, no answers
    return "".join(
        f"\x1b_G{head if k == 0 else ''}m={int(k < len(parts) - 1)};{part}\x1b\\"
        for k, part in enumerate(parts)
    )


def iterm(data: bytes) -> str:
    """A PNG as iTerm2's inline image, drawn where the cursor was before."""
    text = base64.b64encode(data).decode()
    return f"\x1b7\x1b]1337;File=inline=1;size={len(data)}:{text}\x07\x1b8"


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
