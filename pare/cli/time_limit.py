"""How long a recipe's run may take: said by its first step, and bounded where nobody watches.

A recipe comes from whoever made the image, and may ask for days of work.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import click

from pare.cli import terminal
from pare.cli.grouped_help import Function, option
from pare.errors import RecipeError

UNATTENDED_MINUTES = 30.0
SAID_FROM = 20.0  # seconds that a run takes by its first step: less is not worth a line


def time_limit_option(when: str) -> Callable[[Function], Function]:
    """--time-limit; `when`: in which runs it holds by default."""
    return option(
        "--time-limit", type=click.FloatRange(min=0, max=1e6), metavar="MINUTES",
        help=f"End a recipe's run that takes longer; 0: no limit. "
             f"Default: {UNATTENDED_MINUTES:g} {when}.",
    )  # fmt: skip


def limit_of(minutes: float | None, *, unattended: bool) -> float | None:
    """Seconds that a run may take; None: as many as it likes.

    Args:
        minutes: what --time-limit says, if it is given.
    """
    if minutes is None:
        minutes = UNATTENDED_MINUTES if unattended else 0
    return 60 * minutes or None


def nobody_watches() -> bool:
    return not sys.stderr.isatty()


class TimedRun:
    """A run whose steps are timed, and which ends after `seconds`."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.expired, self.said = seconds, False, False

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """End what runs inside once its time is over.

        Raises:
            RecipeError: it was.
        """
        timer = threading.Timer(self.seconds or 0, self.expire)
        timer.daemon = True
        if self.seconds is not None:
            timer.start()
        try:
            yield
        except KeyboardInterrupt:
            if not self.expired:
                raise
            raise too_long("has not ended", self.seconds or 0) from None
        finally:
            timer.cancel()

    def expire(self) -> None:
        self.expired = True
        _thread.interrupt_main()

    def follow(self, steps: Iterable[int], bar: Callable[..., Iterable[int]]) -> Iterator[int]:
        """The steps of a loop: after the first one, what all of them will take is known.

        Raises:
            RecipeError: more than the run may.
        """
        listed = list(steps)
        started = time.monotonic()
        for number, step in enumerate(bar(listed)):
            yield step
            if number == 0:
                self.check(len(listed) * (time.monotonic() - started), len(listed))

    def check(self, seconds: float, steps: int) -> None:
        if self.seconds is not None and seconds > self.seconds:
            raise too_long(f"will take {in_words(seconds)}, by its first step", self.seconds)
        if seconds > SAID_FROM and not self.said:
            self.said = True
            terminal.note(f"by the first of {steps} steps, these take {in_words(seconds)}")


def too_long(problem: str, seconds: float) -> RecipeError:
    return RecipeError(
        f"the recipe's run {problem}", expected=f"at most {in_words(seconds)}",
        fix="allow more with --time-limit MINUTES, or any with --time-limit 0",
    )  # fmt: skip


def in_words(seconds: float) -> str:
    """`40 seconds`, `3 minutes`, `5 hours`."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} seconds"


def follow_in(context: click.Context, run: TimedRun) -> None:
    """Let the command of `context` time its steps for `run`."""
    context.meta[terminal.FOLLOW] = run.follow
