"""A seed means one noise: whatever its neighbours, the device or the program around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pare.errors import SettingError
from pare.noise import Noise
from pare.runtime.validation import MAX_SEED

SEEDS = st.integers(0, MAX_SEED)
SHAPE = (4, 3, 5)


@given(SEEDS, st.lists(SEEDS, max_size=3), st.lists(SEEDS, max_size=3))
def test_an_images_noise_depends_on_its_seed_alone(
    seed: int, before: list[int], after: list[int]
) -> None:
    alone, among = Noise([seed]), Noise([*before, seed, *after])
    assert len(among) == len(before) + 1 + len(after)
    for _ in range(3):  # every draw of the stream, not only the first
        assert torch.equal(alone.draw(SHAPE)[0], among.draw(SHAPE)[len(before)])


def test_the_noise_is_the_generators_own() -> None:
    generator = torch.Generator().manual_seed(7)
    noise = Noise([7])
    first, second = noise.draw(SHAPE), noise.draw(SHAPE)
    assert torch.equal(first, torch.randn(1, *SHAPE, generator=generator))
    assert torch.equal(second, torch.randn(1, *SHAPE, generator=generator))
    assert not torch.equal(first, second)


def test_the_ends_of_the_range_are_seeds_like_any_other() -> None:
    rows = Noise([0, 1, MAX_SEED - 1, MAX_SEED]).draw((4, 16, 16))
    assert len({tuple(row.flatten()[:4].tolist()) for row in rows}) == 4
    assert rows.mean().abs() < 0.1
    assert (rows.std() - 1).abs() < 0.1


def test_equal_seeds_give_equal_noise() -> None:
    """Two prompts from one noise: how an edit is compared with its original."""
    one, other = Noise([5, 5]).draw(SHAPE)
    assert torch.equal(one, other)


def test_noise_is_float32_whatever_the_default_is() -> None:
    usual = Noise([3]).draw(SHAPE)
    torch.set_default_dtype(torch.float64)
    try:
        noise = Noise([3]).draw(SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, usual)


@pytest.mark.parametrize("seeds", [[], [-1], [2**63], [1.0], [True], [None], ["7"], [3, -1]])
def test_what_is_no_seed_is_refused(seeds: list[int]) -> None:
    with pytest.raises(SettingError, match="seed"):
        Noise(seeds)
