"""The content of a file of weights, whole or damaged, without reading the weights.

A safetensors file is

    8 bytes       the length n of the header, little-endian
    n bytes       JSON: {"name": {"dtype": "F16", "shape": [320, 4, 3, 3],
                                  "data_offsets": [begin, end]}, …, "__metadata__": {…}}
    the rest      the tensors' numbers, at those offsets, without a gap

The safetensors library refuses a file in which any of this is off by a byte.  `look_at` reads the
header tolerantly: it collects every problem, and lists the tensors that are readable all the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pare.config import OTHER_INPUTS, short_json
from pare.errors import ModelError, WeightsError
from pare.loading import file_kinds
from pare.loading.checkpoint import (
    OTHER_FILES,
    STORED_DTYPES,
    Checkpoint,
    open_checkpoint,
    stored_dtype,
)

Shape = tuple[int, ...]

# Bytes a number, by safetensors' names of types.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


LONGEST_HEADER = 100 * 10**6
"""Bytes, as safetensors has it; SD's header has a tenth of a million."""
SALVAGED = 4 * 2**20
"""Bytes of a broken header that are searched for entries."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header describes it, and what is wrong with the description."""

    name: str
    dtype: str
    """As safetensors names it: `F16`."""
    shape: Shape
    begin: int | None = None
    """Where in the file its values begin and end; None in a `.ckpt`."""
    end: int | None = None
    problem: str = ""

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightFile:
    """The content of a file."""

    path: Path
    size: int
    """Bytes on the disk."""
    kind: str
    """"safetensors", "ckpt" (a zip with a pickle in it), or what it is instead."""
    tensors: tuple[StoredTensor, ...] = ()
    looks_like: str = ""
    """By the tensors' names: "a Stable Diffusion 1 checkpoint", "a LoRA …"."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    header_bytes: int | None = None
    """Of a safetensors file, with the 8 bytes of its length; None if that is impossible."""
    ends: int | None = None
    """The file's end by its header."""
    problems: tuple[str, ...] = ()
    """Problems of the file as a whole."""

    @property
    def all_problems(self) -> tuple[str, ...]:
        """The file's problems, then its tensors': `NAME: cut off after 33% of it`."""
        return (*self.problems, *(f"{t.name}: {t.problem}" for t in self.tensors if t.problem))

    @property
    def parameters(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors if not tensor.problem)

    @property
    def dtypes(self) -> dict[str, int]:
        """See `dtype_counts`."""
        return dtype_counts(self.tensors)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the tensors whose dtype and size are possible."""
        return {tensor.name: tensor.shape for tensor in self.tensors if possible(tensor)}


def dtype_counts(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Dtype -> how many stored values have it, the most frequent first."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numbers
    return dict(counts.most_common())


def possible(tensor: StoredTensor) -> bool:
    return tensor.dtype in ITEM_SIZES and tensor.numbers < 2**48


def look_at(path: Path) -> WeightFile:
    """Read the header of a file of weights, whole or damaged.

    Raises:
        OSError: it cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
    for signature, words in OTHER_FILES.items():
        if head.startswith(signature):
            return WeightFile(path, size, words, problems=(f"it is {words}",))
    if not head:
        return WeightFile(path, size, "an empty file", problems=("it is empty",))
    if head.startswith(b"PK") or (head.startswith(b"\x80") and head[8:9] != b"{"):
        return look_at_pickle(path, size)
    found = look_at_safetensors(path, size)
    if found.header_bytes is None and len(found.tensors) < 10:
        return found  # too little of it to say
    return dataclasses.replace(found, looks_like=looks_like(found.shapes, found.metadata))


# --- safetensors --------------------------------------------------------------------------


def look_at_safetensors(path: Path, size: int) -> WeightFile:
    with path.open("rb") as file:
        beginning = file.read(8)
        length = int.from_bytes(beginning, "little")
        return read_beginning(path, size, beginning + file.read(min(length, LONGEST_HEADER)))


