"""Where a model came from, and the SHA-256 of each of its files.

Hashing 4 GB takes two to three seconds of a processor, longer than mapping them into memory.
So a file is hashed when its fingerprint is first asked for (for a recipe, after the image is
made), and the result is remembered in the user's cache, by the file's path, size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pare.errors import OutputError
from pare.io.whole_files import write_whole
from pare.loading import hub_folder
from pare.runtime.short_repr import short_repr

ALGORITHM = "sha256"
"""How a recipe says that its fingerprints are of all bytes of the files."""

CHANGED = "changed while the model was in use"
"""Instead of the fingerprint of a file that is no longer the one that was loaded."""

REMEMBERED = 2**20
"""Bytes: smaller files are hashed again each time."""
MOST_REMEMBERED = 1000
"""Files in the cache; those that were hashed first go first."""
LARGEST_CACHE = 2**20
"""Bytes of the cache's file that are read."""


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was opened: enough to notice that it has been changed since."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def unchanged(self) -> bool:
        try:
            return FileState.of(self.path) == self
        except OSError:
            return False


class Fingerprints(Mapping[str, str]):
    """Name of a file inside the model -> SHA-256 of its bytes, computed when first asked for.

    Warns:
        UserWarning: a file has changed since it was loaded; its entry is then `CHANGED`.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.states = {name: FileState.of(path) for name, path in paths.items()}
        self.known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self.known:
            state = self.states[name]
            digest = sha256_of(state.path) if state.unchanged else CHANGED
            if digest == CHANGED or not state.unchanged:
                digest = CHANGED
                warnings.warn(
                    f"{state.path} has changed since it was loaded: a recipe cannot name it",
                    stacklevel=2,
                )
            self.known[name] = digest
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"Fingerprints({', '.join(self)})"


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from: enough to find it again, and to see that it is the same."""

    name: str
    """As the user wrote it."""
    path: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Weight file -> SHA-256 (see `Fingerprints`)."""
    revision: str | None = None
    """The commit's hash, of a model on the Hub."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Config or tokenizer file -> SHA-256."""

    __repr__ = short_repr

    def describe(self) -> dict[str, Any]:
        """All of it, fit for JSON.  Hashes the files."""
        return {
            "name": self.name,
            "path": self.path,
            "files": dict(self.files),
            "revision": self.revision,
            "configs": dict(self.configs),
            "fingerprint": ALGORITHM,
        }

    def has_files(self, recorded: Mapping[str, str]) -> bool:
        """Whether the weights are those of `recorded`, by the fingerprints of today or before."""
        if isinstance(self.files, Fingerprints) and recorded.keys() == self.files.keys():
            paths = {name: state.path for name, state in self.files.states.items()}
            return dict(self.files) == recorded or all(
                sampled_fingerprint(path) == recorded[name] for name, path in paths.items()
            )
        return dict(self.files) == dict(recorded)


def fingerprint_function(algorithm: object) -> Callable[[Path], str]:
    """The function that computes fingerprints as a recipe has them.

    Args:
        algorithm: the recipe's `model["fingerprint"]`; older recipes have none.
    """
    return sha256_of if algorithm == ALGORITHM else sampled_fingerprint


def config_fingerprints(folder: Path) -> Fingerprints:
    """Fingerprints of a model's configs and tokenizer files, on which images depend as well."""
    return Fingerprints(existing(folder, (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS)))


def existing(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_file()}


def tokenizer_fingerprints(
    folder: Path, fingerprint: Callable[[Path], str] | None = None
) -> Mapping[str, str]:
    """Of a tokenizer's folder, or of a model's whole folder that stands for it.

    Args:
        fingerprint: computes them at once; None is SHA-256, when first asked for.
    """
    whole = (folder / "tokenizer").is_dir()
    names = [
        name for name in (*hub_folder.CONFIGS, *hub_folder.TOKENIZER_EXTRAS) if "tokenizer/" in name
    ]
    paths = {name: folder / (name if whole else Path(name).name) for name in names}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    if fingerprint is None:
        return Fingerprints(paths)
    return {name: fingerprint(path) for name, path in paths.items()}


# --- hashing ------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """The SHA-256 of all of a file's bytes; of large files from the cache, where it has it.

    Raises:
        OSError: the file cannot be read.
    """
    state = FileState.of(path)
    if state.size < REMEMBERED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    known = recall(state)
    if known is not None:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if state.unchanged:
        remember(state, digest)
    return digest


def sampled_fingerprint(path: Path) -> str:
    """The fingerprint in older recipes: SHA-256 of 256 evenly spread blocks of a large file.

    Two trainings of one model differ in every block; a change of a few bytes is not seen.
    """
    size, blocks, block = path.stat().st_size, 256, 2**16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= blocks * block:
            digest.update(file.read())
        else:
            for k in range(blocks):
                file.seek((size - block) * k // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()


# --- the cache of hashes ------------------------------------------------------------------


def cache_file() -> Path:
    """`XDG_CACHE_HOME/pare/sha256.json`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pare" / "sha256.json"


def read_cache() -> dict[str, list[Any]]:
    """{path: [size, time in nanoseconds, SHA-256]}; empty if the file is not there or damaged."""
    try:
        with cache_file().open("rb") as file:
            raw = json.loads(file.read(LARGEST_CACHE))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return {}
    return raw if isinstance(raw, dict) else {}


def recall(state: FileState) -> str | None:
    match read_cache().get(os.path.realpath(state.path)):
        case [state.size, state.mtime_ns, str(digest)] if len(digest) == 64:
            return digest
    return None


def remember(state: FileState, digest: str) -> None:
    """Note a hash.  A cache that cannot be written only means that it is computed again."""
    cache = read_cache()
    cache.pop(os.path.realpath(state.path), None)
    cache[os.path.realpath(state.path)] = [state.size, state.mtime_ns, digest]
    kept = json.dumps(dict(list(cache.items())[-MOST_REMEMBERED:]))

    def write(file: BinaryIO) -> None:
        file.write(kept.encode())

    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write, force=True)
    except (OSError, OutputError, RuntimeError, UnicodeEncodeError):
        pass
