"""Comparison layer by layer: finds the first layer whose output differs from diffusers'.

pare's modules and diffusers' both have the Hub's names, so modules of the same path must give
the same output for the same input.  Their outputs are read with PyTorch's forward hooks, which
pare otherwise uses only on copies without weights (`pare.study.inspect.layer_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pare.runtime.short_repr import short_repr
from pare.verify.parity_table import Distance

Seen = Callable[[str, list[Tensor]], None]


@dataclass(frozen=True)
class LayerComparison:
    """The outputs of two models and of all layers that they have in common."""

    ours: Tensor
    theirs: Tensor
    layers: Mapping[str, Distance]
    """In the order of execution, inner layers before the ones that hold them."""

    __repr__ = short_repr

    def first_departure(self, limit: float = 0.0) -> str | None:
        """The first layer that is relatively farther from its counterpart than `limit`."""
        for name, distance in self.layers.items():
            if not distance.relative <= limit:
                return name
        return None


def compare_layers(
    our_module: nn.Module,
    their_module: nn.Module,
    our_run: Callable[[], Tensor],
    their_run: Callable[[], Tensor],
) -> LayerComparison:
    """Run both models, and compare every layer that is in both under the same name.

    `our_run` calls `our_module` or parts of it and returns the result; likewise theirs.
    Only one model's outputs are held at a time, and each until it has been compared.
    """
    waiting: dict[str, list[Tensor]] = {}
    distances: dict[str, Distance] = {}

    def keep(name: str, ours: list[Tensor]) -> None:
        waiting.setdefault(name, ours)

    def compare(name: str, theirs: list[Tensor]) -> None:
        # A module that ran twice is compared at its first run: none of SD's does.
        ours = waiting.pop(name, None)
        # A container may return more than its counterpart; what it holds is compared one by one.
        if ours is not None and len(ours) == len(theirs):
            pairs = zip(ours, theirs, strict=True)
            distances[name] = Distance.worst(Distance.between(a, b) for a, b in pairs)

    with watching(our_module, keep):
        ours = our_run()
    with watching(their_module, compare):
        theirs = their_run()
    return LayerComparison(ours, theirs, distances)


@contextmanager
def watching(module: nn.Module, seen: Seen) -> Iterator[None]:
    """Call `seen(name, outputs)` after every submodule of `module`, within the context."""

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs = list(tensors(output))
            if outputs:
                seen(name, outputs)

        return hook

    handles = [
        part.register_forward_hook(hook_for(name))
        for name, part in module.named_modules()
        if name  # the whole model is compared by its result
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a module's output, which may be nested in tuples, lists and mappings."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)
