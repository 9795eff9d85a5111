"""The UNet against diffusers', bit for bit, over the space of SD 1.x / 2.x configs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.random_models import TINY_UNET, normal, unet_pair

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"


def both(
    raw: dict[str, Any],
    *,
    batch: int = 2,
    size: tuple[int, int] = (8, 8),
    t: Tensor | float = 501,
    tokens: int = 7,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What pare's and diffusers' UNet say about the same input."""
    ours, theirs = unet_pair(raw, dtype=dtype)
    x_t = normal(batch, raw["in_channels"], *size, dtype=dtype)
    text = normal(batch, tokens, raw["cross_attention_dim"], seed=2, dtype=dtype)
    with torch.no_grad():
        return ours(x_t, t, text), theirs(x_t, t, text).sample


CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one level": {
        "block_out_channels": [8],
        "down_block_types": [CROSS_DOWN],
        "up_block_types": [CROSS_UP],
    },
    "four levels": {
        "block_out_channels": [8, 16, 16, 24],
        "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
        "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
    },
    "text on the lowest level only": {
        "down_block_types": [DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, UP],
    },
    "text on the way down only": {
        "down_block_types": [CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [UP, UP],
    },
    "widths that shrink": {"block_out_channels": [16, 8]},
    "three layers": {"layers_per_block": 3},
    "heads a level": {"attention_head_dim": [2, 4]},
    "one head": {"attention_head_dim": 1},
    "heads of width 1": {"attention_head_dim": [8, 16]},
    "linear projections": {"use_linear_projection": True},
    "upcast attention": {"upcast_attention": True},
    "inpainting": {"in_channels": 9},
    "variance predicted": {"out_channels": 8},
    "groups of one channel": {"norm_num_groups": 8},
    "one group": {"norm_num_groups": 1},
    "norm eps": {"norm_eps": 1e-3},
    "sines first": {"flip_sin_to_cos": False},
    "frequencies shifted": {"freq_shift": 1},
    "odd width": {"block_out_channels": [9, 18], "norm_num_groups": 3, "attention_head_dim": 3},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_config(changes: dict[str, Any]) -> None:
    ours, theirs = both(TINY_UNET | changes)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (5, 3), (1, 1), (2, 11), (16, 4)])
def test_every_size(size: tuple[int, int]) -> None:
    """Odd sizes at every level: the way up must meet the skips."""
    ours, theirs = both(TINY_UNET | CONFIGS["four levels"], size=size)
    assert ours.shape[-2:] == size
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_batch(batch: int) -> None:
    ours, theirs = both(TINY_UNET, batch=batch)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "t",
    [
        0,
        999,
        17.25,
        torch.tensor(400),
        torch.tensor([3, 999]),
        torch.tensor([3.5, 998.75]),
    ],
    ids=str,
)
def test_every_timestep(t: Tensor | float) -> None:
    """One for all or one an image, whole or fractional."""
    ours, theirs = both(TINY_UNET, t=t)
    assert torch.equal(ours, theirs)


def test_a_timestep_per_image_is_that_images() -> None:
    unet, _ = unet_pair(TINY_UNET)
    x_t, text = normal(2, 4, 8, 8), normal(2, 7, 12, seed=2)
    together = unet(x_t, torch.tensor([10, 900]), text)
    torch.testing.assert_close(together[:1], unet(x_t[:1], 10, text[:1]))
    torch.testing.assert_close(together[1:], unet(x_t[1:], 900, text[1:]))
    assert not torch.allclose(together[1:], unet(x_t[1:], 10, text[1:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("linear", [False, True])
def test_half_precision(dtype: torch.dtype, linear: bool) -> None:
    """The same operations in the same order give the same bits in every number type."""
    ours, theirs = both(TINY_UNET | {"use_linear_projection": linear}, dtype=dtype)
    assert ours.dtype == dtype
    assert ours.isfinite().all()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_upcast_attention_in_half_precision(dtype: torch.dtype) -> None:
    """diffusers' fast path ignores the flag, pare honours it: so not its bits, but no farther
    from the float32 answer than diffusers is (up to the chance of single roundings)."""
    raw = TINY_UNET | CONFIGS["four levels"] | {"upcast_attention": True}
    ours, theirs = both(raw, dtype=dtype)
    exact, _ = both(raw)
    assert not torch.equal(ours, theirs)
    error, reference_error = ((x.float() - exact).norm() for x in (ours, theirs))
    assert error <= 1.1 * reference_error


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any SD 1.x / 2.x UNet, small."""
    levels = draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, 2, 3, 4]))
    heads = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=levels, max_size=levels))
    # Two channels a group at least: GroupNorm refuses a group of a single number.
    widths = [draw(st.integers(1, 2)) * math.lcm(2 * groups, n) for n in heads]
    return {
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": draw(st.integers(1, 9)),
        "down_block_types": [draw(st.sampled_from([CROSS_DOWN, DOWN])) for _ in heads],
        "up_block_types": [draw(st.sampled_from([CROSS_UP, UP])) for _ in heads],
        "in_channels": draw(st.sampled_from([4, 9, 5, 1])),
        "out_channels": draw(st.sampled_from([4, 8, 1])),
        "layers_per_block": draw(st.integers(1, 3)),
        "norm_num_groups": groups,
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6, 1e-2])),
        "use_linear_projection": draw(st.booleans()),
        "upcast_attention": draw(st.booleans()),
        "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.sampled_from([0, 0.5])),
        "sample_size": draw(st.sampled_from([8, [4, 6]])),
    }


# Shrinking an example would build hundreds of UNets; a config of this size reads well as it is.
@settings(max_examples=20, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    raw=configs(),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    t=st.floats(0, 999, width=32),
    tokens=st.integers(1, 8),
)
def test_any_config(
    raw: dict[str, Any], batch: int, size: tuple[int, int], t: float, tokens: int
) -> None:
    ours, theirs = both(raw, batch=batch, size=size, t=t, tokens=tokens)
    assert torch.equal(ours, theirs)
