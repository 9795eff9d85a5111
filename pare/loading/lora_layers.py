"""Low-rank adaptation (LoRA, arXiv:2106.09685): changes of a layer's weight, by fewer numbers.

    W' = W + s delta,   s = weight * alpha / r

    LoRA      delta = up down                       down (r, in), up (out, r)
    LoCon     a convolution: down (r, in, k, k), up (out, r, 1, 1); or `mid` (r, r, k, k) between
              two of 1 x 1
    LoHa      delta = (w1_a w1_b) * (w2_a w2_b)     elementwise (arXiv:2108.06098)
    LoKr      delta = kron(w1, w2)                  (arXiv:2309.14859)
    full      delta itself
    DoRA      W' = m (W + s delta) / |W + s delta|  magnitudes m, one a row (arXiv:2402.09353)

A layer with changes keeps its W, which is shared with the layer that it was made from: it adds
`s up(down(x))` to its output, or `s delta x` with a delta that lives as long as the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.runtime.module_copies import shallow

AnyLayer = nn.Linear | nn.Conv2d
ADAPTABLE = (nn.Linear, nn.Conv2d)


def apply(layer: AnyLayer, x: Tensor, weight: Tensor) -> Tensor:
    """`layer` on x with another weight and without its bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.linear(x, weight)


class WeightChange(nn.Module):
    """A change of one layer's weight."""

    bias: Tensor | None
    """(out,): what is added to the layer's bias, `scale` included."""

    def __init__(self, scale: float, **factors: Tensor | None) -> None:
        """`factors` are kept under their names, in no state dict: that has the Hub's names."""
        super().__init__()
        self.scale = scale
        self.register_buffer("bias", None, persistent=False)
        for name, factor in factors.items():
            self.register_buffer(name, factor, persistent=False)

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to `weight`: a tensor of its shape, in float32."""
        raise NotImplementedError

    def added(self, x: Tensor, base: Tensor, layer: AnyLayer) -> Tensor:
        """What is added to the layer's output; `base` is its output without the bias."""
        return apply(layer, x, self.delta(layer.weight).to(x.dtype))

    def norm(self, weight: Tensor) -> float:
        """The Frobenius norm of the delta."""
        return self.delta(weight).norm().item()


class LowRank(WeightChange):
    """LoRA and LoCon."""

    down: Tensor
    up: Tensor
    mid: Tensor | None

    def __init__(self, down: Tensor, up: Tensor, mid: Tensor | None, scale: float) -> None:
        super().__init__(scale, down=down, up=up, mid=mid)

    def added(self, x: Tensor, base: Tensor, layer: AnyLayer) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.mid is None:
            low = apply(layer, x, down)
        else:
            low = apply(layer, F.conv2d(x, down), self.mid.to(x.dtype))
        high = F.linear(low, up) if up.ndim == 2 else F.conv2d(low, up)
        return high * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        if self.mid is None:
            product = up @ down
        else:
            product = torch.einsum("or,rskl,si->oikl", up, self.mid.float(), down)
        return product.reshape(weight.shape) * self.scale

    def norm(self, weight: Tensor) -> float:
        if self.mid is not None:
            return super().norm(weight)
        # |up down|^2 = trace((up^T up)(down down^T)): r x r numbers instead of the product.
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum().item()
        return abs(self.scale) * math.sqrt(max(square, 0.0))


class Hadamard(WeightChange):
    """LoHa: the elementwise product of two low-rank matrices."""

    def __init__(self, one: Sequence[Tensor], other: Sequence[Tensor], scale: float) -> None:
        """Each (a, b) or, with a core t (r, r, k, k), (a, b, t): see `product`."""
        names = ("w1_a", "w1_b", "t1"), ("w2_a", "w2_b", "t2")
        named = [pair for some in zip(names, (one, other), strict=True)
                 for pair in zip(*some, strict=False)]  # fmt: skip
        super().__init__(scale, **dict(named))
        self.names = [name for name, _ in named]

    def delta(self, weight: Tensor) -> Tensor:
        half = len(self.names) // 2
        one, other = (
            product(*(getattr(self, name).float() for name in names))
            for names in (self.names[:half], self.names[half:])
        )
        return (one * other).reshape(weight.shape) * self.scale


