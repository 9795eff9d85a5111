"""Checks for non-finite numbers (NaN or infinity), and a diagnosis of their cause.

A single one spreads over the whole image within a layer or two, so it is enough to check
the output of each part of the model: the text encoder's embeddings, the UNet's output at
each step, the outputs of the VAE's encoder and decoder.

If one is found, `diagnose` looks for the cause: first in the weights, then in the part's
inputs, then in its dtype.  On request the part runs once more on the same inputs with
a hook on every layer (`first_bad_layer`); the hooks are removed after that run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pare.config import UNetConfig
from pare.errors import NonFiniteError
from pare.runtime.device import dtype_name


class PrecisionWarning(UserWarning):
    """Something is computed or stored in another dtype than was asked for."""


def is_finite(x: Tensor) -> bool:
    """Whether all of `x` are numbers.  On a GPU this waits for the result.

    Checks the minimum and maximum, which are NaN if any number is: one pass, no tensor of
    flags, and 30 times as fast as `isfinite` on every number.
    """
    if not x.numel():
        return True
    if x.dtype.itemsize == 1:  # 8-bit types have no extremes in PyTorch; float16 holds them all
        x = x.to(torch.float16)
    low, high = torch.aminmax(x.detach())
    return bool(low.isfinite() & high.isfinite())


# --- numbers in words ---------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Statistics of a tensor: shape, dtype, range, and how many numbers are not finite."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    """The smallest and the largest of the finite numbers; NaN if there is none."""
    high: float
    nan: int
    infinite: int

    @classmethod
    def of(cls, x: Tensor) -> Numbers:
        x = x.detach()
        values = x.float()
        finite = values[values.isfinite()]
        low, high = torch.aminmax(finite) if finite.numel() else [torch.tensor(torch.nan)] * 2
        nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
        return cls(tuple(x.shape), x.dtype, float(low), float(high), nan, infinite)

    @property
    def wrong(self) -> int:
        return self.nan + self.infinite

    def wrong_in_words(self) -> str:
        """`3 NaN and 5 infinite of 4096 numbers`"""
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        named = " and ".join(f"{count} {what}" for count, what in counts if count)
        return f"{named or 'no NaN'} of {torch.Size(self.shape).numel()} numbers"

    def __str__(self) -> str:
        spread = f"{self.low:.3g} to {self.high:.3g}"
        wrong = f", {self.wrong_in_words()}" if self.wrong else ""
        return f"{' x '.join(map(str, self.shape))} {dtype_name(self.dtype)}, {spread}{wrong}"


# --- the reason ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnosis:
    """Why a part's output has a NaN or an infinity."""

    reason: str
    """A clause to follow "…, as "; "" if only the part's dtype can be the reason."""
    fix: str
    overflowed: bool
    """Weights and inputs are finite: an activation exceeded the range of the dtype."""


def diagnose(module: nn.Module, inputs: Mapping[str, Tensor]) -> Diagnosis:
    """Find the reason: in the weights, then in the part's inputs, else in its dtype.

    `inputs` are named in words, and as they were before they were cast to the part's dtype.
    This reads all weights (gigabytes), which is acceptable as the run has failed anyway.
    """
    dtype = next(module.parameters()).dtype
    largest = torch.finfo(dtype).max
    bad = non_finite_weights(module)
    if bad:
        worst = Numbers.of(module.get_parameter(bad[0]))
        return Diagnosis(
            f"the file has NaN or infinities in its weights: {len(bad)} tensors, the first being "
            f"{bad[0]} ({worst.wrong_in_words()})",
            "get the model again, or from somewhere else",
            overflowed=False,
        )
    for name, x in inputs.items():
        numbers = Numbers.of(x)
        if numbers.wrong:
            return Diagnosis(
                f"{name} held {numbers.wrong_in_words()} already",
                "lower `guidance` if it is far above 20",
                overflowed=False,
            )
        if max(-numbers.low, numbers.high) > largest:
            return Diagnosis(
                f"{name} reached {max(-numbers.low, numbers.high):.3g}, and {dtype_name(dtype)} "
                f"ends at {largest:.3g}",
                "lower `guidance` if it is far above 20; or use `dtype='float32'`",
                overflowed=False,
            )
    return Diagnosis("", type_advice(module, dtype), overflowed=True)


def non_finite_weights(module: nn.Module) -> list[str]:
    """The names of the weights that hold a NaN or an infinity."""
    return [name for name, weight in module.named_parameters() if not is_finite(weight)]


def type_advice(module: nn.Module, dtype: torch.dtype) -> str:
    """What to do when weights and inputs are finite: the dtype's range is too small."""
    if dtype != torch.float16:
        return "`find_nan` names the layer in which it begins"
    advice = "use `dtype='float32'`, or `dtype='bfloat16'`"
    config = getattr(module, "config", None)
    sd2 = config if isinstance(config, UNetConfig) and config.use_linear_projection else None
    if sd2 is not None and not sd2.upcast_attention:
        advice += ', or set "upcast_attention": true in unet/config.json, as SD 2.1 needs it'
    return f"{advice}; `find_nan` names the layer in which it begins"