def read_beginning(path: Path, size: int, beginning: bytes) -> WeightFile:
    """The content of a safetensors file of `size` bytes by its first ones, its whole header."""
    length, text = int.from_bytes(beginning[:8], "little"), beginning[8:]
    start = 8 + length
    text = text[:length]
    if size < 8 or not text.lstrip().startswith(b"{"):
        return WeightFile(
            path, size, "no known kind of file", problems=("it does not begin as safetensors do",)
        )
    problems = []
    entries: Sequence[tuple[str, Any]]
    if start > size or length > LONGEST_HEADER:
        problems.append(f"the header claims {length:,} bytes, and the file has {size:,}")
        entries, header = salvage(text), None
    else:
        entries, trouble = read_header(text)
        problems += trouble
        header = start
    metadata: Any = next((value for name, value in entries if name == "__metadata__"), None)
    named = [(name, value) for name, value in entries if name != "__metadata__"]
    tensors = [entry(name, value, start) for name, value in named]
    if header is not None:
        tensors = [check_place(tensor, size) for tensor in tensors]
        tensors, trouble = check_layout(tensors, header)
        problems += trouble
    ends = max((t.end for t in tensors if t.end is not None), default=start)
    if header is not None and ends != size:
        problems.append(where_it_ends(size, ends, tensors))
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return WeightFile(
        path,
        size,
        "safetensors",
        tuple(tensors),
        metadata={str(key): str(value) for key, value in texts},
        header_bytes=header,
        ends=ends,
        problems=tuple(problems),
    )


def read_header(text: bytes) -> tuple[Sequence[tuple[str, Any]], list[str]]:
    """The header's entries, duplicates included, and its problems."""
    pairs: list[tuple[str, Any]] = []

    def keep(listed: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = listed  # called for inner objects first, for the whole last
        return dict(listed)

    try:
        header = json.loads(text, object_pairs_hook=keep)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        return salvage(text), [f"the header is not JSON ({reason})"]
    if not isinstance(header, dict):
        return [], ["the header is not a JSON object"]
    times = Counter(name for name, _ in pairs)
    return pairs, [f"{name} is listed {n} times" for name, n in times.items() if n > 1]


ENTRY = re.compile(r'"((?:[^"\\]|\\.){1,300})"\s*:\s*(\{[^{}]{1,2000}\})')


def salvage(text: bytes) -> list[tuple[str, Any]]:
    """The readable entries of a header that is cut off or damaged."""
    found = []
    for match in ENTRY.finditer(text[:SALVAGED].decode("utf-8", errors="replace")):
        try:
            found.append((json.loads(f'"{match[1]}"'), json.loads(match[2])))
        except (ValueError, RecursionError):
            continue
    return found


def entry(name: str, value: Any, start: int) -> StoredTensor:
    """One entry of the header as a tensor."""
    if not isinstance(value, dict):
        return StoredTensor(name, "?", (), problem=f"no object: {short_json(value, 40)}")
    dtype, shape = value.get("dtype"), value.get("shape")
    good = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    sizes = tuple(shape) if good else ()  # type: ignore[arg-type]
    if not good or len(sizes) > 64:
        problem = f"its shape is {short_json(shape, 40)}"
        return StoredTensor(name, str(dtype), (), problem=problem)
    if dtype not in ITEM_SIZES:
        problem = f"its type is {short_json(dtype, 40)}, which safetensors does not have"
        return StoredTensor(name, str(dtype), sizes, problem=problem)
    offsets = value.get("data_offsets")
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        problem = f"its offsets are {short_json(offsets, 40)}"
        return StoredTensor(name, dtype, sizes, problem=problem)
    begin, end = offsets
    needed = math.prod(sizes) * ITEM_SIZES[dtype]
    problem = ""
    if not 0 <= begin <= end:
        problem = f"its offsets are impossible: {begin} to {end}"
    elif end - begin != needed:
        problem = f"its offsets span {end - begin:,} bytes, and its shape needs {needed:,}"
    return StoredTensor(name, dtype, sizes, start + begin, start + end, problem)


def check_place(tensor: StoredTensor, size: int) -> StoredTensor:
    """The tensor, with a problem if it reaches beyond the end of the file."""
    if tensor.problem or tensor.begin is None or tensor.end is None or tensor.end <= size:
        return tensor
    if tensor.begin >= size:
        return dataclasses.replace(tensor, problem="missing, as the file ends before it")
    there = (size - tensor.begin) / (tensor.end - tensor.begin)
    return dataclasses.replace(tensor, problem=f"cut off after {there:.0%} of it")


def check_layout(tensors: list[StoredTensor], header: int) -> tuple[list[StoredTensor], list[str]]:
    """Find tensors that overlap, and gaps between tensors."""
    problems = []
    checked = dict(enumerate(tensors))
    placed = sorted(
        (t.begin, t.end, i) for i, t in checked.items() if t.begin is not None and t.end is not None
    )
    reached, last = header, ""
    for begin, end, i in placed:
        tensor = checked[i]
        if begin < reached and end > begin and last and not tensor.problem:
            checked[i] = dataclasses.replace(tensor, problem=f"its offsets overlap those of {last}")
        elif begin > reached:
            problems.append(f"{begin - reached:,} bytes before {tensor.name} belong to no tensor")
        if end > reached:
            reached, last = end, tensor.name
    return list(checked.values()), problems


def where_it_ends(size: int, ends: int, tensors: Sequence[StoredTensor]) -> str:
    if size > ends:
        return f"{size - ends:,} bytes after the last tensor belong to none"
    whole = sum(1 for tensor in tensors if tensor.end is not None and tensor.end <= size)
    return (
        f"the file ends at byte {size:,} of {ends:,}: {whole} of {len(tensors)} tensors are whole"
    )


# --- pickles ------------------------------------------------------------------------------


def look_at_pickle(path: Path, size: int) -> WeightFile:
    """A `.ckpt` or `.bin`: its tensors by the restricted reader, or why it refuses them."""
    try:
        checkpoint = open_checkpoint(path)
    except (WeightsError, ModelError) as error:
        problem = str(error).replace(f"{path} ", "the file ")
        return WeightFile(path, size, "ckpt", problems=(problem, *zip_problems(path)))
    tensors = tuple(stored(name, tensor) for name, tensor in checkpoint.tensors.items())
    notes = {
        key: str(value)
        for key, value in checkpoint.extras.items()
        if isinstance(value, str | int | float)
    }
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    words = looks_like(shapes, checkpoint.extras)
    return WeightFile(path, size, "ckpt", tensors, words, notes)


def stored(name: str, tensor: Tensor) -> StoredTensor:
    return StoredTensor(name, stored_dtype(tensor), tuple(tensor.shape))


def zip_problems(path: Path) -> Iterator[str]:
    """What is known of a `.ckpt` that cannot be read."""
    if not zipfile.is_zipfile(path):
        yield "its zip directory, at the end of the file, is missing: it was cut off"
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError):
        return
    numbers = [entry for entry in entries if "/data/" in entry.filename]
    total = sum(entry.file_size for entry in numbers)
    data = f"{len(numbers)} of them tensors' data: {total:,} bytes"
    yield f"its zip directory lists {len(entries)} records, {data}"


