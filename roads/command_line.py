"""How the commands of this package (`python -m roads.…`) end.

The command `pare` has more of this; `roads` stands below it and cannot import it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable

from pare.errors import PareError

INTERRUPTED = 130  # 128 + SIGINT


def exit_code_of(body: Callable[[], int]) -> int:
    """What `body` returns; 2 and one line on stderr for an error that a user can mend."""
    try:
        return body()
    except PareError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        reason = str(error.strerror)
        print(f"{error.filename}: {reason[:1].lower()}{reason[1:]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """What to wrap a loop's indices in: a bar on stderr, or nothing if that is no terminal."""
    if not sys.stderr.isatty():
        return iter
    from tqdm import tqdm

    return functools.partial(tqdm, desc=what, leave=False)
