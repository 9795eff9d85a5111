"""Prompt-to-Prompt on diffusers' components: the references, free of pare.

`reference_p2p` is the loop that was published with arXiv:2208.01626 in its order of
operations: attention processors count layers and steps, and edit the second half of the
batch.  `reference_replay` is the tutorial's (hf_diffusers_deconstruct_core99,
`prompt_to_prompt_attention.py`): store every map of one run, replace those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# probabilities (batch * heads, queries, keys), is it cross-attention -> those that are to act
Hook = Callable[[Tensor, bool], Tensor]


class Processor:
    """Attention spelled out, with a hook on the probabilities."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        probabilities = self.hook(probabilities, cross)
        hidden = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[0](hidden)


# --- the mappers, from tokens --------------------------------------------------------------


def replacement_mapper(counts: Sequence[tuple[int, int]], length: int = 77) -> Tensor:
    """counts: tokens of each word in the source and in the target; [source, target]."""
    mapper = torch.zeros(length, length)
    mapper[0, 0] = 1
    i = j = 1
    for n, m in counts:
        if n == m:
            mapper[i : i + n, j : j + m] = torch.eye(n)
        else:
            mapper[i : i + n, j : j + m] = 1 / max(n, m)
        i, j = i + n, j + m
    while i < length and j < length:
        mapper[i, j] = 1
        i, j = i + 1, j + 1
    return mapper


