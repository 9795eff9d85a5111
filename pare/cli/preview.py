"""--preview: the predicted x0 while the model samples, in the terminal or as a file.

Some terminals that draw images are known by their environment: kitty and those with its graphics
protocol, iTerm2 and those with its inline images.  Those that draw sixels say so if asked.  In any
other the preview is a PNG that is replaced as sampling goes on; most image viewers show it again
each time.
"""

from __future__ import annotations

import base64
import copy
import functools
import io
import itertools
import os
import re
import select
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
ANSWER = 0.3  # seconds for a terminal to answer; over a slow line it may take a tenth
COLOURS = 128  # of a sixel image; terminals have at least 256 registers

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
    if has_sixels():
        return lambda image: draw(sixels(image))
    return to_file(path)


def has_sixels() -> bool:
    """Whether the terminal of this process draws sixels; False where it cannot be asked."""
    try:
        terminal_file = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:  # there is none
        return False
    try:
        # A process in the background that changes the terminal's mode would be stopped.
        foreground = os.tcgetpgrp(terminal_file) == os.getpgrp()
        return foreground and says_sixels(terminal_file)
    finally:
        os.close(terminal_file)


def says_sixels(file: int, timeout: float = ANSWER) -> bool:
    """Ask a terminal for its device attributes (DA1); 4 among them is sixel graphics.

    The answer is ESC [ ? 62 ; 4 ; … c.  What a terminal does not answer in time is False.
    """
    import termios
    import tty

    before = termios.tcgetattr(file)
    answer, until = b"", time.monotonic() + timeout
    try:
        tty.setcbreak(file)  # the answer is not echoed, and comes without a line's end
        os.write(file, b"\x1b[c")
        while not re.search(rb"\x1b\[\?[0-9;]*c", answer):
            left = until - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return False
            answer += os.read(file, 64)
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
    (attributes,) = re.findall(rb"\x1b\[\?([0-9;]*)c", answer)
    return b"4" in attributes.split(b";")


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


def sixels(image: Image.Image) -> str:
    """An image as sixels, drawn where the cursor was before (DEC STD 070, chapter 9).

    A character holds six pixels of a column, as bits from the top, and is drawn in one colour;
    every band of six rows is drawn once for each colour in it.
    """
    import numpy as np

    reduced = image.convert("RGB").quantize(COLOURS)
    pixels = np.asarray(reduced)
    palette = np.asarray(reduced.getpalette()).reshape(-1, 3) * 100 // 255  # in percent
    parts = [f'\x1b7\x1bP0;1q"1;1;{image.width};{image.height}']
    parts += [f"#{k};2;{r};{g};{b}" for k, (r, g, b) in enumerate(palette.tolist())]
    for top in range(0, image.height, 6):
        band = pixels[top : top + 6]
        for colour in np.unique(band):
            bits = ((band == colour) << np.arange(len(band))[:, None]).sum(axis=0)
            runs = [(chr(63 + bit), len([*same])) for bit, same in itertools.groupby(bits.tolist())]
            line = "".join(f"!{n}{c}" if n > 3 else c * n for c, n in runs)
            parts.append(f"#{colour}{line}$")  # $: back to the band's beginning
        parts.append("-")  # the next band
    return "".join([*parts, "\x1b\\\x1b8"])


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
