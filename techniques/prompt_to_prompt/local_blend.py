"""Local blend: what the edit is not about stays the source's, latent by latent.

Where the words in question have been looked at so far, in the source or in the target, the
target's latents stand; everywhere else the source's:

    x_t = source + mask (x_t - source)                    arXiv:2208.01626, sec. 4

The published code takes the 16 x 16 layers of 64 x 64 latents.  Here layers are chosen by
their share of the latent grid, so that any size of image has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, Site
from pare.errors import PromptError, SettingError
from pare.runtime.validation import check_number
from pare.text.words import Words

FEWEST_CELLS = 8


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """What to blend by."""

    words: tuple[str, ...] = ()
    """The edit is where these are; each is looked for in every prompt of the run."""
    subtract: tuple[str, ...] = ()
    """The edit is not where these are."""
    threshold: float = 0.3
    """Looked at is what gets more than this share of the most looked-at place."""
    start: float = 0.2
    """The share of the steps before the first blend, when maps are vague yet."""
    level: int | None = None
    """Whose cross-attention: 0 works on the full latent grid, each further one on half of it.
    None: a quarter of the grid (level 2), as in the paper, but of 8 cells a side at least."""
    blocks: tuple[str, ...] = ("down", "mid", "up")
    """On which sides of the U these layers may be."""
    mask: Tensor | None = None
    """The user's own, (1, 1, h, w), 1 = may change: alone, or the words' is cut to it."""

    def check(self, grid: tuple[int, int]) -> None:
        """Raise a SettingError for a setting out of range, or nothing to blend by.

        Args:
            grid: height and width of the latents.
        """
        if not self.words and not self.subtract and self.mask is None:
            raise SettingError("nothing says where to blend", fix="give words, or a mask")
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_number("start", self.start, 0.0, 1.0)
        if self.mask is not None and self.mask.shape != (1, 1, *grid):
            raise SettingError(
                f"the mask is {tuple(self.mask.shape)}", expected=f"(1, 1, {grid[0]}, {grid[1]})"
            )


class Masks:
    """Collects one run's maps and blends its latents."""

    def __init__(
        self, blend: LocalBlend, prompts: Sequence[Words], steps: int, grid: tuple[int, int]
    ) -> None:
        """
        Args:
            prompts: the source's words and then the targets', as the rows of the run go.
            grid: height and width of the latents.

        Raises:
            PromptError: a word that none of the prompts has.
            SettingError: see `LocalBlend.check`.
        """
        blend.check(grid)
        self.blend_by = blend
        self.group = len(prompts)
        self.level = blend.level if blend.level is not None else level_of(grid)
        self.tokens = columns(blend.words, prompts)
        self.subtracted = columns(blend.subtract, prompts)
        self.first = round(blend.start * steps)
        self.sums: dict[tuple[str, int], Tensor] = {}

    def require_maps(self, sites: Iterable[Site]) -> None:
        """Raise a SettingError where maps are needed and none of a UNet's layers has them."""
        if (self.blend_by.words or self.blend_by.subtract) and not any(map(self.wants, sites)):
            raise SettingError(
                f"the UNet has no cross-attention at level {self.level} of its "
                f"{', '.join(self.blend_by.blocks) or 'no'} blocks",
                fix="choose another level, or other blocks",
            )

    def wants(self, site: Site) -> bool:
        by_words = bool(self.blend_by.words or self.blend_by.subtract)
        here = site.kind == "cross" and site.stage == self.level
        return by_words and here and site.block in self.blend_by.blocks

    def add(self, call: AttentionCall, image: int, maps: Tensor) -> None:
        """Add one layer's maps (heads, queries, 77) of row `image` of the run to its sums."""
        for kind, tokens in (("words", self.tokens), ("subtract", self.subtracted)):
            of_words = maps[:, :, tokens[image % self.group].to(maps.device)]
            looked = of_words.sum(2).mean(0).view(1, 1, call.height, call.width)
            before = self.sums.get((kind, image))
            self.sums[kind, image] = looked if before is None else before + looked

    def looked_at(self, kind: str, image: int, size: tuple[int, int], pool: bool) -> Tensor:
        """Where a row of the run has looked at its words so far: (1, 1, h, w) of bool."""
        seen = self.sums[kind, image]
        if pool:
            seen = F.max_pool2d(seen, 3, stride=1, padding=1)
        seen = F.interpolate(seen, size)
        most = seen.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        return seen / most > self.blend_by.threshold

    def mask(self, image: int, size: tuple[int, int]) -> Tensor:
        """Where row `image` of the run may differ from its source: (1, 1, h, w), 0 or 1."""
        source = image - image % self.group
        own = self.blend_by.mask
        inside = torch.ones(1, 1, *size) if own is None else own
        if self.blend_by.words:
            looked = self.looked_at("words", source, size, pool=True)
            looked = looked | self.looked_at("words", image, size, pool=True)
            inside = inside.to(looked.device) * looked
        if self.blend_by.subtract:
            looked = self.looked_at("subtract", source, size, pool=False)
            looked = looked | self.looked_at("subtract", image, size, pool=False)
            inside = inside.to(looked.device) * ~looked
        return inside

    def blend(self, i: int, x_t: Tensor) -> Tensor:
        """After step `i`: the latents (B, 4, h, w), targets kept to their masks."""
        if i < self.first:
            return x_t
        rows = list(x_t.unbind(0))
        for image in range(len(rows)):
            if image % self.group:
                source = rows[image - image % self.group]
                mask = self.mask(image, (x_t.shape[2], x_t.shape[3]))[0].to(x_t)
                rows[image] = source + mask * (rows[image] - source)
        return torch.stack(rows)


def level_of(grid: tuple[int, int]) -> int:
    """A quarter of the latents' grid, or finer where that is too coarse to tell things apart."""
    level = 2
    while level and max(grid) / 2**level < FEWEST_CELLS:
        level -= 1
    return level


def columns(wanted: Sequence[str], prompts: Sequence[Words]) -> list[Tensor]:
    """For each prompt, the tokens of those of the words that it has.

    Raises:
        PromptError: a word that none of the prompts has.
    """
    for word in wanted:
        if not any(prompt.has(word) for prompt in prompts):
            listed = dict.fromkeys(w for prompt in prompts for w in prompt.spoken())
            raise PromptError(
                f"{word!r} is in none of the prompts", expected=f"one of {', '.join(listed)}"
            )
    return [
        torch.tensor(
            [token for word in wanted if prompt.has(word) for token in prompt.find(word)],
            dtype=torch.long,
        )
        for prompt in prompts
    ]
