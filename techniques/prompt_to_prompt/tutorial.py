"""The variant of the tutorial hf_diffusers_deconstruct_core99: store everything, then replay.

Two whole runs from one noise.  The first keeps every cross-attention map of every step, in
both halves of the guidance; the second puts them in place of its own, token by token as they
stand.  No word is paired with any other, and memory grows with the steps: kept for study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pare.attention import AttentionCall, Control, Site
from pare.errors import NotEnoughMemoryError
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.runtime.validation import check_number
from pare.schedulers import Timesteps
from pare.text.text_encoder import PromptEmbeddings

MOST_BYTES = 4 * 2**30

Maps = dict[tuple[int, str], list[Tensor]]
"""Of each step and layer, (heads, queries, 77) for every row of the batch."""


@torch.no_grad()
def replay_latents(
    pipe: Pipeline,
    x_t: Tensor,
    timesteps: Timesteps,
    source: PromptEmbeddings,
    target: PromptEmbeddings,
    *,
    guidance: float,
    rescale: float = 0.0,
    injection_ratio: float = 1.0,
    noise: tuple[Noise, Noise] | None = None,
    most_bytes: int = MOST_BYTES,
    progress: Progress = iter,
) -> tuple[Tensor, Tensor]:
    """x_t (B, 4, h, w) -> the latents of the source and of the target, both (B, 4, h, w).

    Args:
        injection_ratio: the share of all calls of cross-attention that are replaced, from the
            first on.  In the tutorial's code it has no effect: there it is always 1.
        noise: equal streams for the two runs, for schedulers that are `stochastic`.
        most_bytes: that the maps may take.

    Raises:
        SettingError: a ratio out of range.
        NotEnoughMemoryError: the maps would take more.
    """
    check_number("injection_ratio", injection_ratio, 0.0, 1.0)
    sites = [site.name for site in pipe.unet.sites() if site.kind == "cross"]
    replaced = Replaced(sites, int(injection_ratio * len(sites) * len(timesteps)))
    rows = len(x_t) * (1 if guidance == 1 else 2)
    need = maps_bytes(pipe, (x_t.shape[2], x_t.shape[3]), rows, replaced.calls)
    if need > most_bytes:
        raise NotEnoughMemoryError(
            f"the maps of this run take {need / 2**30:.1f} GiB",
            expected=f"at most {most_bytes / 2**30:.1f} GiB",
            fix="take fewer steps, or the lockstep variant, which keeps none",
        )
    maps: Maps = {}
    recorder, player = Recorder(replaced, maps, pipe.dtype), Player(replaced, maps)
    noises = noise or (None, None)
    made = pipe.denoise(
        x_t, timesteps, source, guidance=guidance, rescale=rescale,
        noise=noises[0], control=recorder, progress=progress,
    )  # fmt: skip
    edited = pipe.denoise(
        x_t, timesteps, target, guidance=guidance, rescale=rescale,
        noise=noises[1], control=player, progress=progress,
    )  # fmt: skip
    return made, edited


def maps_bytes(pipe: Pipeline, grid: tuple[int, int], rows: int, calls: int) -> int:
    """What the maps of the first `calls` calls of cross-attention take, `rows` in a batch.

    Args:
        grid: height and width of the latents.
    """
    tokens = pipe.text_encoder.config.max_position_embeddings if pipe.text_encoder else 77
    sizes = [
        site.heads * math.prod(math.ceil(side / 2**site.stage) for side in grid) * tokens
        for site in pipe.unet.sites()
        if site.kind == "cross"
    ]
    whole, rest = divmod(calls, len(sizes))
    numbers = rows * (whole * sum(sizes) + sum(sizes[:rest]))
    return numbers * torch.empty((), dtype=pipe.dtype).element_size()


class Replaced:
    """The first so many calls of cross-attention in a run."""

    def __init__(self, sites: Sequence[str], calls: int) -> None:
        """`sites`: the layers' names, in the order of execution."""
        self.order = {name: k for k, name in enumerate(sites)}
        self.calls = calls

    def __contains__(self, place: tuple[Site, int]) -> bool:
        site, step = place
        return site.kind == "cross" and step * len(self.order) + self.order[site.name] < self.calls


class Recorder(Control):
    """Keeps maps; edits nothing."""

    def __init__(self, wanted: Replaced, maps: Maps, dtype: torch.dtype) -> None:
        self.wanted, self.maps, self.dtype = wanted, maps, dtype

    def edits(self, site: Site, step: int) -> bool:
        return (site, step) in self.wanted

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> dict[int, Tensor]:
        self.maps[call.step, call.site.name] = [
            weights(row).to(self.dtype) for row in range(len(call.rows))
        ]
        return {}


class Player(Control):
    """Puts the kept maps in place of the model's own, in every row; each is then let go."""

    def __init__(self, wanted: Replaced, maps: Maps) -> None:
        self.wanted, self.maps = wanted, maps

    def edits(self, site: Site, step: int) -> bool:
        return (site, step) in self.wanted

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> dict[int, Tensor]:
        return dict(enumerate(self.maps.pop((call.step, call.site.name))))