def non_finite_error(
    where: str, output: Tensor, module: nn.Module, diagnosis: Diagnosis, again: Callable[[], object]
) -> NonFiniteError:
    """The error for a part's output, e.g. `where` = "the UNet's output at step 3".

    `again` runs the part on the same inputs, for `first_bad_layer`.
    """
    dtype = dtype_name(next(module.parameters()).dtype)
    problem = f"{where} held {Numbers.of(output).wrong_in_words()}, in {dtype}"
    if diagnosis.reason:
        problem += f", as {diagnosis.reason}"
    error = NonFiniteError(problem, fix=diagnosis.fix)
    error.find_layer = lambda: first_bad_layer(module, again)
    return error


def check_finite(
    where: str,
    output: Tensor,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    again: Callable[[], object],
) -> None:
    """Raise, with the reason, unless a part's output is finite.

    Raises:
        NonFiniteError: it is not.
    """
    if not is_finite(output):
        raise non_finite_error(where, output, module, diagnose(module, inputs), again)


# --- the layer ----------------------------------------------------------------------------


@dataclass(frozen=True)
class BadLayer:
    """The first layer whose output holds a NaN or an infinity though its inputs do not."""

    name: str
    """The module's path, which is the Hub's name for its tensors; "" for the whole model."""
    kind: str
    """The module's class."""
    after: str
    """The layer inside it whose output was the last finite one; "" if there is none."""
    inputs: tuple[Numbers, ...]
    weights: Mapping[str, Numbers]
    """The module's own; a layer that holds others may have none."""
    output: Numbers
    """Its output; of a layer that holds others, the input of the next of them."""

    def table(self) -> str:
        """Several lines for the terminal."""
        after = f", after {self.after}" if self.after else ""
        rows = [f"first in: {self.name or 'the input'} ({self.kind}){after}"]
        rows += [f"  input   {numbers}" for numbers in self.inputs]
        rows += [f"  {name:7} {numbers}" for name, numbers in self.weights.items()]
        return "\n".join([*rows, f"  output  {self.output}"])


def first_bad_layer(module: nn.Module, run: Callable[[], object]) -> BadLayer | None:
    """Call `run`, which calls `module`, and find the layer of the first NaN or infinity.

    Sums, products and attention itself are no modules: a NaN that they produce is attributed
    to the layer that contains them, and `BadLayer.after` names its last finite sublayer.

    Returns:
        None if every layer's output is finite: the cause is something that `run` leaves out,
        such as an edit of the attention.
    """
    search = Search()
    with watched(module, search.enter, search.leave), torch.no_grad():
        run()
    return search.found


@dataclass
class Entered:
    """A layer that is being computed."""

    name: str
    module: nn.Module
    inputs: list[Tensor]
    last: str = ""
    """The layer inside it that returned last."""


@dataclass
class Search:
    """Follows a run from layer to layer until an output or input is not finite."""

    stack: list[Entered] = field(default_factory=list)
    found: BadLayer | None = None

    def enter(self, name: str, module: nn.Module, inputs: list[Tensor]) -> None:
        if self.found is None and self.stack:
            self.record(self.stack[-1], inputs)
        self.stack.append(Entered(name, module, inputs))

    def leave(self, outputs: list[Tensor]) -> None:
        layer = self.stack.pop()
        if self.found is None:
            self.record(layer, outputs)
        if self.stack:
            self.stack[-1].last = layer.name

    def record(self, layer: Entered, made: Sequence[Tensor]) -> None:
        """Record `layer` as the bad one if a tensor that it computed is not finite."""
        wrong = next((x for x in made if not is_finite(x)), None)
        if wrong is None:
            return
        self.found = BadLayer(
            layer.name,
            type(layer.module).__name__,
            layer.last,
            tuple(Numbers.of(x) for x in layer.inputs),
            {n: Numbers.of(w) for n, w in layer.module.named_parameters(recurse=False)},
            Numbers.of(wrong),
        )


@contextmanager
def watched(
    module: nn.Module,
    enter: Callable[[str, nn.Module, list[Tensor]], None],
    leave: Callable[[list[Tensor]], None],
) -> Iterator[None]:
    """Within the context, call `enter` and `leave` around the forward pass of every layer.

    Only for runs in this thread, as others may use the model.  All hooks are removed after.
    """
    thread = threading.get_ident()

    def before(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, named: Mapping[str, Any]) -> None:
            if threading.get_ident() == thread:
                enter(name, layer, list(floating(args)) + list(floating(named)))

        return hook

    def after(_layer: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            leave(list(floating(output)))

    handles = []
    try:
        for name, layer in module.named_modules():
            handles.append(layer.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(layer.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def floating(value: Any, name: str = "") -> Iterator[Tensor]:
    """The floating-point tensors in a layer's inputs or outputs, which may be nested.

    Masks are left out: theirs may be infinite on purpose.
    """
    if "mask" in name:
        return
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from floating(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from floating(inner)
