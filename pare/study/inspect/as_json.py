"""The study functions' dataclasses as JSON objects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pare.study.inspect.flops import Flops
from pare.study.inspect.layer_table import LayerTable


def as_json(value: Any) -> Any:
    """Dataclasses as objects, paths as text; numbers that JSON lacks (nan, inf) as their names."""
    if isinstance(value, LayerTable):
        return [as_json(layer) for layer in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields | ({"total": value.total} if isinstance(value, Flops) else {})
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
