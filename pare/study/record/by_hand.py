"""Layers computed step by step, with every intermediate tensor under its name.

    steps = resnet_steps(block, x, time)       {"x": …, "norm1": …, "SiLU": …, …, "x + hidden": …}
    steps["x + hidden"]                        what `block(x, time)` gives, bit for bit

The model itself does not use these functions.  They repeat its arithmetic, written out where
PyTorch has one call, and return the tensor after every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.attention import Attention
from pare.pipeline import Pipeline
from pare.schedulers import add_noise
from pare.unet.resnet import ResnetBlock

# --- layers -------------------------------------------------------------------------------


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm(x)` by hand, for x (B, C, h, w): arXiv:1803.08494, eq. 1 and 2.

    Each group of channels is normalised over all its pixels to mean 0 and variance 1; then each
    channel gets its learnt scale and shift.
    """
    batch, channels = x.shape[:2]
    together = x.view(batch, norm.num_groups, -1)
    mean = together.mean(-1, keepdim=True)
    variance = together.var(-1, correction=0, keepdim=True)
    plain = ((together - mean) / (variance + norm.eps).sqrt()).view(x.shape)
    scale, shift = norm.weight.view(1, channels, 1, 1), norm.bias.view(1, channels, 1, 1)
    return plain * scale + shift


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) (arXiv:1702.03118): about x above 2, about 0 below -5, smooth between."""
    return x / (1 + (-x).exp())


@torch.no_grad()
def resnet_steps(block: ResnetBlock, x: Tensor, time: Tensor | None = None) -> dict[str, Tensor]:
    """The block's intermediate tensors, in order, for x (B, C, h, w) and the embedded timestep."""
    steps = {"x": x}
    steps["norm1"] = block.norm1(x)
    steps["SiLU"] = F.silu(steps["norm1"])
    steps["conv1"] = hidden = block.conv1(steps["SiLU"])
    if block.time_emb_proj is not None and time is not None:
        hidden = hidden + block.time_emb_proj(F.silu(time))[:, :, None, None]
        steps["+ time"] = hidden
    steps["norm2"] = block.norm2(hidden)
    steps["SiLU again"] = F.silu(steps["norm2"])
    steps["conv2"] = block.conv2(steps["SiLU again"])
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    steps["x + hidden"] = shortcut + steps["conv2"]
    return steps


@torch.no_grad()
def attention_steps(
    attention: Attention, hidden: Tensor, context: Tensor | None = None
) -> dict[str, Tensor]:
    """The layer's intermediate tensors, in order: arXiv:1706.03762, eq. 1, one line at a time.

    Args:
        hidden: (B, queries, C), the pixels' features.
        context: (B, keys, C'), the keys' features; None: self-attention.

    Returns:
        q, k, v (B, heads, tokens, d); scores and weights (B, heads, queries, keys);
        attended (B, heads, queries, d); output (B, queries, C).
    """
    context = hidden if context is None else context
    query = attention.split_heads(attention.to_q(hidden))
    key = attention.split_heads(attention.to_k(context))
    value = attention.split_heads(attention.to_v(context))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    attended = weights @ value
    joined = attended.transpose(1, 2).reshape(hidden.shape)
    return {
        "q": query, "k": key, "v": value, "scores": scores, "weights": weights,
        "attended": attended, "output": attention.to_out[0](joined),
    }  # fmt: skip


# --- latents ------------------------------------------------------------------------------


@torch.no_grad()
def noised(pipe: Pipeline, x0: Tensor, timesteps: Sequence[float], seed: int = 0) -> Tensor:
    """Latents x0 (1, 4, h, w), noised to each timestep with the same noise: (n, 4, h, w)."""
    noise = pipe.noise([seed]).draw(tuple(x0.shape[1:]))
    levels = [pipe.scheduler.schedule.level(t) for t in timesteps]
    return torch.cat([add_noise(x0, noise, level.alpha_bar) for level in levels])
