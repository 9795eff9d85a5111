"""Single-file and legacy checkpoints <-> the Hub's folder layout, as a module of its own.

    python -m weights_convert model.safetensors model/      is `pare convert …`

    from weights_convert import check, convert, read_folder

The conversion itself is `pare.loading.conversion`.
"""

from __future__ import annotations

import sys

from pare.loading.conversion import (
    Converted,
    check,
    convert,
    ldm_tensors,
    read_folder,
    stream_safetensors,
)

__all__ = ["Converted", "check", "convert", "ldm_tensors", "read_folder", "stream_safetensors"]


def main() -> int:
    """`python -m weights_convert …` is `pare convert …`."""
    from pare.cli.main import main as pare

    return pare(["convert", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
