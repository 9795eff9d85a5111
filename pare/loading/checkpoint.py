"""Opens checkpoint files, safetensors or `.ckpt`, without running code in them or copying them.

A safetensors file is a table of names, types, shapes and offsets, followed by the numbers.
A `.ckpt` (also `.pt`, `.pth`, `.bin`) is a zip archive with a pickle in it, which is a small
*program*: torch's restricted reader (`weights_only`) runs the few instructions that build
tensors and stops at all others.  Both are mapped into memory: the operating system reads a
tensor when it is first used.

The format is recognised by the first bytes, not by the file's name.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import errno
import pickle
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pare.errors import ModelError, WeightsError, is_out_of_memory, memory_for_reading
from pare.runtime.short_repr import short_repr

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
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}

# Objects that training leaves beside the weights: whole libraries, and single names.
# `Inert` takes their place (`Kept` where there may be tensors in them); anything else that is
# no tensor counts as code.
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

# What tensors are made of.  torch's reader would call more than that: a `bytearray` of any
# length, tensors on other devices, subclasses of tensors.
BUILDERS = frozenset(
    """
    collections.OrderedDict collections.Counter builtins.set builtins.complex _codecs.encode
    torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3
    torch._utils._rebuild_parameter torch.nn.parameter.Parameter torch.Size torch.device
    torch.storage.UntypedStorage
    """.split()  # noqa: SIM905
)
WIDTHS = {
    "torch.storage.UntypedStorage": 1, "torch.ByteStorage": 1, "torch.CharStorage": 1,
    "torch.BoolStorage": 1, "torch.ShortStorage": 2, "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2, "torch.IntStorage": 4, "torch.FloatStorage": 4,
    "torch.LongStorage": 8, "torch.DoubleStorage": 8, "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
}  # fmt: skip
"""Bytes a number, of each kind of storage."""
BUILDERS |= WIDTHS.keys()
BUILDERS |= {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}

STORED_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32,
    "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The dtypes of stored tensors, by safetensors' names."""
DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()} | {torch.complex64: "C64"}
"""safetensors' names of dtypes; complex numbers are named in messages alone."""

FLOATING = tuple(name for name, dtype in STORED_DTYPES.items() if dtype.is_floating_point)
"""The dtypes that weights may have, widest first."""

LARGEST_PICKLE = 16 * 2**20
"""Bytes: the pickle in an SD checkpoint, which names its tensors, has half a million."""

MOST_INSTRUCTIONS = 1_000_000
"""In a pickle: an SD checkpoint's has 34,000, with an optimizer's state 97,000."""

LARGEST_TUPLE = 100_000
"""Numbers in a tuple, those in its tuples counted as often as they occur."""

LARGEST_INTEGER = 2**63
"""Beyond it, integers of one hash are easily made, and a dictionary of them takes for ever."""

MOST_HASHED = 10_000
"""Items that sets and the like are made of, all of a pickle's together."""

OVERLAPPING = 16 * 2**20
"""Bytes of a tensor whose numbers lie on one another (strides of 0) that are allowed."""

ADVICE = re.compile(r"weights.only|add_safe_globals|safe_globals|torch\.load", re.IGNORECASE)
"""In what torch says of a file that it does not read."""

# What torch.load raises on bytes that are not what they should be.
MALFORMED = (
    RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError,
    AttributeError, AssertionError, OverflowError,
)  # fmt: skip


def stored_dtype(tensor: Tensor) -> str:
    """safetensors' name of a tensor's dtype; torch's where it has none."""
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, by name, mapped; and what else it says."""

    path: Path
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)
    """safetensors' metadata, or the entries of a `.ckpt` that are no tensors."""

    __repr__ = short_repr

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


class Kept(Inert):
    """Stands for a ParameterDict, in which textual inversion's own code keeps its vectors."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def entries(self) -> dict[str, Tensor]:
        """The parameters by name."""
        inner = self.state.get("_parameters") if isinstance(self.state, Mapping) else None
        named = inner.items() if isinstance(inner, Mapping) else ()
        return {str(name): value for name, value in named if isinstance(value, Tensor)}


KEPT = "torch.nn.modules.container.ParameterDict"


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors file or a `.ckpt`.

    Raises:
        ModelError: the file is something else.
        WeightsError: it is damaged, or a pickle that would run code.
        NotEnoughMemoryError: it asks for more memory than there is.
        OSError: it cannot be opened.
    """
    with memory_for_reading(path):
        return open_by_first_bytes(path)


