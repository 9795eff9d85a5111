"""What the command prints where: results, notes, errors and warnings in one line, progress.

Results go to stdout, everything else to stderr.  What only someone who watches wants (a busy
line, progress bars, a summary) is printed on a terminal alone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TextIO

import click

from pare.cli.parameter_names import with_options
from pare.errors import PareError, is_out_of_memory, requested_memory

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
BROKEN_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM

EXIT_CODES = {
    0: "done, with warnings or without",
    1: "`verify` or `bench` found a broken bound, `rerun` made another image, or jobs of "
    "`batch` failed; or a bug in pare, with its traceback",
    2: "an error that you can fix, in one sentence; no file is left half written",
    INTERRUPTED: "Ctrl-C",
    BROKEN_PIPE: "the reader of the output has ended, as in `pare … | head -1`",
    TERMINATED: "the process was terminated (SIGTERM)",
}

# Errors of the operating system that a user can fix. Any other keeps its traceback.
OS_ERRORS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "the system does not permit this",
    errno.EISDIR: "is a folder; expected a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "exists",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "symbolic links go in a circle",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than the file system allows",
    errno.EIO: "the disk cannot be read or written",
    errno.EMFILE: "too many open files",
}

STARTED = "pare.started"  # where a context's `meta` keeps when the command began
FOLLOW = "pare.follow"  # and, for a recipe's run, what times its steps
TYPED = "pare.typed"  # and in whose context its options were typed, if in another
CAPTURED = "pare.captured"  # and a list of results: of a job of `pare batch`, which prints nothing

# Read by transformers and huggingface_hub when they are imported.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

# Read by OpenMP when torch is imported.  By default the threads that wait for others spin, and
# on a busy machine they take the time from those that they wait for: with two other processes
# on two cores an image took 182 s, and takes 7 s where threads sleep instead.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
OTHER_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run_in_words(body: Callable[[], int]) -> int:
    """The exit code of `body`; what a user can cause becomes one line on stderr.

    Anything else is a bug in pare and is raised.
    """
    # Python has None for a stream that the shell has closed (2>&-).
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        return complain("standard output is closed; redirect it to /dev/null instead")
    with ended_in_order() as ends, library_environment(), warnings_in_words():
        try:
            code = body()
            sys.stdout.flush()
        except click.exceptions.Exit as request:  # --help, --version, context.exit
            code = request.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = 2
        except click.ClickException as error:
            code = complain(usage_sentence(error))
        except PareError as error:
            code = complain(error.args[0])
            for row in error.table:
                note(printable(row), prefix="")
        except KeyboardInterrupt:
            code = say_ended(ends)
        except BrokenPipeError:
            discard_output()
            code = BROKEN_PIPE
        except Exception as error:
            if ends.asked:  # swallowed on its way here, see `Ends`
                code = say_ended(ends)
            elif (sentence := machine_sentence(error)) is not None:
                code = complain(sentence)
            else:
                raise
    return code


def say_ended(ends: Ends) -> int:
    """One line and the exit code for a run that was asked to end."""
    # Python notes that an interrupt left a piece of `exec` (imports are full of them), and
    # with -m ends itself by the signal in spite of the code; another piece clears it.
    exec("")
    terminated = ends.asked == signal.SIGTERM
    complain("terminated" if terminated else "interrupted")
    return TERMINATED if terminated else INTERRUPTED


def machine_sentence(error: Exception) -> str | None:
    """What a user can mend about memory, disk or files, in words; None for anything else."""
    if is_out_of_memory(error):
        return out_of_memory_sentence(error)
    if isinstance(error, OSError) and error.errno in OS_ERRORS:
        if not error.filename:  # perhaps stdout itself
            discard_output()
        return os_error_sentence(error)
    return None


def complain(sentence: str, prefix: str = "pare: ") -> int:
    """Print one line on stderr; the exit code for an error that the user can fix."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads stderr: the exit code still tells
        note(one_line(sentence), prefix)
    return 2


# --- results, notes, and what only a terminal shows ---------------------------------------


def result(value: object) -> None:
    """Print what the command was asked for."""
    if (kept := captured()) is not None:
        kept.append(value)
        return
    clear_busy()
    click.echo(value)


