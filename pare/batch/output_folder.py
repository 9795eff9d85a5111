"""Where results go: a folder, or an address of fsspec (s3://, gs://, …).

A file appears under its name whole or not at all.  In a folder it is renamed into its place.
An object store shows an object when all of it has arrived; on other remote file systems the
file is moved into its place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pare.errors import MissingExtraError, OutputError
from pare.io.whole_files import claim, part_beside

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WORK = ".pare"
"""The folder, in the output, of what is not finished; `write_whole` explains who tidies it."""

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2", "memory"}
"""Protocols under which an object appears when it is complete."""


class Output(Protocol):
    """A place for files."""

    address: str

    def has(self, name: str) -> bool:
        """Whether the file is there."""

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """An empty folder for a worker, removed at the end."""

    def place(self, file: Path, name: str) -> None:
        """Give a finished file of a scratch folder its name, in the place of one that is there."""

    def names(self, folder: str) -> list[str]:
        """The files in a folder of the output, sorted, without the folder's name."""

    def read(self, name: str) -> bytes: ...


def open_output(address: str | Path) -> Output:
    """The output at a path, which is created, or at an fsspec address.

    Raises:
        OutputError: a path that is no folder, a folder that cannot be written, an address that
            nobody knows.
        MissingExtraError: fsspec, or the package of that protocol, is not installed.
        OSError: the address cannot be reached.
    """
    if "://" in str(address):
        return RemoteOutput(str(address))
    return FolderOutput(Path(address))


class FolderOutput:
    """A folder of this machine, or one that all machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.address = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"{root} is a file", expected="a folder, or the name of a new one")
        (self.root / WORK).mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {root} cannot be written", fix="choose another")

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = part_beside(self.root / WORK / "scratch")
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY)
        claim(descriptor)
        try:
            yield folder
        finally:
            os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)

    def place(self, file: Path, name: str) -> None:
        target = self.root / name
        if "/" in name:
            target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)

    def names(self, folder: str) -> list[str]:
        inside = self.root / folder
        return sorted(entry.name for entry in os.scandir(inside)) if inside.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class RemoteOutput:
    """A folder at an fsspec address; what is there is listed once, when it is opened."""

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            import fsspec
        except ImportError as error:
            raise needs_extra() from error
        try:
            self.files: AbstractFileSystem
            self.files, self.root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise MissingExtraError(str(error), fix="install that package") from error
        except ValueError as error:
            raise OutputError(f"`out` is {self.address}: {error}") from error
        protocol = self.address.partition("://")[0]
        self.whole_at_once = protocol in OBJECT_STORES
        self.known = set(self.names(""))

    def has(self, name: str) -> bool:
        return name in self.known

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="pare-") as folder:
            yield Path(folder)

    def place(self, file: Path, name: str) -> None:
        target = f"{self.root}/{name}"
        if self.whole_at_once:
            self.files.put_file(str(file), target)
        else:
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            part = f"{self.root}/{WORK}/{secrets.token_hex(8)}.part"
            self.files.makedirs(f"{self.root}/{WORK}", exist_ok=True)
            self.files.put_file(str(file), part)
            self.files.mv(part, target)
        self.known.add(name)
        file.unlink()

    def names(self, folder: str) -> list[str]:
        inside = f"{self.root}/{folder}".rstrip("/")
        self.files.invalidate_cache()
        if not self.files.exists(inside):
            return []
        found = self.files.ls(inside, detail=False)
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def read(self, name: str) -> bytes:
        content: bytes = self.files.cat_file(f"{self.root}/{name}")
        return content


def needs_extra() -> MissingExtraError:
    return MissingExtraError(
        "batches need more packages", fix='install them: pip install "pare[batch]"'
    )
