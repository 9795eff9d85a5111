"""A recording as files: its tensors as safetensors, and their description as JSON.

    write_trace(recording, Path("road.safetensors"), {"prompt": "a snowy road"})

`safetensors.numpy.load_file("road.safetensors")` reads the tensors, as does
`safetensors.torch`; the JSON, `road.json`, names each one's axes.  The safetensors file's metadata
holds the same JSON under "pare", so that it is complete without the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pare.io.whole_files import check_output, write_whole
from pare.loading.checkpoint import DTYPE_NAMES
from pare.study.inspect.as_json import as_json
from pare.study.record.recording import Recording
from pare.study.record.reductions import STATISTICS

KEY = "pare"
FORMAT = 2


def write_trace(
    recording: Recording, path: Path, about: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write `path`, a name that ends in .safetensors, and the .json beside it.

    Args:
        about: what else goes into the JSON: prompt, seed, ….

    Raises:
        OutputError: a file that exists, or cannot be.
        OSError: the disk is full, ….
    """
    notes = path.with_suffix(".json")
    check_output(notes, force=force)
    said = describe_trace(recording, about)
    write_whole(path, lambda file: write_tensors(file, recording.tensors, said), force=force)
    text = json.dumps(said, indent=1).encode()
    write_whole(notes, lambda file: file.writelines([text]), force=force)


def describe_trace(recording: Recording, about: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON: settings, noise levels, rows, layers, and every tensor's axes, shape and type."""
    layers = {
        name: {
            "kind": layer.kind, "code": layer.code, "parameters": layer.parameters,
            "flops": layer.flops.total,
        }
        for name, layer in recording.layers.items()
    }  # fmt: skip
    levels = [
        {"t": level.t, "sigma": level.sigma, "alpha_bar": level.alpha_bar}
        for level in recording.levels
    ]
    tensors = {
        name: {"axes": recording.axes[name], "shape": tuple(x.shape), "dtype": safe_type(x)}
        for name, x in recording.tensors.items()
    }
    said: dict[str, Any] = as_json(
        {
            "format": FORMAT,
            **about,
            "levels": levels,
            "recorded_steps": recording.recorded_steps,
            "rows": recording.rows,
            "statistics": STATISTICS,
            "layers": layers,
            "tensors": tensors,
        }
    )
    return said


def safe_type(x: Tensor) -> str:
    """safetensors' name of a tensor's type: `F32`."""
    return DTYPE_NAMES[x.dtype]


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], about: object) -> None:
    """A safetensors file (layout: `pare.study.inspect.weight_files`), one tensor after the other.

    safetensors' own `save` would put all of it together in memory first.
    """
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(about)}}
    begin = 0
    for name, x in tensors.items():
        end = begin + x.numel() * x.dtype.itemsize
        header[name] = {
            "dtype": safe_type(x), "shape": list(x.shape), "data_offsets": [begin, end],
        }  # fmt: skip
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers lie at multiples of 8
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for x in tensors.values():
        for block in blocks(x):
            file.write(block)


def blocks(x: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, in the machine's order, which has to be little-endian."""
    flat = x.detach().cpu().contiguous().view(-1)
    # NumPy has no bfloat16, but every tensor is bytes.
    if flat.numel():
        yield flat.view(torch.uint8).numpy().data