def open_by_first_bytes(path: Path) -> Checkpoint:
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise ModelError(f"{path} is not a regular file", expected="a checkpoint")
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
    """Open a safetensors file.

    Raises:
        WeightsError: it is damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise damaged(path, "safetensors", error) from error
    return Checkpoint(path, tensors, metadata)


def open_pickle(path: Path) -> Checkpoint:
    """A zipped `.ckpt`: nothing in its pickle is run, tensors stay mapped."""
    archived, records = read_archive(path)
    try:
        contents = scan_pickle(archived)
        check_calls(path, contents.names)
        check_storages(path, contents.storages, records)
        inert: list[Any] = [
            (Kept if name == KEPT else Inert, name)
            for name in contents.names
            if name not in BUILDERS
        ]
        with torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except WeightsError:
        raise
    except MALFORMED as error:
        if is_out_of_memory(error):
            raise
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
    for name, tensor in tensors.items():
        check_overlap(path, name, tensor)
    extras = {str(key): value for key, value in content.items() if not isinstance(value, Tensor)}
    return Checkpoint(path, tensors, extras)


def check_overlap(path: Path, name: str, tensor: Tensor) -> None:
    """Raise if a tensor would be far larger as a copy than it is in the file.

    With strides of 0, a few bytes are read as a tensor of any size.
    """
    size = tensor.numel() * tensor.element_size()
    if size > max(tensor.untyped_storage().nbytes(), OVERLAPPING):
        raise WeightsError(
            f"{path} holds {name[:80]!r} as {' x '.join(map(str, tensor.shape))} numbers, of which "
            f"only {tensor.untyped_storage().nbytes()} bytes are in the file",
            expected="tensors that lie in one piece",
        )


def check_calls(path: Path, names: Iterable[str]) -> None:
    """Raise if the pickle calls anything that neither builds tensors nor is replaced by `Inert`."""
    foreign = [
        name
        for name in sorted(names)
        if name not in BUILDERS and name not in BYSTANDERS and not name.startswith(TRAINERS)
    ]
    if not foreign:
        return
    listed = ", ".join(foreign[:3])
    if all(name.startswith("torch._utils._rebuild_") for name in foreign):
        raise WeightsError(
            f"{path} holds tensors of a kind that no weights are ({listed})",
            expected="plain tensors of numbers",
        )
    raise WeightsError(
        f"{path} is a pickle with code in it: it would call {listed}",
        expected="tensors alone",
        fix="do not load it anywhere; look for a .safetensors file",
    )


def check_storages(
    path: Path, storages: Iterable[tuple[object, ...]], records: Mapping[str, int]
) -> None:
    """Raise unless every storage is a record of the archive and as long as that.

    torch's reader would map what lies behind a record that is shorter.
    """
    for storage in storages:
        match storage:
            case ("storage", str(kind), str(key), _, int(count)) if kind in WIDTHS:
                if records.get(key) != count * WIDTHS[kind]:
                    problem = f"{path} holds {records.get(key, 0)} bytes as storage {key!r}"
                    expected = f"{count * WIDTHS[kind]}, as its pickle says"
                    raise WeightsError(problem, expected=expected, fix="download it again")
            case _:
                raise ValueError("a storage of an unknown kind")


@dataclass(frozen=True)
class PickleContents:
    """What a pickle says, known without doing it."""

    names: set[str]
    """Everything that it would call."""
    storages: list[tuple[object, ...]]
    """What it says of the archive's records: ("storage", type, key, device, numbers)."""


@dataclass(eq=False, slots=True)
class StackItem:
    """What lies on a pickle's stack."""

    size: int = 1
    """Of a tuple: its parts, and theirs, as often as they occur."""
    items: int = 0
    """Of a list, or of the lists in a tuple: their items, and the parts of those."""
    value: object = None
    """Where it is text, a number or a tuple of such; of a function, its name."""
    made_by: str = ""
    """The instruction that put it there."""


MARK = StackItem()

HASHED_BY_CONTENT = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "REDUCE", "NEWOBJ",
                     "BUILD", "BINPERSID")  # fmt: skip
"""Instructions whose results are no keys of a checkpoint's dictionaries, and slow ones to hash."""

COLLECTIONS = ("builtins.set", "collections.Counter", "collections.OrderedDict")


