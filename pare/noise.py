"""Unit Gaussian noise that depends on the seed alone.

Every image has its own generator, so that an image's noise does not depend on the rest of
its batch.  All noise is drawn on the CPU in float32 and then moved: a seed gives the same
noise on every device and in every dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from pare.runtime.validation import seed_list


class Noise:
    """A stream of unit Gaussian noise for a batch of images, one generator per seed."""

    def __init__(self, seeds: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        """`device` is where the noise is moved to, not where it is drawn.

        A seed may occur twice: edits are compared under two prompts and one noise.

        Raises:
            SettingError: no seeds, or a seed that is not in 0 .. 2**63 - 1.
        """
        self.seeds = seed_list(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.generators)

    def __repr__(self) -> str:
        return f"Noise({len(self)} streams, {self.device})"

    def __getitem__(self, rows: slice) -> Noise:
        """The streams of some of the images: the same generators, not copies."""
        some = copy.copy(self)
        some.seeds, some.generators = self.seeds[rows], self.generators[rows]
        return some

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next noise: (B, *shape), float32, each row from its own image's generator."""
        rows = [
            torch.randn(shape, generator=generator, dtype=torch.float32)
            for generator in self.generators
        ]
        return torch.stack(rows).to(self.device)
