"""The tutorial hf_diffusers_deconstruct_core99's variant: store all attention maps, then replay.

Two runs from the same noise.  The source run stores the cross-attention weights of every layer
and step, for both branches of the guidance; the target run uses them instead of its own, token
by token.  No words are paired, so it fits prompts that differ word for word; and the maps of
50 steps of SD 1 take 3.3 GB in half precision, where `p2p_loop` keeps none.

    x_T = pipe.noise([42]).draw(pipe.latent_shape()) * timesteps.initial_scale
    source, target = replay_latents(
        pipe, x_T, timesteps, pipe.encode_prompts(["a sunny road"]),
        pipe.encode_prompts(["a snowy road"]), guidance=7.5,
    )
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pare.attention import AttentionCall, Control, Site
from pare.pipeline import Pipeline, Progress
from pare.runtime.validation import check_number
from pare.schedulers import Timesteps
from pare.text.text_encoder import PromptEmbeddings

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
    injection_ratio: float = 1.0,
    progress: Progress = iter,
) -> tuple[Tensor, Tensor]:
    """x_t (B, 4, h, w) -> the latents of the source and of the target, both (B, 4, h, w).

    Args:
        injection_ratio: the fraction of the run's cross-attention calls that are replaced, from
            the first on.  (In the tutorial's code it has no effect: there it is always 1.)

    Raises:
        SettingError: a ratio out of range, or a scheduler that draws noise.
    """
    check_number("injection_ratio", injection_ratio, 0.0, 1.0)
    layers = [site.name for site in pipe.unet.sites() if site.kind == "cross"]
    replay = Replay(layers, int(injection_ratio * len(layers) * len(timesteps)), pipe.dtype)
    made = pipe.denoise(
        x_t, timesteps, source, guidance=guidance, control=replay, progress=progress
    )
    replay.storing = False
    edited = pipe.denoise(
        x_t, timesteps, target, guidance=guidance, control=replay, progress=progress
    )
    return made, edited


class Replay(Control):
    """Stores the maps of one run, and puts them in place of those of the next."""

    def __init__(self, layers: list[str], calls: int, dtype: torch.dtype) -> None:
        """
        Args:
            layers: the cross-attention layers' names, in the order of execution.
            calls: how many calls of the run are replaced, from the first on.
            dtype: of the stored maps.
        """
        self.order = {name: k for k, name in enumerate(layers)}
        self.calls, self.dtype = calls, dtype
        self.maps: Maps = {}
        self.storing = True

    def edits(self, site: Site, step: int) -> bool:
        if site.kind != "cross":
            return False
        return step * len(self.order) + self.order[site.name] < self.calls

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> dict[int, Tensor]:
        key = call.step, call.site.name
        if not self.storing:
            return dict(enumerate(self.maps.pop(key)))  # in every row; each is freed after use
        self.maps[key] = [weights(row).to(self.dtype) for row in range(len(call.rows))]
        return {}
