"""Files are written whole or not at all, and nothing is overwritten by accident.

The bytes go to a temporary file in the same folder; when they are complete and on the
disk, one system call gives the file its name.  Whoever looks at the name sees the old
file or the new one, never a part, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pare.errors import ImageError, OutputError

HAS_LOCKS = os.name == "posix"
if sys.platform != "win32":
    import fcntl

PART_NAME = re.compile(r"\.pare-[0-9a-f]{16}\.part")
LEFTOVER_AGE = 60.0  # seconds

# File systems without hard links answer os.link with one of these.
NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}

# And those that cannot exchange two names with one of these.
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_whole(path: Path, write: Callable[[BinaryIO], None], *, force: bool = False) -> None:
    """Call `write` with an open binary file and give the result the name `path`.

    On any error, Ctrl-C included, neither `path` nor anything beside it has changed.
    A symbolic link is followed: the file that it points to is replaced.

    Raises:
        OutputError: `path` exists and `force` is False, or `path` cannot be a file.
        OSError: the disk is full, the folder cannot be written, ….
    """
    target = check_output(path, force=force)
    temporary = part_beside(target)
    try:
        with open(temporary, "xb") as file:  # with the permissions that the umask leaves
            claim(file.fileno())
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, target)
        else:
            name_new_file(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# --- what a killed process leaves behind ---------------------------------------------------


def part_beside(target: Path) -> Path:
    """A name for what is to become `target`; what dead writers left in its folder is removed."""
    remove_leftovers(target.parent)
    return target.with_name(f".pare-{secrets.token_hex(8)}.part")


def claim(descriptor: int) -> None:
    """Hold a file or folder as this process's own: the system lets go when the process ends."""
    if HAS_LOCKS:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files and folders of writers that no longer live.

    Only those by the name that `part_beside` gives, of this user, and older than a writer
    takes between making and claiming one.
    """
    if not HAS_LOCKS:
        return
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if PART_NAME.fullmatch(entry.name)]
    except OSError:
        return
    for path in (folder / name for name in names):
        with contextlib.suppress(OSError):
            remove_if_abandoned(path)


def remove_if_abandoned(path: Path) -> None:
    status = path.lstat()
    own = status.st_uid == os.getuid() and time.time() - status.st_mtime > LEFTOVER_AGE
    if not own or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


# --- names --------------------------------------------------------------------------------


def name_new_file(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`, which must not exist by now either."""
    try:
        os.link(temporary, target)  # unlike os.replace, refuses to overwrite
    except FileExistsError as error:
        raise already_exists(target) from error
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if target.exists():
            raise already_exists(target) from error
        os.replace(temporary, target)


def exchange(one: Path, other: Path) -> None:
    """Let two names in one folder change places, in one step where the system can do that.

    Where it cannot, there is an instant in which `other` stands for nothing.

    Raises:
        OSError: a name that does not exist, a folder that cannot be written, ….
    """
    if exchanged_at_once(one, other):
        return
    third = other.with_name(f".pare-{secrets.token_hex(8)}.old")  # which nobody removes
    os.rename(other, third)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(third, other)
        raise
    os.rename(third, one)


def exchanged_at_once(one: Path, other: Path) -> bool:
    """Ask the system itself, as Python has no call for it; False where it cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD: relative to the current folder; RENAME_EXCHANGE
        failed = library.renameat2(here, names[0], here, names[1], swap)
    elif sys.platform == "darwin":
        failed = library.renamex_np(*names, 2)  # RENAME_SWAP
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    return not failed


def check_output(path: Path, *, force: bool = False) -> Path:
    """The file that `path` stands for, links followed, if it can be written.

    Call it before a long computation, so that nothing is lost at its end.

    Raises:
        OutputError: see `write_whole`; also if the folder is missing or read-only.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    folder = target.parent
    if mode is None and not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", fix="create it first")
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder", expected="the name of a file")
    if mode is not None and not stat.S_ISREG(mode):
        raise OutputError(f"{path} is not a regular file", expected="the name of a file")
    if mode is not None and not force:
        raise already_exists(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} cannot be written", fix="choose another")
    return target


def already_exists(path: Path) -> OutputError:
    return OutputError(f"{path} exists", fix="pass `force=True` to overwrite it")


def sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal.

    Raises:
        ImageError: a pipe or a device, which may never end.
        OSError: the file cannot be opened.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder says what it is
        raise ImageError(f"{path} is not a regular file", expected="an image's file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
