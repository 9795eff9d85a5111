"""pare: Stable Diffusion 1.x / 2.x with nothing hidden.

    import pare

    pipe = pare.Pipeline.from_pretrained("roads")
    images = pipe("a snowy road in the forest", seeds=[7])

Importing pare imports neither torch nor anything else that is slow: the names below
are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pare.version import __version__

if TYPE_CHECKING:
    from pare.attention import Control
    from pare.errors import PareError
    from pare.loading.modules import AutoencoderKL, TextEncoder, UNet
    from pare.loading.parts import Scheduler, Tokenizer
    from pare.pipeline import Pipeline
    from pare.results import Images

__all__ = [
    "AutoencoderKL",
    "Control",
    "Images",
    "PareError",
    "Pipeline",
    "Scheduler",
    "TextEncoder",
    "Tokenizer",
    "UNet",
    "__version__",
]

_HOMES = {
    "AutoencoderKL": "pare.loading.modules",
    "Control": "pare.attention",
    "Images": "pare.results",
    "PareError": "pare.errors",
    "Pipeline": "pare.pipeline",
    "Scheduler": "pare.loading.parts",
    "TextEncoder": "pare.loading.modules",
    "Tokenizer": "pare.loading.parts",
    "UNet": "pare.loading.modules",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pare' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
