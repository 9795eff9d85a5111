"""pare asks PyTorch for no more work than diffusers: speed's bound, without a clock.

Seconds are for `pare bench` on an idle machine.  What can be tested anywhere is the list of
operations that a forward consists of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.random_models import TINY_UNET, TINY_VAE, normal, unet_pair, vae_pair


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


def operations(run: Callable[[], Tensor]) -> Counter[str]:
    with torch.no_grad(), Operations() as seen:
        run()
    return seen.counts


def check(ours: Counter[str], theirs: Counter[str], free: set[str]) -> None:
    assert ours["aten.convolution"] > 10
    more = {name: (n, theirs[name]) for name, n in ours.items() if n > theirs[name]}
    assert set(more) <= free, more
    for heavy in ("convolution", "addmm", "mm", "native_group_norm", "native_layer_norm"):
        assert ours[f"aten.{heavy}"] == theirs[f"aten.{heavy}"]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_a_unet_step(linear: bool, size: tuple[int, int]) -> None:
    ours, theirs = unet_pair(TINY_UNET | {"use_linear_projection": linear, "layers_per_block": 2})
    x_t, text = normal(2, 4, *size), normal(2, 7, 12, seed=2)
    check(
        operations(lambda: ours(x_t, 500, text)),
        operations(lambda: theirs(x_t, 500, text).sample),
        free={"aten.constant_pad_nd"},  # of the time embedding, one row an image
    )


def test_the_vae() -> None:
    ours, theirs = vae_pair(TINY_VAE | {"layers_per_block": 3})
    image, latents = normal(1, 3, 16, 16), normal(1, 4, 8, 8, seed=2)
    check(
        operations(lambda: ours.encode(image).mean),
        operations(lambda: theirs.encode(image).latent_dist.mean),
        free=set(),
    )
    check(
        operations(lambda: ours.decode(latents)),
        operations(lambda: theirs.decode(latents).sample),
        free=set(),
    )
