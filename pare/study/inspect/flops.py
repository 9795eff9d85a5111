"""Floating-point operations of a layer, counted by rule.

A multiply-add counts as 2, as in most papers; a "MAC" is half of that.  Counted are

    convolution   2 x outputs x (input channels x kernel height x kernel width)
    linear        2 x outputs x input channels
    attention     2 x queries x keys x channels for q k^T, and the same again for p v
    norm          7 a number: mean 1, variance 3, division 1, scale and shift 2

Not counted: biases, activations, residual additions, softmax, resampling and look-ups.
Together they are under 1 % of the operations of any SD model, but not of its time, as memory
bandwidth bounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS_A_NORMED_NUMBER = 7


@dataclass(frozen=True)
class Flops:
    """Operations by kind; `+` adds them up."""

    convolution: int = 0
    linear: int = 0
    attention: int = 0
    norm: int = 0

    @property
    def total(self) -> int:
        return self.convolution + self.linear + self.attention + self.norm

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.convolution + other.convolution,
            self.linear + other.linear,
            self.attention + other.attention,
            self.norm + other.norm,
        )


def convolution(output: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Flops:
    # weight (out, in / groups, height, width): what one output number is the sum of.
    return Flops(convolution=2 * output.numel() * weight[0].numel())


def linear(output: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Flops:
    return Flops(linear=2 * output.numel() * weight.shape[-1])


def attention(
    output: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> Flops:
    # q (B, heads, queries, d) with every key, and the values' mean for every output number.
    keys = key.shape[-2]
    return Flops(attention=2 * keys * (query.numel() + output.numel()))


def product(output: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> Flops:
    """A product of two activations is attention without the fused function."""
    return Flops(attention=2 * output.numel() * left.shape[-1])


def norm(output: Tensor, *_: Any, **__: Any) -> Flops:
    return Flops(norm=OPERATIONS_A_NORMED_NUMBER * output.numel())


RULES: Mapping[Callable[..., Any], Callable[..., Flops]] = {
    torch.conv2d: convolution,
    F.linear: linear,
    F.scaled_dot_product_attention: attention,
    torch.matmul: product,
    torch.bmm: product,
    Tensor.matmul: product,
    Tensor.__matmul__: product,
    F.group_norm: norm,
    F.layer_norm: norm,
}


def count(function: Callable[..., Any], output: Any, args: Any, kwargs: Mapping[str, Any]) -> Flops:
    """The operations of one call of a PyTorch function."""
    rule = RULES.get(function)
    if rule is None or not isinstance(output, Tensor):
        return Flops()
    return rule(output, *args, **kwargs)