def note(words: str, prefix: str = "pare: ") -> None:
    """Print something about the run on stderr."""
    if captured() is not None and not prefix:  # about an image: its result says that, too
        return
    clear_busy()
    click.echo(prefix + words, err=True)


def summary(words: str) -> None:
    """At the end of a run on a terminal: what was made, and how long it took."""
    if sys.stderr.isatty() and captured() is None:
        note(words)


def busy(what: str) -> None:
    """On a terminal: say what takes a while, on a line that the next output replaces."""
    if sys.stderr.isatty() and captured() is None:
        click.echo(f"\r\x1b[Kpare: {printable(what)} …", err=True, nl=False)


def clear_busy() -> None:
    """Take the busy line away; harmless where there is none."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)


def captured() -> list[object] | None:
    """Where the running command's results go if they are not printed."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(CAPTURED)


def note_on_terminal() -> Callable[[str], None] | None:
    """What a long command tells of its progress, on a terminal."""
    return note if sys.stderr.isatty() else None


# --- text -----------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """`text` without line breaks and without anything that would steer a terminal."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """`text` with everything that is no character of a line spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def usage_sentence(error: click.ClickException) -> str:
    sentence = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        sentence += f"; see {error.ctx.command_path} --help"
    return sentence


def os_error_sentence(error: OSError) -> str:
    words = OS_ERRORS[error.errno or 0]
    return f"{os.fsdecode(error.filename)}: {words}" if error.filename else words


def out_of_memory_sentence(error: Exception) -> str:
    return (
        f"there is not enough memory{requested_memory(error)}; make a smaller image (--size), "
        "fewer at once (--batch, --count), let the VAE work in tiles (--tile), or use a smaller "
        "--dtype"
    )


def discard_output() -> None:
    """Stop Python from flushing stdout again at its exit, which would fail again."""
    with contextlib.suppress(io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Ends:
    """Whether the process was asked to end, and by which signal.

    The exception alone does not tell: extension modules that import others while they are
    imported themselves may swallow it, and fail with an error of their own a little later.
    """

    asked: signal.Signals | None = None


@contextlib.contextmanager
def ended_in_order() -> Iterator[Ends]:
    """SIGTERM ends the run as Ctrl-C does, so that what is half written is taken away."""
    ends = Ends()

    def end(number: int, frame: FrameType | None) -> None:
        ends.asked = signal.Signals(number)
        raise KeyboardInterrupt

    # Python lets the main thread alone have a say in this; whoever has already had it, keeps it.
    main = threading.current_thread() is threading.main_thread()
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    free = {number: first for number, first in own.items() if signal.getsignal(number) == first}
    taken = free if main else {}
    for number in taken:
        signal.signal(number, end)
    try:
        yield ends
    finally:
        for number, first in taken.items():
            signal.signal(number, first)


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Warnings for users as one line each on stderr, once; those for developers not at all."""
    shown = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            context = click.get_current_context(silent=True)
            words = str(message)
            context = context.meta.get(TYPED, context) if context else None
            if context is not None and context.parent is not None:
                words = with_options(words, context.command)
            complain(words, prefix="pare: warning: ")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("default", RuntimeWarning)
        # Pillow's own: of large images, where pare's limit is lower and an error; of tags
        # that make no sense, which are passed over.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def library_environment() -> Iterator[None]:
    """While the command runs: no notes and no progress bars of libraries, threads that sleep.

    Whoever sets one of the variables gets what they asked for.
    """
    added = {name: value for name, value in QUIET.items() if name not in os.environ}
    if not any(name in os.environ for name in OTHER_WAITING):
        added |= WAITING
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def progress(what: str = "steps") -> Callable[[Iterable[int]], Iterable[int]]:
    """What to wrap a loop's indices in: a bar on stderr, or nothing if that is no terminal."""
    bar: Callable[[Iterable[int]], Iterable[int]] = iter
    if sys.stderr.isatty() and captured() is None:
        clear_busy()
        from tqdm import tqdm

        bar = functools.partial(tqdm, desc=what, leave=False)
    context = click.get_current_context(silent=True)
    follow = context.meta.get(FOLLOW) if context else None
    return functools.partial(follow, bar=bar) if follow else bar
