"""Attention: multi-head attention of UNet and VAE, and the control that reads and edits it.

    attention(q, k, v) = softmax(q k^T / sqrt(d)) v            arXiv:1706.03762, eq. 1

In the UNet the queries are the pixels of a feature map.  In self-attention keys and values
come from the same pixels; in cross-attention from the 77 tokens of the prompt.  The matrix
softmax(q k^T / sqrt(d)), (queries, keys), holds the attention weights; a token's column,
put back on the grid of pixels, is its attention map.

By default attention runs through PyTorch's `scaled_dot_product_attention`, which never
stores the weights.  A `Control` that observes gets them computed separately, while the output
still comes from the fused kernel: observing changes no bit of the image.  A `Control` that
edits returns new weights for the rows of the batch that it names; only those rows change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """Where an attention layer sits in the UNet."""

    block: Literal["down", "mid", "up"]
    stage: int
    """Resolution stage: 0 is the latent grid itself, and each further stage has half the
    resolution of the one before."""
    index: int
    """The index of its transformer in the block, in the order of execution."""
    kind: Literal["self", "cross"]
    heads: int
    name: str
    """The module's path, which is also the Hub's name for its tensors:
    `down_blocks.0.attentions.1.transformer_blocks.0.attn2`."""


@dataclass(frozen=True)
class BatchRow:
    """What one row of the UNet's batch is: a prompt in a branch of guidance."""

    prompt: int
    """The index of the prompt (or image) in the run, from 0."""
    branch: str
    """The branch of classifier-free guidance: "uncond", "cond", or a technique's own."""


@dataclass(frozen=True)
class AttentionCall:
    """One forward pass of one attention layer."""

    site: Site
    step: int
    """Step index `i` of the run, from 0."""
    rows: tuple[BatchRow, ...]
    """One entry for each row of the batch."""
    height: int
    """Height and width of the feature map: queries = height * width, in row-major order."""
    width: int


class Control:
    """An attention control: observes attention weights, edits them, or both.

    This base class does neither.  A control keeps its own state and serves one run.  What
    `observe` gets are the model's own weights, also where the same control edits them.
    """

    def observes(self, site: Site, step: int) -> bool:
        """Whether `observe` is called for this site at this step."""
        return False

    def observes_row(self, row: BatchRow) -> bool:
        """Whether it is called for this row, at the sites and steps that it observes."""
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        """Read the weights (heads, queries, keys) of some heads of one row of the batch.

        Large layers arrive in several calls, a few heads at a time: reduce, then store.
        """

    def edits(self, site: Site, step: int) -> bool:
        """Whether `edit` is called for this site at this step."""
        return False

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        """New weights for some rows of the batch: {row: (heads, queries, keys)}.

        `weights(row)` computes the model's own.  Rows that are not returned keep the fused
        kernel's output, bit for bit.
        """
        return {}


@dataclass(frozen=True)
class ControlledStep:
    """A control with what the caller knows of this forward pass: the step and the rows."""

    control: Control
    step: int
    rows: tuple[BatchRow, ...]

    def call(self, site: Site, height: int, width: int) -> AttentionCall:
        return AttentionCall(site, self.step, self.rows, height, width)


class Attention(nn.Module):
    """Multi-head attention with its four projections, named as on the Hub."""

    site: Site | None = None
    """Set by the UNet for its own layers; the VAE's layer has none and is not controlled."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        *,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        """`upcast`: compute scores and softmax in float32, whatever the dtype of the weights."""
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        # A list of one because the Hub's name is `to_out.0`; `to_out.1` was dropout.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(
        self,
        hidden: Tensor,
        context: Tensor | None = None,
        *,
        grid: tuple[int, int],
        control: ControlledStep | None = None,
    ) -> Tensor:
        """`hidden` (B, queries, C) attends to `context` (B, keys, C'), or to itself.

        `grid` is the height and width that the queries were flattened from.
        """
        context = hidden if context is None else context
        query = self.split_heads(self.to_q(hidden))
        key = self.split_heads(self.to_k(context))
        value = self.split_heads(self.to_v(context))

        dtype = query.dtype
        if self.upcast:
            query, key, value = query.float(), key.float(), value.float()
        attended = attend(query, key, value, self.site, grid, control)
        attended = attended.transpose(1, 2).reshape(hidden.shape).to(dtype)
        return self.to_out[0](attended)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, tokens, heads * d) -> (B, heads, tokens, d)"""
        batch, tokens, channels = x.shape
        return x.view(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v (..., tokens, d), in PyTorch's fused kernel."""
    return F.scaled_dot_product_attention(query, key, value)


def spelled_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same step by step, with the weights in between; equal up to rounding."""
    return attention_weights(query, key).to(value.dtype) @ value


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)): (..., queries, d), (..., keys, d) -> (..., queries, keys),
    in float32 or float64; each query's weights sum to 1."""
    # Not in half precision, where the scores could overflow.
    exact = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(exact) * query.shape[-1] ** -0.5
    return (scaled @ key.to(exact).transpose(-1, -2)).softmax(dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    site: Site | None,
    grid: tuple[int, int],
    control: ControlledStep | None,
) -> Tensor:
    """Attention under a control: q, k, v (B, heads, tokens, d) -> (B, heads, queries, d).

    The output is the fused kernel's, but for the rows that the control edits.
    """
    output = fused_attention(query, key, value)
    if control is None or site is None:
        return output

    observed = control.control.observes(site, control.step)
    edited = control.control.edits(site, control.step)
    if not observed and not edited:
        return output

    call = control.call(site, *grid)
    if observed:
        wanted = [r for r, row in enumerate(call.rows) if control.control.observes_row(row)]
        for row in wanted:
            for heads in head_chunks(query.shape[1], query.shape[2] * key.shape[2]):
                weights = attention_weights(query[row, heads], key[row, heads])
                control.control.observe(call, row, heads, weights)
    if edited:
        edits = control.control.edit(call, lambda row: attention_weights(query[row], key[row]))
        if edits:
            # A fresh tensor, not written in place: gradients may need the old one.
            rows = list(output.unbind(0))
            for row, weights in edits.items():
                rows[row] = weights.to(value.dtype) @ value[row]
            output = torch.stack(rows)
    return output


# Observing holds at most this many weights at a time: 64 MiB in float32.
OBSERVED_AT_ONCE = 2**24


def head_chunks(heads: int, size: int) -> Iterator[slice]:
    """Slices over the heads, each of at most `OBSERVED_AT_ONCE` elements (or one head)."""
    count = max(1, OBSERVED_AT_ONCE // max(1, size))
    for start in range(0, heads, count):
        yield slice(start, min(start + count, heads))
