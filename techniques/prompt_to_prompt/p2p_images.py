"""From words to images: the source, and beside it one image for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.io.images import to_pil
from pare.pipeline import Pipeline, Progress, check_sampling
from pare.text.words import Words, read
from techniques.prompt_to_prompt.attention_edit import (
    COARSE,
    EVERYWHERE,
    Injection,
    Sites,
    Span,
    Target,
    cross_schedule,
    steps_of,
)
from techniques.prompt_to_prompt.local_blend import LocalBlend, Masks
from techniques.prompt_to_prompt.p2p_loop import edit_latents
from techniques.prompt_to_prompt.token_mapper import Mode, TokenMap, token_map
from techniques.prompt_to_prompt.tutorial import MOST_BYTES, replay_latents

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTokenizer

# The solver that suits the technique; `pare p2p` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}
MAX_TARGETS = 32


@dataclass(frozen=True)
class Edit:
    """One target: its prompt, and how its attention is made of the source's."""

    prompt: str
    mode: Mode | None = None
    """"replace" word for word; "refine" what is new by itself; "own": nothing but `words`.
    None is "replace" where both prompts have as many words, else "refine"."""
    words: Mapping[str, str] = field(default_factory=dict)
    """A word of the source -> the word of the target that takes its place."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """A word of the target -> what its attention is multiplied by."""
    normalised: bool = False
    """See `mapper.replaced`."""
    cross_replace: Span = 0.8
    """The share of the steps in which the table acts."""
    cross_replace_words: Mapping[str, Span] = field(default_factory=dict)
    """For these words of the target, another one."""
    self_replace: Span = 0.4
    """The share of the steps in which self-attention is the source's."""

    def table(self, source: Words, target: Words) -> TokenMap:
        return token_map(
            source,
            target,
            mode=self.mode,
            words=self.words,
            weights=self.weights,
            normalised=self.normalised,
        )


@dataclass(frozen=True, eq=False)
class Edited:
    """Images of the source, and of each target beside it."""

    sources: list[Image.Image]  # one a seed
    targets: list[list[Image.Image]]  # for each seed, one a target
    latents: Tensor  # (seeds, 1 + targets, 4, h, w), scaled
    masks: Tensor | None
    """(seeds, targets, h, w), 1 where the last local blend let a target differ."""
    tables: list[TokenMap]  # one a target; none where no words are paired


def token_maps(pipe: Pipeline, source: str, targets: Sequence[str | Edit]) -> list[TokenMap]:
    """The table of each target, before any run: `print(token_maps(pipe, ...)[0])`.

    Raises:
        PromptError, SettingError: as `prompt_to_prompt`.
    """
    return tables_of(pipe.tokenizer, text_length(pipe), source, as_edits(targets))


def tables_of(
    tokenizer: CLIPTokenizer, length: int, source: str, edits: Sequence[Edit]
) -> list[TokenMap]:
    """The same without a model's weights; `length` is that of its prompts, 77 tokens."""
    before = read(tokenizer, source, length)
    return [edit.table(before, read(tokenizer, edit.prompt, length)) for edit in edits]


def text_length(pipe: Pipeline) -> int:
    """77"""
    return int(pipe.text_encoder.config.max_position_embeddings)


def as_edits(targets: Sequence[str | Edit]) -> list[Edit]:
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise SettingError(f"{len(targets)} targets are given", expected=f"1 to {MAX_TARGETS}")
    return [Edit(target) if isinstance(target, str) else target for target in targets]


def prompt_to_prompt(
    pipe: Pipeline,
    source: str,
    targets: Sequence[str | Edit],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    cross_sites: Sites = EVERYWHERE,
    self_sites: Sites = COARSE,
    blend: LocalBlend | None = None,
    batch: int | None = None,
    tile: int | None = None,
    progress: Progress = iter,
) -> Edited:
    """Make the image of a prompt, and beside it what other prompts make of the same image.

    Args:
        targets: prompts, or `Edit`s that say more; each starts from its seed's source.
        cross_sites, self_sites: the layers that are edited, see `Sites`.
        blend: keeps the targets to the source where the edit is not.
        batch: rows that go through the UNet together, sources and targets all counted; None:
            as many as fit into memory, see `Pipeline.plan`.
        tile: see `Pipeline.posterior`.

    Raises:
        PromptError: a word that is in none of the prompts where it should be.
        SettingError: a setting out of range, or prompts that cannot be paired word by word.
        ModelError: an inpainting model.
    """
    pipe.require_channels("prompt-to-prompt")
    pipe.require_denoising("prompt-to-prompt")
    check_sampling(steps, guidance, rescale)
    edits = as_edits(targets)
    tables = token_maps(pipe, source, edits)
    shape = pipe.latent_shape(height, width)
    timesteps = pipe.scheduler.timesteps(steps)
    injection = prepare(
        tables,
        edits,
        len(timesteps),
        (shape[1], shape[2]),
        cross_sites=cross_sites,
        self_sites=self_sites,
        blend=blend,
        device=pipe.device,
    )

    texts = [source, *(edit.prompt for edit in edits)]
    group = len(texts)
    noise = pipe.noise([seed for seed in seeds for _ in texts])
    plan = pipe.plan(len(noise), height, width, guidance=guidance, batch=batch, tile=tile)
    latents = edit_latents(
        pipe,
        noise.draw(shape) * timesteps.initial_scale,
        timesteps,
        pipe.encode_prompts(texts * len(seeds), negative),
        injection,
        guidance=guidance,
        rescale=rescale,
        noise=noise,
        batch=plan.batch,
        progress=progress,
    )
    masks = None if injection.masks is None else final_masks(injection.masks, latents)
    return edited(pipe, latents.view(len(seeds), group, *shape), masks, tables, plan.tile)


