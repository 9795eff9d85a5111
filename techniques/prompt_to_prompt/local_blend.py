"""Local blend: keep the target's latents where the edited words attend, elsewhere the source's.

    x_t = source + mask (x_t - source)                    arXiv:2208.01626, sec. 4

The mask is where some words' attention map, averaged over the run so far, exceeds a threshold,
in the source or in the target.  The published code takes the 16 x 16 layers of 64 x 64
latents.  Here layers are chosen by their stage of the UNet, so that every image size has some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, Site
from pare.errors import PromptError, SettingError
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_number
from pare.text.words import Words

SMALLEST_GRID = 8  # cells along the longer side


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Where the targets may differ from the source."""

    words: tuple[str, ...] = ()
    """Where these words attend; each is searched for in every prompt of the run."""
    subtract: tuple[str, ...] = ()
    """But not where these attend."""
    threshold: float = 0.3
    """A word attends where its map is above this fraction of the map's maximum."""
    start: float = 0.2
    """The fraction of the steps before the first blend, while maps are still diffuse."""
    stage: int | None = None
    """The UNet's stage whose cross-attention is used: 0 has the full latent grid, each further
    one half of it.  None: a quarter of the grid (stage 2) as in the paper, or the coarsest
    that is 8 cells wide."""
    blocks: tuple[str, ...] = ("down", "mid", "up")
    """The UNet's blocks whose layers are used."""
    mask: Tensor | None = None
    """The user's own, (1, 1, h, w), 1 = may change: alone, or intersected with the words'."""

    __repr__ = short_repr

    def check(self, grid: tuple[int, int]) -> None:
        """Raise a SettingError for a setting out of range, or nothing to blend by.

        Args:
            grid: height and width of the latents.
        """
        if not self.words and not self.subtract and self.mask is None:
            raise SettingError("the local blend has neither words nor a mask", fix="give one")
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_number("start", self.start, 0.0, 1.0)
        if self.mask is not None and self.mask.shape != (1, 1, *grid):
            raise SettingError(
                f"`mask` is {tuple(self.mask.shape)}", expected=f"(1, 1, {grid[0]}, {grid[1]})"
            )


def within_mask(blend: LocalBlend | None, mask: Tensor | None) -> LocalBlend | None:
    """The local blend within a mask on the latent grid (1, 1, h, w), if there is one.

    A mask alone acts from the first step: it needs no attention maps.
    """
    if mask is None:
        return blend
    return dataclasses.replace(blend or LocalBlend(start=0.0), mask=mask)


class LocalBlendMasks:
    """Sums one run's attention maps, and blends its latents by them."""

    def __init__(
        self, blend: LocalBlend, prompts: Sequence[Words], steps: int, grid: tuple[int, int]
    ) -> None:
        """
        Args:
            prompts: the source's words and then the targets', in the order of the run's rows.
            grid: height and width of the latents.

        Raises:
            PromptError: a word that none of the prompts has.
            SettingError: see `LocalBlend.check`.
        """
        blend.check(grid)
        self.blend_by = blend
        self.group = len(prompts)
        self.stage = blend.stage if blend.stage is not None else default_stage(grid)
        self.tokens = {
            "words": tokens_of(blend.words, prompts),
            "subtract": tokens_of(blend.subtract, prompts),
        }
        self.first = round(blend.start * steps)
        self.sums: dict[tuple[str, int], Tensor] = {}

    def require_maps(self, sites: Iterable[Site]) -> None:
        """Raise a SettingError where maps are needed and none of a UNet's layers has them."""
        if (self.blend_by.words or self.blend_by.subtract) and not any(map(self.wants, sites)):
            raise SettingError(
                f"the UNet has no cross-attention at stage {self.stage} of its "
                f"{', '.join(self.blend_by.blocks) or 'no'} blocks",
                fix="choose another stage, or other blocks",
            )

    def wants(self, site: Site) -> bool:
        by_words = bool(self.blend_by.words or self.blend_by.subtract)
        here = site.kind == "cross" and site.stage == self.stage
        return by_words and here and site.block in self.blend_by.blocks

    def add(self, call: AttentionCall, image: int, maps: Tensor) -> None:
        """Add one layer's maps (heads, queries, 77) of row `image` of the run to its sums."""
        for kind, tokens in self.tokens.items():
            of_words = maps[:, :, tokens[image % self.group].to(maps.device)]
            mean = of_words.sum(2).mean(0).view(1, 1, call.height, call.width)
            before = self.sums.get((kind, image))
            self.sums[kind, image] = mean if before is None else before + mean

    def attends(self, kind: str, image: int, size: tuple[int, int], pool: bool) -> Tensor:
        """Where a row of the run attends to its words so far: (1, 1, h, w) of bool."""
        maps = self.sums[kind, image]
        if pool:
            maps = F.max_pool2d(maps, 3, stride=1, padding=1)
        maps = F.interpolate(maps, size)
        most = maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        return maps / most > self.blend_by.threshold

    def mask(self, image: int, size: tuple[int, int]) -> Tensor:
        """Where row `image` of the run may differ from its source: (1, 1, h, w), 0 or 1."""
        source = image - image % self.group
        own = self.blend_by.mask
        inside = torch.ones(1, 1, *size) if own is None else own
        for kind in ("words", "subtract"):
            if getattr(self.blend_by, kind):
                here = self.attends(kind, source, size, pool=kind == "words")
                here = here | self.attends(kind, image, size, pool=kind == "words")
                inside = inside.to(here.device) * (here if kind == "words" else ~here)
        return inside

    def blend(self, i: int, x_t: Tensor) -> Tensor:
        """After step `i`: the latents (B, 4, h, w), targets blended into their sources."""
        if i < self.first:
            return x_t
        rows = list(x_t.unbind(0))
        for image in range(len(rows)):
            if image % self.group:
                source = rows[image - image % self.group]
                mask = self.mask(image, (x_t.shape[2], x_t.shape[3]))[0].to(x_t)
                rows[image] = source + mask * (rows[image] - source)
        return torch.stack(rows)

    def final_masks(self, latents: Tensor) -> Tensor:
        """The masks of the last blend of latents (B, 4, h, w): (seeds, targets, h, w)."""
        size = (latents.shape[2], latents.shape[3])
        masks = [
            self.mask(image, size)[0, 0].cpu()
            for image in range(len(latents))
            if image % self.group
        ]
        return torch.stack(masks).view(-1, self.group - 1, *size)


def default_stage(grid: tuple[int, int]) -> int:
    """A quarter of the latent grid, or finer where that is too coarse to localise words."""
    stage = 2
    while stage and max(grid) / 2**stage < SMALLEST_GRID:
        stage -= 1
    return stage


def tokens_of(words: Sequence[str], prompts: Sequence[Words]) -> list[Tensor]:
    """For each prompt, the places of the tokens of those of the words that it has.

    Raises:
        PromptError: a word that none of the prompts has.
    """
    for word in words:
        if not any(prompt.has(word) for prompt in prompts):
            listed = dict.fromkeys(w for prompt in prompts for w in prompt.spoken())
            raise PromptError(
                f"{word!r} is in none of the prompts", expected=f"one of {', '.join(listed)}"
            )
    return [
        torch.tensor(
            [token for word in words if prompt.has(word) for token in prompt.find(word)],
            dtype=torch.long,
        )
        for prompt in prompts
    ]