class Kronecker(WeightChange):
    """LoKr: the Kronecker product of two matrices, each whole or of low rank."""

    def __init__(self, one: Sequence[Tensor], other: Sequence[Tensor], scale: float) -> None:
        """Each (w,), (a, b) or (a, b, t): see `product`."""
        super().__init__(scale)
        self.names = []
        for side, factors in (("w1", one), ("w2", other)):
            names = [f"{side}_{k}" for k in range(len(factors))]
            for name, factor in zip(names, factors, strict=True):
                self.register_buffer(name, factor, persistent=False)
            self.names.append(names)

    def delta(self, weight: Tensor) -> Tensor:
        one, other = (
            product(*(getattr(self, name).float() for name in names)) for names in self.names
        )
        rows = weight.shape[0] // one.shape[0]
        other = other.reshape(rows, weight.shape[1] // one.shape[1], *weight.shape[2:])
        one = one.reshape(*one.shape[:2], *[1] * (other.ndim - 2))
        return torch.kron(one, other.contiguous()) * self.scale


class Full(WeightChange):
    """The whole difference of two weights."""

    difference: Tensor | None

    def __init__(self, difference: Tensor | None, scale: float) -> None:
        super().__init__(scale, difference=difference)

    def delta(self, weight: Tensor) -> Tensor:
        if self.difference is None:  # of the bias alone
            return torch.zeros(weight.shape, device=weight.device)
        return self.difference.float().reshape(weight.shape) * self.scale

    def added(self, x: Tensor, base: Tensor, layer: AnyLayer) -> Tensor:
        return torch.zeros_like(base) if self.difference is None else super().added(x, base, layer)


class Decomposed(WeightChange):
    """DoRA: magnitude and direction.  `inner` changes the direction, and `magnitude` is learnt."""

    ratio: Tensor
    less_one: Tensor

    def __init__(
        self, inner: WeightChange, magnitude: Tensor, weight: Tensor, *, inputs: bool
    ) -> None:
        """`inputs`: one magnitude for each input channel, as LyCORIS has it by default; else one
        for each output channel, as in the paper and in peft."""
        axis = 1 if inputs else 0
        others = [dim for dim in range(weight.ndim) if dim != axis]
        moved = weight.float() + inner.delta(weight)
        length = torch.linalg.vector_norm(moved, dim=others)
        ratio = magnitude.to(length).flatten() / length.clamp(min=torch.finfo(torch.float32).tiny)
        super().__init__(inner.scale, ratio=ratio, less_one=ratio - 1)
        self.inner, self.inputs = inner, inputs

    def added(self, x: Tensor, base: Tensor, layer: AnyLayer) -> Tensor:
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        ratio, less_one = (v.to(x.dtype).view(shape) for v in (self.ratio, self.less_one))
        if self.inputs:
            moved = apply(layer, x * less_one, layer.weight)
            return moved + self.inner.added(x * ratio, base, layer)
        return base * less_one + ratio * self.inner.added(x, base, layer)

    def delta(self, weight: Tensor) -> Tensor:
        shape = [1] * weight.ndim
        shape[1 if self.inputs else 0] = -1
        whole = weight.float()
        return self.ratio.view(shape) * (whole + self.inner.delta(weight)) - whole


def product(a: Tensor, b: Tensor | None = None, core: Tensor | None = None) -> Tensor:
    """A factor of LoHa or LoKr: `a` whole, `a b`, or with a core (r, r, k, k) for convolutions
    a (r, out), b (r, in) -> (out, in, k, k)."""
    if b is None:
        return a
    if core is None:
        return a @ b
    return torch.einsum("rskl,ro,si->oikl", core, a, b)


# --- layers with changes ------------------------------------------------------------------


class AdaptedLinear(nn.Linear):
    """A linear layer that adds changes to its output."""

    changes: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        return changed_output(self, self.changes, x, super().forward(x))


class AdaptedConv2d(nn.Conv2d):
    """A convolution that adds changes to its output."""

    changes: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        return changed_output(self, self.changes, x, super().forward(x))


def changed_output(layer: AnyLayer, changes: nn.ModuleList, x: Tensor, output: Tensor) -> Tensor:
    """A layer's `output` for x, under changes."""
    base = output
    if layer.bias is not None and any(isinstance(change, Decomposed) for change in changes):
        base = output - bias_of(layer.bias, output)
    for change in changes:
        assert isinstance(change, WeightChange)
        output = output + change.added(x, base, layer)
        if change.bias is not None:
            output = output + bias_of(change.bias.to(x.dtype), output)
    return output


def bias_of(bias: Tensor, output: Tensor) -> Tensor:
    """A bias (out,) so that it can be added to an output (B, out, h, w) or (..., out)."""
    return bias[:, None, None] if output.ndim == 4 else bias


def adapted(layer: nn.Module, changes: Iterable[WeightChange]) -> nn.Module:
    """A layer with the same weights that adds `changes`, and those that it has already."""
    twin: Any = shallow(layer)
    twin.__class__ = AdaptedConv2d if isinstance(layer, nn.Conv2d) else AdaptedLinear
    twin.changes = nn.ModuleList([*getattr(layer, "changes", ()), *changes])
    return cast(nn.Module, twin)


def merged_weight(weight: Tensor, changes: Iterable[WeightChange]) -> Tensor:
    """W + the changes, computed in float32, in W's dtype."""
    # Each change is one of W itself, as in a run; so their order does not matter.
    total = weight.float() + sum(change.delta(weight) for change in changes)
    return total.to(weight.dtype)