def scan_pickle(archived: bytes) -> PickleContents:
    """Follow a pickle's instructions without doing what they say, and bound what they cost.

    A tuple may hold one tuple twice, that one another twice, and so on: a hundred bytes then
    stand for more parts than can be counted, and a dictionary that takes it for a key counts
    them.  So the sizes of tuples are followed too.  Dictionaries whose keys all have one hash
    take time with the square of their number: keys are text, small integers and classes.

    Raises:
        ValueError, LookupError: it is no pickle, or none that `torch.save` writes.
    """
    contents = PickleContents(set(), [])
    stack: list[StackItem] = []
    memo: dict[object, StackItem] = {}
    hashed = encoded = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(archived)):
        name = opcode.name
        if count >= MOST_INSTRUCTIONS:
            raise ValueError("its pickle has far more instructions than weights need")
        if name == "STACK_GLOBAL" or (name == "PROTO" and argument != 2):
            raise ValueError("a pickle of another protocol than torch.save's")
        if isinstance(argument, int) and abs(argument) >= LARGEST_INTEGER:
            raise ValueError("a number in its pickle has more than 64 bits")
        if "PUT" in name:
            memo[argument] = stack[-1]
            continue
        taken = take(stack, opcode)
        if name in ("SETITEM", "SETITEMS") and any(
            key.made_by in HASHED_BY_CONTENT for key in taken[1::2]
        ):
            raise ValueError("a key in its pickle is neither text nor a number")
        if name in ("GLOBAL", "INST"):
            called = today(*str(argument).split(" ", 1))
            contents.names.add(called)
            stack.append(StackItem(value=called, made_by=name))
        elif "GET" in name:
            stack.append(memo[argument])
        elif name.startswith("TUPLE"):
            size = 1 + sum(item.size for item in taken)
            if size > LARGEST_TUPLE:
                raise ValueError("a tuple in its pickle is larger than memory")
            items = sum(item.items for item in taken)
            stack.append(StackItem(size, items, tuple(item.value for item in taken), name))
        elif name in ("APPEND", "APPENDS"):
            taken[0].items += sum(item.size + item.items for item in taken[1:])
            stack.append(taken[0])
        elif name == "BINPERSID" and isinstance(taken[0].value, tuple):
            contents.storages.append(taken[0].value)
            stack.append(StackItem(made_by=name))
        else:
            marks = pickletools.markobject
            new = StackItem(value=argument, made_by=name)
            stack += [MARK if pushed is marks else new for pushed in opcode.stack_after]
        if name == "BUILD" or (name == "REDUCE" and taken[0].value in COLLECTIONS):
            hashed += taken[1].items
        if name == "REDUCE" and taken[0].value == "_codecs.encode":
            parts = taken[1].value if isinstance(taken[1].value, tuple) else ()
            encoded += sum(len(part) for part in parts if isinstance(part, str))
        if hashed > MOST_HASHED or encoded > LARGEST_PICKLE:
            raise ValueError("its pickle asks for far more work than weights need")
    return contents


def take(stack: list[StackItem], opcode: pickletools.OpcodeInfo) -> list[StackItem]:
    """Remove from the stack what an instruction takes; a mark goes, and does not count."""
    count = len(opcode.stack_before)
    if pickletools.stackslice in opcode.stack_before:
        mark = next((k for k in reversed(range(len(stack))) if stack[k] is MARK), -len(stack))
        count = len(stack) - mark + opcode.stack_before.index(pickletools.markobject)
    if count > len(stack):
        raise IndexError("its pickle takes more than it has put down")
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return [item for item in taken if item is not MARK]


def today(module: str, name: str = "") -> str:
    """The full name of what Python 2 called otherwise, which pickles of protocol 2 do still."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def read_archive(path: Path) -> tuple[bytes, dict[str, int]]:
    """The pickle in a zip archive that is whole and cannot swell; its records' lengths by key."""
    with zip_errors(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError(
            f"{path} is a zip archive without PyTorch's data.pkl",
            expected="a .ckpt or .safetensors file",
            fix="unpack it first if it is an ordinary archive",
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} is compressed", expected="a .ckpt as PyTorch writes it")
    # torch's reader ignores the case of names, and looks in the first entry's folder.  Without
    # such duplicates it loads what is checked here.
    root = pickles[0].filename.removesuffix("data.pkl")
    names = {entry.filename.lower() for entry in entries}
    if len(names) < len(entries) or not all(e.filename.startswith(root) for e in entries):
        raise WeightsError(
            f"{path} has entries of one name but for its case, or in several folders",
            expected="a .ckpt as PyTorch writes it",
        )
    if pickles[0].file_size > LARGEST_PICKLE:
        raise WeightsError(f"{path} has a pickle of {pickles[0].file_size} bytes in it")
    with zip_errors(path), zipfile.ZipFile(path) as archive:
        archived = archive.read(pickles[0])
    data = [entry for entry in entries if entry.filename.startswith(f"{root}data/")]
    return archived, {e.filename.removeprefix(f"{root}data/"): e.file_size for e in data}


@contextlib.contextmanager
def zip_errors(path: Path) -> Iterator[None]:
    """What zipfile raises on archives that are not whole, as a WeightsError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to a place that makes no sense
            raise
        raise damaged(path, ".ckpt", error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError,
            OverflowError, struct.error) as error:  # fmt: skip
        raise damaged(path, ".ckpt", error) from error


def damaged(path: Path, kind: str, error: Exception) -> WeightsError:
    # torch puts advice around what went wrong: to load the file without its restricted reader.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    reason = "" if ADVICE.search(text) else " ".join(text.split())[:200]
    return WeightsError(
        f"{path} is not a whole {kind} file ({reason or type(error).__name__})",
        fix="download it again",
    )