def edited(
    pipe: Pipeline,
    latents: Tensor,
    masks: Tensor | None,
    tables: list[TokenMap],
    tile: int | None,
) -> Edited:
    """The images of latents (seeds, 1 + targets, 4, h, w)."""
    group = latents.shape[1]
    images = to_pil(pipe.decode(latents.flatten(0, 1), sliced=True, tile=tile))
    groups = [images[first : first + group] for first in range(0, len(images), group)]
    return Edited(
        [some[0] for some in groups], [some[1:] for some in groups], latents, masks, tables
    )


def replayed(
    pipe: Pipeline,
    source: str,
    targets: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    injection_ratio: float = 1.0,
    most_bytes: int = MOST_BYTES,
    tile: int | None = None,
    progress: Progress = iter,
) -> Edited:
    """The same by the tutorial's variant: each target in two runs of its own, see `tutorial`.

    Raises:
        SettingError, ModelError: as `prompt_to_prompt`.
        NotEnoughMemoryError: the maps of a run would take more than `most_bytes`.
    """
    pipe.require_channels("prompt-to-prompt")
    pipe.require_denoising("prompt-to-prompt")
    check_sampling(steps, guidance, rescale)
    as_edits(targets)
    shape = pipe.latent_shape(height, width)
    timesteps = pipe.scheduler.timesteps(steps)
    plan = pipe.plan(1, height, width, guidance=guidance, tile=tile)
    before = pipe.encode_prompts([source], negative)
    rows = []
    for seed in seeds:
        for k, target in enumerate(targets):
            noises = pipe.noise([seed]), pipe.noise([seed])
            x_T, _ = (noise.draw(shape) * timesteps.initial_scale for noise in noises)
            made, changed = replay_latents(
                pipe,
                x_T,
                timesteps,
                before,
                pipe.encode_prompts([target], negative),
                guidance=guidance,
                rescale=rescale,
                injection_ratio=injection_ratio,
                noise=noises,
                most_bytes=most_bytes,
                progress=progress,
            )
            rows += [changed] if k else [made, changed]
    latents = torch.cat(rows).view(len(seeds), 1 + len(targets), *shape)
    return edited(pipe, latents, None, [], plan.tile)


def prepare(
    tables: Sequence[TokenMap],
    edits: Sequence[Edit],
    steps: int,
    grid: tuple[int, int],
    *,
    cross_sites: Sites = EVERYWHERE,
    self_sites: Sites = COARSE,
    blend: LocalBlend | None = None,
    device: torch.device | str = "cpu",
) -> Injection:
    """The control of a run of `steps` model evaluations on latents of `grid`."""
    targets = []
    for table, edit in zip(tables, edits, strict=True):
        cross = cross_schedule(table.target, steps, edit.cross_replace, edit.cross_replace_words)
        targets.append(Target(table, cross, steps_of(edit.self_replace, steps, "self_replace")))
    prompts = [tables[0].source, *(table.target for table in tables)]
    return Injection(
        targets,
        cross_sites=cross_sites,
        self_sites=self_sites,
        masks=None if blend is None else Masks(blend, prompts, steps, grid),
        device=device,
    )


def final_masks(masks: Masks, latents: Tensor) -> Tensor:
    """(B, 4, h, w) -> (seeds, targets, h, w)"""
    size = (latents.shape[2], latents.shape[3])
    flat = [
        masks.mask(image, size)[0, 0].cpu() for image in range(len(latents)) if image % masks.group
    ]
    return torch.stack(flat).view(-1, masks.group - 1, *size)
