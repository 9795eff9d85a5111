"""An inversion with what it was made from, and its file: safetensors with JSON metadata."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pare.errors import InversionError, memory_for_reading
from pare.io.whole_files import write_whole
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import MAX_PROMPT, MAX_SIDE, MAX_STEPS
from techniques.inversion.latent_trace import Method, Trace

KEY = "pare-inversion"  # of the JSON in the file's metadata
FORMAT = 1
MOST_JSON = 1_000_000  # characters
MOST_BYTES = 2**33  # of a file; SD's largest image with 1000 steps has less
# The tensors of a trace, and their names in a file.
TENSORS = {"latents": "trajectory", "uncond": "uncond", "noise": "noise", "partner": "partner"}
# The tensor that each method stores beside the latents.
NEEDED: Mapping[str, str | None] = {
    "ddim": None,
    "fixed-point": None,
    "null-text": "uncond",
    "negative": None,
    "proximal": None,
    "direct": None,
    "edit-friendly": "noise",
    "edict": "partner",
}


@dataclass(frozen=True)
class Inverted:
    """One image's inversion, from which `sample` reconstructs the image or makes an edit."""

    method: Method
    prompt: str  # what the image shows
    guidance: float  # at which the prompt reconstructs the image
    width: int  # of the image in pixels
    height: int
    model: Mapping[str, str]  # weight file -> fingerprint
    scheduler: Mapping[str, Any]  # DDIM's describe()
    trace: Trace

    __repr__ = short_repr

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write all of it as safetensors.

        Raises:
            OutputError: `path` exists and `force` is False, or it cannot be a file.
            OSError: the disk is full, ….
        """
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for field, name in TENSORS.items()
            if (tensor := getattr(self.trace, field)) is not None
        }
        about = {
            "format": FORMAT, "method": self.method, "prompt": self.prompt,
            "guidance": self.guidance, "width": self.width, "height": self.height,
            "model": dict(self.model), "scheduler": dict(self.scheduler),
        }  # fmt: skip
        whole = save(tensors, {KEY: json.dumps(about, allow_nan=False)})

        def write(file: BinaryIO) -> None:
            file.write(whole)

        write_whole(Path(path), write, force=force)


def load(path: Path | str) -> Inverted:
    """The inversion that `Inverted.save` wrote.

    The file is untrusted input: names, types, shapes and numbers are checked.

    Raises:
        InversionError: not such a file, damaged, or one that pare did not write.
        OSError: it cannot be opened.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise InversionError(f"{path} is not a regular file", expected="an inversion's file")
    if status.st_size > MOST_BYTES:
        raise InversionError(f"{path} is larger than any inversion that pare writes")
    try:
        with memory_for_reading(path), safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise InversionError(
                    f"{path} holds no inversion", expected="a file that `pare` wrote for one"
                )
            about = parse(text, path)
            names = set(file.keys())
            fields = needed_fields(about["method"])
            if names != {TENSORS[field] for field in fields}:
                refuse(path, f"its tensors are {', '.join(sorted(names))[:100]}")
            trace = Trace(**{field: file.get_tensor(TENSORS[field]) for field in fields})
    except SafetensorError as error:
        refuse(path, f"it is no whole safetensors file: {error}")
    check_tensors(trace, about["method"], path)
    return Inverted(trace=trace, **about)


def needed_fields(method: str) -> list[str]:
    """The fields of a trace by `method`."""
    more = NEEDED[method]
    return ["latents"] if more is None else ["latents", more]


def parse(text: str, path: Path | str) -> dict[str, Any]:
    """The JSON beside the tensors: the fields of Inverted but its trace."""
    if len(text) > MOST_JSON:
        refuse(path, f"it has {len(text)} characters of JSON")
    try:
        raw = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # json's own errors are ValueErrors
        refuse(path, f"its JSON cannot be read: {error}")
    if not isinstance(raw, dict):
        refuse(path, "its JSON is not an object")
    if raw.pop("format", None) != FORMAT:
        refuse(path, f"its format is not {FORMAT}")
    expected: dict[str, type | tuple[type, ...]] = {
        "method": str, "prompt": str, "guidance": (int, float), "width": int, "height": int,
        "model": dict, "scheduler": dict,
    }  # fmt: skip
    if set(raw) != set(expected):
        odd = ", ".join(sorted(repr(key)[:40] for key in set(raw) ^ set(expected))[:5])
        refuse(path, f"missing or unknown: {odd}")
    for name, kind in expected.items():
        if not isinstance(raw[name], kind) or isinstance(raw[name], bool):
            refuse(path, f"its {name!r} is not what pare writes")
    if raw["method"] not in NEEDED:
        refuse(path, f"there is no method {raw['method'][:40]!r}")
    good = len(raw["prompt"]) <= MAX_PROMPT and abs(raw["guidance"]) <= 1000
    if not good or not all(1 <= raw[side] <= MAX_SIDE for side in ("width", "height")):
        refuse(path, "its prompt, guidance or size is out of range")
    if not all(isinstance(value, str) for value in raw["model"].values()):
        refuse(path, "its 'model' is not what pare writes")
    return raw


def check_tensors(trace: Trace, method: str, path: Path | str) -> None:
    """Raise an InversionError for shapes, types or values that no inversion has."""
    latents = trace.latents
    if latents.ndim != 4 or not 2 <= len(latents) <= MAX_STEPS + 1:
        refuse(path, f"its latents have the shape {tuple(latents.shape)}")
    shapes = {
        "latents": tuple(latents.shape),
        "partner": tuple(latents.shape),
        "noise": (trace.steps, *latents.shape[1:]),
        "uncond": (trace.steps, 77, trace.uncond.shape[-1] if trace.uncond is not None else 0),
    }
    dtype = torch.float64 if method == "edict" else torch.float32
    for field in needed_fields(method):
        tensor: Tensor = getattr(trace, field)
        name = TENSORS[field]
        if tuple(tensor.shape) != shapes[field]:
            refuse(path, f"its {name} has the shape {tuple(tensor.shape)}, not {shapes[field]}")
        if tensor.dtype != dtype:
            refuse(path, f"its {name} is {tensor.dtype}, not {dtype}")
        if not tensor.isfinite().all():
            refuse(path, f"its {name} holds values that are not numbers")


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def refuse(path: Path | str, reason: str) -> NoReturn:
    reason = " ".join(reason.split())[:200]
    raise InversionError(f"the inversion in {path} cannot be read ({reason})")
