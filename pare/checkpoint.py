"""A checkpoint's file, opened without running anything in it and without copying it.

Two kinds exist.  safetensors is a table of names, types, shapes and offsets with the
numbers behind it.  A `.ckpt` (also `.pt`, `.pth`, `.bin`) is a zip archive with a pickle
in it, which is a small *program*: torch's restricted reader (`weights_only`) runs the few
instructions that build tensors and stops at all others.  Both are mapped into memory: the
operating system reads a tensor when it is first used.

A file is told by how it begins, not by its name.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pare.errors import ModelError, WeightsError

# Files that stand where weights were expected, by their first bytes.
OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights themselves",
    b"<!DOCTYPE": "a web page, perhaps the site's error message",
    b"<!doctype": "a web page, perhaps the site's error message",
    b"<html": "a web page, perhaps the site's error message",
    b"GGUF": "a GGUF file, as language models use",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}

# Objects that training leaves beside the weights: whole libraries, and single names.
# `Inert` takes their place; anything else that is no tensor counts as code.
TRAINERS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
BYSTANDERS = frozenset(
    """
    argparse.Namespace builtins.set builtins.int builtins.float builtins.complex builtins.slice
    builtins.dict builtins.list collections.defaultdict typing.Any _codecs.encode
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    torch.nn.modules.container.ParameterDict torch.nn.modules.container.ParameterList
    """.split()  # noqa: SIM905 - one name a line would fill a screen
)

LARGEST_PICKLE = 64 * 2**20
"""Bytes: the pickle in an SD checkpoint, which names its tensors, has half a million."""

# What torch.load raises on bytes that are not what they should be.
MALFORMED = (
    RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError,
    AttributeError, AssertionError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, by name, mapped; and what else it says."""

    path: Path
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)
    """safetensors' metadata, or the entries of a `.ckpt` that are no tensors."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


class Inert:
    """Stands for an object of a library: takes whatever it is given and does nothing."""

    def __new__(cls, *args: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors file or a `.ckpt`.

    Raises:
        ModelError: the file is something else.
        WeightsError: it is damaged, or a pickle that wants to run code.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(32)
    for signature, words in OTHER_FILES.items():
        if head.startswith(signature):
            raise ModelError(f"{path} is {words}", fix="download the weights again")
    if not head:
        raise WeightsError(f"{path} is empty", fix="download it again")
    if head.startswith(b"PK"):
        return open_pickle(path)
    if head.startswith(b"\x80") and head[8:9] != b"{":
        raise WeightsError(
            f"{path} is a bare pickle, as PyTorch wrote before 1.6",
            expected="a .safetensors file or a zipped .ckpt",
            fix="load it where you trust it and save it again",
        )
    return open_safetensors(path)


def open_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise damaged(path, "safetensors", error) from error
    return Checkpoint(path, tensors, metadata)


def open_pickle(path: Path) -> Checkpoint:
    """A zipped `.ckpt`: nothing in its pickle is run, tensors stay mapped."""
    check_archive(path)
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        code = [
            name for name in foreign if not name.startswith(TRAINERS) and name not in BYSTANDERS
        ]
        if code:
            raise WeightsError(
                f"{path} is a pickle with code in it: it wants to call {', '.join(code[:3])}",
                expected="tensors alone",
                fix="do not load it anywhere; look for a .safetensors file",
            )
        with torch.serialization.safe_globals([(Inert, name) for name in foreign]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except WeightsError:
        raise
    except MALFORMED as error:
        raise damaged(path, ".ckpt", error) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}", expected="named tensors")
    nested = content.get("state_dict")
    named = nested if isinstance(nested, Mapping) else content
    tensors = {
        name: tensor
        for name, tensor in named.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    extras = {str(key): value for key, value in content.items() if not isinstance(value, Tensor)}
    return Checkpoint(path, tensors, extras)


def check_archive(path: Path) -> None:
    """Raise unless the zip archive is whole and cannot swell when it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise damaged(path, ".ckpt", error) from error
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError(
            f"{path} is a zip archive without PyTorch's data.pkl",
            expected="a .ckpt or .safetensors file",
            fix="unpack it first if it is an ordinary archive",
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} is compressed", expected="a .ckpt as PyTorch writes it")
    if pickles[0].file_size > LARGEST_PICKLE:
        raise WeightsError(f"{path} has a pickle of {pickles[0].file_size} bytes in it")


def damaged(path: Path, kind: str, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(f"{path} is not a whole {kind} file ({reason})", fix="download it again")
