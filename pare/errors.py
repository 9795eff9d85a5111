"""The errors that users can cause, each one sentence: what was wrong, expected, and to do.

The command prints it as one line and exits with code 2.  Anything that is *not* a
`PareError`, or an operating-system error that the command puts into words, is a bug in
pare: it keeps its traceback and exits with code 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

# The out-of-memory messages of PyTorch's allocators for the CPU and for Apple's GPUs.
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|MPS backend out of memory"
)


class PareError(ValueError):
    """Base of all errors that a user can cause.

    `problem` says what is wrong and quotes the value; `expected` says what would be right;
    `fix` says what to do.  Together they are one sentence.  Parameters stand in backticks.
    """

    def __init__(self, problem: str, *, expected: str = "", fix: str = "") -> None:
        self.problem, self.expected, self.fix = problem, expected, fix
        self.table: Sequence[str] = ()  # of what the sentence only counts
        sentence = problem
        if expected:
            sentence += f"; expected {expected}"
        if fix:
            sentence += f"; {fix}"
        super().__init__(sentence)


class SettingError(PareError):
    """A setting out of range: steps, strength, guidance, size, seed, scheduler name."""


class ParameterError(PareError, TypeError):
    """A keyword that a function does not have."""


class ExtensionError(PareError):
    """A package that extends pare and cannot be loaded."""


class DeviceError(PareError):
    """A device or a dtype that this machine does not support."""


class ConfigError(PareError):
    """A config.json with an unknown key, an unsupported value or no valid JSON."""


class ModelError(PareError):
    """A model that does not exist, is incomplete or is not supported."""


class WeightsError(PareError):
    """Tensors that are missing, unexpected, misshapen or unreadable.

    Where many are, the sentence says how many, and `table` has a line for each.
    """

    def __init__(
        self, problem: str, *, expected: str = "", fix: str = "", table: Sequence[str] = ()
    ) -> None:
        super().__init__(problem, expected=expected, fix=fix)
        self.table = table

    def __str__(self) -> str:
        return "\n".join([super().__str__() + (":" if self.table else ""), *self.table])


class SchedulerError(PareError):
    """A scheduler that does not support the requested run."""


class PromptError(PareError):
    """A prompt or a word in it that cannot be used."""


class ImageError(PareError):
    """An image or a mask that cannot be read or cannot be used."""


class OutputError(PareError):
    """An output path that cannot be written, or must not be."""


class RecipeError(PareError):
    """An image without a recipe, or with one that cannot be read."""


class JobFileError(PareError):
    """A file of jobs that cannot be read, or a row in it that is no job."""


class InversionError(PareError):
    """An inversion's file that cannot be read, or one that does not fit the model."""


class EmbeddingError(PareError):
    """A file of textual-inversion embeddings that cannot be read, or does not fit the model."""


class LossError(PareError):
    """A guidance loss that cannot be read, gives no number, or has no gradient."""


class FaultyLayer(Protocol):
    """The layer in which a NaN begins: `pare.runtime.numerics.BadLayer`."""

    @property
    def name(self) -> str: ...

    def table(self) -> str: ...


class NonFiniteError(PareError):
    """The output of the text encoder, the UNet or the VAE holds a NaN or an infinity."""

    find_layer: Callable[[], FaultyLayer | None] | None = None
    """Runs the part again on the same inputs and names the layer in which it begins."""


class NotEnoughMemoryError(PareError):
    """A run that needs more memory than there is."""


class MissingExtraError(PareError):
    """An optional package is needed and not installed."""


# --- memory ---------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator has no more memory: the GPU's, the CPU's, or Python's.

    PyTorch's are RuntimeErrors, and on a CPU nothing but the words tells them from others.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return type(error) is RuntimeError and bool(NO_MEMORY.search(str(error)))


def requested_memory(error: BaseException) -> str:
    """` (2.5 GiB more were requested)`, where the allocator says so."""
    asked = re.search(r"[Tt]ried to allocate ([0-9.]+ \w+)", str(error))
    return f" ({asked[1]} more were requested)" if asked else ""


@contextmanager
def memory_for_reading(what: object) -> Iterator[None]:
    """Report a lack of memory inside as that of `what`, which is being read.

    Otherwise the size of the image would be blamed, which a file has nothing to do with.

    Raises:
        NotEnoughMemoryError: an allocator failed inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(
            f"reading {what} takes more memory than there is{requested_memory(error)}",
            fix="free some memory, or check that it is what you expect",
        ) from error