def refinement_mapper(
    source: Sequence[int], target: Sequence[int], length: int = 77
) -> tuple[Tensor, Tensor]:
    """ids -> for each token of the target its source (-1: none), and 1 where it has one."""
    scores = torch.zeros(len(source) + 1, len(target) + 1, dtype=torch.long)
    moves = torch.zeros_like(scores)  # 1: the target's is new, 2: the source's is gone, 3: paired
    moves[0, 1:], moves[1:, 0] = 1, 2
    for i in range(1, len(source) + 1):
        for j in range(1, len(target) + 1):
            left, up = scores[i, j - 1], scores[i - 1, j]
            both = scores[i - 1, j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            scores[i, j] = torch.stack([left, up, both]).max()
            moves[i, j] = 1 if scores[i, j] == left else 2 if scores[i, j] == up else 3
    mapper, alphas = torch.arange(length), torch.ones(length)
    mapper[: len(target)] = -1
    i, j = len(source), len(target)
    while i or j:
        move = int(moves[i, j])
        i, j = i - (move != 1), j - (move != 2)
        if move == 3:
            mapper[j] = i
    alphas[: len(target)] = (mapper[: len(target)] != -1).float()
    return mapper, alphas


# --- the published loop --------------------------------------------------------------------


@dataclass
class LocalBlend:
    words: list[list[int]]  # for each prompt, the places of the words' tokens
    subtract: list[list[int]] | None
    cells: tuple[int, int]  # of the layers whose maps count
    start: int
    threshold: float = 0.3
    counter: int = 0

    def __call__(self, x_t: Tensor, store: list[Tensor]) -> Tensor:
        """store: of each layer (prompts * heads, pixels, 77), summed over the steps."""
        self.counter += 1
        if self.counter <= self.start:
            return x_t
        count = len(self.words)
        maps = torch.cat([m.reshape(count, -1, *self.cells, m.shape[-1]) for m in store], dim=1)
        mask = self.get_mask(maps, self.words, x_t, pool=True)
        if self.subtract:
            mask = mask & ~self.get_mask(maps, self.subtract, x_t, pool=False)
        return x_t[:1] + mask.float() * (x_t - x_t[:1])

    def get_mask(self, maps: Tensor, words: list[list[int]], x_t: Tensor, pool: bool) -> Tensor:
        rows = [maps[k][..., places].sum(-1).mean(0) for k, places in enumerate(words)]
        seen = torch.stack(rows)[:, None]
        if pool:
            seen = F.max_pool2d(seen, (3, 3), (1, 1), padding=(1, 1))
        seen = F.interpolate(seen, size=x_t.shape[2:])
        seen = seen / seen.amax(dim=(2, 3), keepdim=True)
        mask = seen.gt(self.threshold)
        return mask[:1] | mask


@dataclass
class Controller:
    """Edits the second half of the batch: (base, own) (heads, pixels, 77) -> edited."""

    edits: list[Callable[[Tensor, Tensor], Tensor]]  # one a target
    layers: int
    cross_alpha: Tensor  # (steps + 1, targets, 77)
    self_steps: int
    self_limit: int = 36  # pixels
    blend: LocalBlend | None = None
    step: int = 0
    layer: int = 0
    step_store: list[Tensor] = field(default_factory=list)
    store: list[Tensor] = field(default_factory=list)

    def __call__(self, probabilities: Tensor, cross: bool) -> Tensor:
        half = probabilities.shape[0] // 2
        edited = self.conditional(probabilities[half:].clone(), cross)
        self.layer += 1
        if self.layer == self.layers:
            self.layer, self.step = 0, self.step + 1
            self.store = (
                [a + b for a, b in zip(self.store, self.step_store, strict=True)]
                if self.store
                else self.step_store
            )
            self.step_store = []
        return torch.cat([probabilities[:half], edited])

    def conditional(self, maps: Tensor, cross: bool) -> Tensor:
        count = 1 + len(self.edits)
        maps = maps.reshape(count, -1, *maps.shape[1:])
        if cross:
            for k, edit in enumerate(self.edits):
                alpha = self.cross_alpha[self.step, k]
                maps[1 + k] = edit(maps[0], maps[1 + k]) * alpha + (1 - alpha) * maps[1 + k]
        elif self.step < self.self_steps and maps.shape[3] <= self.self_limit:
            maps[1:] = maps[:1]
        flat = maps.reshape(-1, *maps.shape[2:])
        if cross and self.blend and maps.shape[2] == self.blend.cells[0] * self.blend.cells[1]:
            self.step_store.append(flat)
        return flat


@torch.no_grad()
def reference_p2p(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    texts: Sequence[Tensor],
    uncond: Tensor,
    make: Callable[[int], Controller],
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """noise (1, 4, h, w), embeddings (1, 77, C) -> latents (prompts, 4, h, w).

    make: the controller, from the number of attention layers.
    """
    usual = unet.attn_processors
    controller = make(len(usual))
    unet.set_attn_processor(Processor(controller))
    scheduler.set_timesteps(steps)
    latents = noise.expand(len(texts), -1, -1, -1) * scheduler.init_noise_sigma
    context = torch.cat([uncond] * len(texts) + list(texts))
    for t in scheduler.timesteps:
        batch = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        without, with_text = unet(batch, t, encoder_hidden_states=context).sample.chunk(2)
        predicted = without + guidance * (with_text - without)
        latents = scheduler.step(predicted, t, latents).prev_sample
        if controller.blend:
            latents = controller.blend(latents, controller.store)
    unet.set_attn_processor(usual)
    return latents


# --- the tutorial --------------------------------------------------------------------------


@torch.no_grad()
def reference_replay(
    unet: Any,
    make_scheduler: Callable[[], Any],
    noise: Tensor,
    source: Tensor,
    target: Tensor,
    uncond: Tensor,
    *,
    steps: int,
    guidance: float,
    injection_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Latents of the source's run and of the target's."""
    saved: list[Tensor] = []
    used = 0

    def save(probabilities: Tensor, cross: bool) -> Tensor:
        if cross:
            saved.append(probabilities.detach().clone())
        return probabilities

    def inject(probabilities: Tensor, cross: bool) -> Tensor:
        nonlocal used
        if cross:
            if used < int(injection_ratio * len(saved)):
                probabilities = saved[used]
            used += 1
        return probabilities

    def run(text: Tensor, hook: Hook) -> Tensor:
        usual = unet.attn_processors
        unet.set_attn_processor(Processor(hook))
        scheduler = make_scheduler()
        scheduler.set_timesteps(steps)
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            batch = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            output = unet(batch, t, encoder_hidden_states=torch.cat([uncond, text])).sample
            without, with_text = output.chunk(2)
            predicted = without + guidance * (with_text - without)
            latents = scheduler.step(predicted, t, latents).prev_sample
        unet.set_attn_processor(usual)
        return latents

    return run(source, save), run(target, inject)
