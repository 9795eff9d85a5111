"""Representations that fit a line: tensors by their shape and dtype, long collections cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

MOST = 3  # entries of a collection
LONGEST = 80  # characters of any other value


def short_repr(self: Any) -> str:
    """The `__repr__` of dataclasses that hold tensors: `Logits(place=float32 (1, 4), …)`."""
    fields = [one.name for one in dataclasses.fields(self) if one.repr]
    values = ", ".join(f"{name}={short(getattr(self, name))}" for name in fields)
    return f"{type(self).__name__}({values})"


def short(value: object) -> str:
    """A value on less than a line."""
    if (shape := getattr(value, "shape", None)) is not None:  # a tensor or an array
        dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
        return f"{dtype} {tuple(shape)}"
    if hasattr(value, "named_parameters"):  # a network
        return type(value).__name__
    if isinstance(value, Mapping):
        shown = [f"{key!r}: {short(one)}" for key, one in [*value.items()][:MOST]]
        return "{" + ", ".join(shown + more(len(value))) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join([*map(short, value[:MOST]), *more(len(value))])
        return f"[{inner}]" if isinstance(value, list) or len(value) == 1 else f"({inner})"
    text = repr(value)
    return text if len(text) <= LONGEST or dataclasses.is_dataclass(value) else text[:LONGEST] + "…"


def more(count: int) -> list[str]:
    return [f"… {count} in all"] if count > MOST else []