# --- what it is ---------------------------------------------------------------------------


def looks_like(shapes: Mapping[str, Shape], extras: Mapping[str, Any]) -> str:
    """What kind of file has these tensors; "" if there are none."""
    if not shapes:
        return ""
    found = {part: file_kinds.find_prefix(shapes, part) for part in file_kinds.LANDMARKS}
    other = file_kinds.name_model([*shapes, *extras])
    if other is not None:
        return other
    if found["unet"] is not None:
        channels = shapes[f"{found['unet']}input_blocks.0.0.weight"]
        kin = OTHER_INPUTS.get((*channels, 0, 0)[1])
        if kin is not None:
            return kin
    parts = [
        words
        for words, there in (
            ("UNet", found["unet"] is not None),
            ("VAE", found["vae"] is not None),
            ("text encoder", found["clip"] is not None or found["open_clip"] is not None),
        )
        if there
    ]
    generation = "2" if found["open_clip"] is not None else "1"
    if len(parts) == 3:
        return f"a Stable Diffusion {generation} checkpoint"
    if parts:
        return f"a part of a Stable Diffusion checkpoint: {' and '.join(parts)} alone"
    if len(shapes) <= 2 and all(len(shape) <= 2 for shape in shapes.values()):
        return "a textual-inversion embedding"
    return "nothing that pare knows"


def as_checkpoint(file: WeightFile) -> Checkpoint:
    """The file's tensors on the meta device, for code that reads names, shapes and dtypes."""
    tensors = {
        tensor.name: torch.empty(
            tensor.shape, dtype=STORED_DTYPES.get(tensor.dtype, torch.uint8), device="meta"
        )
        for tensor in file.tensors
        if possible(tensor)
    }
    return Checkpoint(file.path, tensors, file.metadata)
