"""pare: Stable Diffusion 1.x / 2.x with nothing hidden.

    import pare

    pipe = pare.Pipeline.from_pretrained("roads")
    images = pipe.generate(["a snowy road in the forest"], seeds=[7])

Importing pare imports neither torch nor anything else that is slow: the names below
are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pare.errors import PareError
    from pare.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = ["PareError", "Pipeline", "__version__"]

_HOMES = {"PareError": "pare.errors", "Pipeline": "pare.pipeline"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pare' has no attribute {name!r}")
