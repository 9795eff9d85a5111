"""Attention: the one function that every layer calls, and the seam for looking and editing.

    attention(q, k, v) = softmax(q k^T / sqrt(d)) v            arXiv:1706.03762, eq. 1

In the UNet the queries are pixels of the latent grid.  In *self*-attention keys and
values are the same pixels: each asks what the others look like.  In *cross*-attention
they are the 77 tokens of the prompt: each pixel asks which words concern it.

Nobody watching, PyTorch's fused kernel computes all of it at once, and the
weights softmax(...) never exist in memory.  A `Control` that wants to see them
gets them computed on the side while the output still comes from the fused kernel, so
that watching changes no bit of the image.  A `Control` that edits names rows of the
batch and returns new weights for those alone.
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
    """Where an attention layer sits in the U."""

    block: Literal["down", "mid", "up"]
    stage: int
    """Resolution stage: 0 works on the full latent grid, each further stage at half the
    resolution of the one before."""
    index: int
    """Which transformer of its block, in the order of execution."""
    kind: Literal["self", "cross"]
    heads: int
    name: str
    """The module's path, which is also the Hub's name for its tensors:
    `down_blocks.0.attentions.1.transformer_blocks.0.attn2`."""


@dataclass(frozen=True)
class BatchRow:
    """What one row of the UNet's batch stands for."""

    prompt: int
    """Which prompt (or image) of the run, from 0."""
    branch: str
    """Which side of the guidance: "uncond", "cond", or a technique's own word."""


@dataclass(frozen=True)
class AttentionCall:
    """Everything that is known about one attention call."""

    site: Site
    step: int
    """Step index `i` of the run, from 0."""
    rows: tuple[BatchRow, ...]
    """One entry a row of the batch."""
    height: int
    """Height and width of the grid of queries: queries = height * width, row by row."""
    width: int


class Control:
    """Looks at attention, edits it, or both.  This base class does neither.

    A control keeps its own state and serves one run.  The unedited weights are
    what `observe` sees, also where the same control goes on to edit them.
    """

    def observes(self, site: Site, step: int) -> bool:
        """Whether `observe` is to be called for this site at this step."""
        return False

    def observes_row(self, row: BatchRow) -> bool:
        """Whether it is to be called for this row, of those sites and steps that it observes."""
        return True

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        """See weights (heads, queries, keys) of some heads of one row of the batch.

        Large layers arrive in several calls, a few heads at a time: reduce, then store.
        """

    def edits(self, site: Site, step: int) -> bool:
        """Whether `edit` is to be called for this site at this step."""
        return False

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        """New weights for the rows that they are to replace: {row: (heads, queries, keys)}.

        `weights(row)` computes the model's own.  Rows that are not in the answer
        keep the fused kernel's output, bit for bit.
        """
        return {}


@dataclass(frozen=True)
class ControlledStep:
    """A control, together with what the UNet cannot know: the step and the rows' meaning."""

    control: Control
    step: int
    rows: tuple[BatchRow, ...]

    def call(self, site: Site, height: int, width: int) -> AttentionCall:
        return AttentionCall(site, self.step, self.rows, height, width)


class Attention(nn.Module):
    """Multi-head attention with its four projections, named as on the Hub."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        site: Site,
        *,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        """`upcast`: compute scores and softmax in float32, whatever the weights are."""
        super().__init__()
        self.site = site
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
        heads = self.site.heads
        return x.view(batch, tokens, heads, channels // heads).transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    site: Site,
    grid: tuple[int, int],
    control: ControlledStep | None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v of (B, heads, tokens, d), under a control."""
    output = F.scaled_dot_product_attention(query, key, value)
    if control is None:
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
                seen = attention_weights(query[row, heads], key[row, heads])
                control.control.observe(call, row, heads, seen)
    if edited:
        edits = control.control.edit(call, lambda row: attention_weights(query[row], key[row]))
        if edits:
            # A fresh tensor, not written in place: gradients may need the old one.
            rows = list(output.unbind(0))
            for row, weights in edits.items():
                rows[row] = weights.to(value.dtype) @ value[row]
            output = torch.stack(rows)
    return output


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) spelled out: (heads, queries, d), (heads, keys, d) ->
    (heads, queries, keys), in float32 or better, each row summing to 1."""
    # Not in half precision, where the scores could overflow.
    exact = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(exact) * query.shape[-1] ** -0.5
    return (scaled @ key.to(exact).transpose(-1, -2)).softmax(dim=-1)


# Watching may hold this many weights at a time: 64 MiB in float32.
OBSERVED_AT_ONCE = 2**24


def head_chunks(heads: int, size: int) -> Iterator[slice]:
    """Slices over the heads, each of at most `OBSERVED_AT_ONCE` elements (or one head)."""
    count = max(1, OBSERVED_AT_ONCE // max(1, size))
    for start in range(0, heads, count):
        yield slice(start, min(start + count, heads))
