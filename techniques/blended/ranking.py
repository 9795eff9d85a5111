"""Ranking of several candidates by a score.

Whether an edit succeeds depends on the seed.  So make several images and rank them (the paper
by the CLIP similarity of the masked region and the prompt).  The score is a function of yours:

    def rank(image: Image.Image, prompt: str) -> float: ...      # higher is better

    result = blend(pipe, image, mask, prompt, seeds=range(8), rank=at_mask(rank, mask))
    result[result.order[0]]

`by_loss` makes one of any loss of `techniques.loss_guidance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from pare.errors import SettingError
from pare.io.images import mask_channel, match_mask, to_tensor
from techniques.blended.edit_canvas import is_edit
from techniques.loss_guidance import Loss

Rank = Callable[[Image.Image, str], float]
"""How well an image (RGB) shows what the prompt says; higher is better."""


def by_loss(loss_of: Callable[[str], Loss]) -> Rank:
    """The ranking for which the smaller loss is better: the score is minus the loss.

    Args:
        loss_of: prompt -> its loss, which takes an image (1, 3, H, W) in [0, 1]; made once.
    """
    losses: dict[str, Loss] = {}

    @torch.no_grad()
    def rank(image: Image.Image, prompt: str) -> float:
        if prompt not in losses:
            losses[prompt] = loss_of(prompt)
        return -float(losses[prompt](to_tensor(image) / 2 + 0.5))

    return rank


def scores_of(images: Sequence[Image.Image], prompts: Sequence[str], rank: Rank) -> list[float]:
    """What `rank` gives each image for its own prompt.

    Raises:
        SettingError: a score that is not a number, which nothing can be sorted by.
    """
    scores = [float(rank(image, prompt)) for image, prompt in zip(images, prompts, strict=True)]
    for number, score in enumerate(scores, start=1):
        if math.isnan(score):
            raise SettingError(f"`rank` gives image {number} nan", expected="a number")
    return scores


def at_mask(rank: Rank, mask: Image.Image, margin: float = 0.0) -> Rank:
    """A ranking of the bounding box of what the mask marks.

    `margin` widens the box, as a fraction of its longer side.
    """

    channel = mask if mask.mode == "L" else mask_channel(mask)

    def rank_region(image: Image.Image, prompt: str) -> float:
        return rank(image.crop(region(match_mask(channel, image.size), margin)), prompt)

    return rank_region


def region(mask: Image.Image, margin: float = 0.0) -> tuple[int, int, int, int]:
    """The bounding box (left, upper, right, lower) of what the mask marks."""
    edit = is_edit(mask)
    rows, columns = np.flatnonzero(edit.any(axis=1)), np.flatnonzero(edit.any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    upper, lower = int(rows[0]), int(rows[-1]) + 1
    wider = round(margin * max(right - left, lower - upper))
    return (
        max(0, left - wider),
        max(0, upper - wider),
        min(mask.width, right + wider),
        min(mask.height, lower + wider),
    )
