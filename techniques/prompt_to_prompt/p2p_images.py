"""Prompt-to-Prompt from prompts to images: the source, and beside it one for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.io.images import ImageLike, to_pil
from pare.pipeline import Pipeline, Progress, check_sampling
from pare.results import Images
from pare.runtime.calls import checked_keywords
from pare.runtime.validation import seed_list
from pare.text.words import Words, read
from techniques.blended.edit_canvas import as_tensor, mask_on_grid, prepare_mask
from techniques.prompt_to_prompt.attention_edit import (
    COARSE,
    EVERYWHERE,
    Injection,
    Sites,
    Span,
    TargetEdit,
    cross_schedule,
    steps_of,
)
from techniques.prompt_to_prompt.local_blend import LocalBlend, LocalBlendMasks, within_mask
from techniques.prompt_to_prompt.p2p_loop import edit_latents
from techniques.prompt_to_prompt.token_mapper import Mode, TokenMap, token_map

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTokenizer

    from pare.runtime.memory_plan import Plan

# The solver that suits the technique; `pare p2p` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}
MAX_TARGETS = 32


@dataclass(frozen=True)
class Edit:
    """One target: its prompt, and how its attention is computed from the source's."""

    prompt: str
    mode: Mode | None = None
    """"replace" word for word; "refine": new tokens keep their own weights; "own": nothing but
    `words`.  None is "replace" where both prompts have equally many words, else "refine"."""
    words: Mapping[str, str] = field(default_factory=dict)
    """A word of the source -> the word of the target that takes its place."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """A word of the target -> the factor of its attention weights."""
    normalised: bool = False
    """See `token_mapper.replaced`."""
    cross_replace: Span = 0.8
    """The fraction of the steps in which the table acts."""
    cross_replace_words: Mapping[str, Span] = field(default_factory=dict)
    """Another one for these words of the target."""
    self_replace: Span = 0.4
    """The fraction of the steps in which self-attention is the source's."""

    def table(self, source: Words, target: Words) -> TokenMap:
        return token_map(
            source,
            target,
            mode=self.mode,
            words=self.words,
            weights=self.weights,
            normalised=self.normalised,
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SourceAndTargets(Images):
    """For each seed the source's image, and then one of each target.

    `labels` say which is which: "source"; "target", or "target-1" and so on.
    """

    latents: Tensor  # (seeds * (1 + targets), 4, h, w), scaled
    masks: Tensor | None
    """(seeds, targets, h, w), 1 where the last local blend let a target differ."""
    tables: list[TokenMap]  # one a target
    plan: Plan  # the batch and tile that the run was made with

    @property
    def group(self) -> int:
        """Images of each seed."""
        return 1 + len(self.tables)

    @property
    def sources(self) -> list[Image.Image]:
        """The source's image of each seed."""
        return list(self.images[:: self.group])

    @property
    def targets(self) -> list[list[Image.Image]]:
        """For each seed, the image of each target."""
        starts = range(0, len(self), self.group)
        return [list(self.images[start + 1 : start + self.group]) for start in starts]


def labels_of(targets: int) -> list[str]:
    """What tells the images of one seed apart."""
    named = ["target"] if targets == 1 else [f"target-{k + 1}" for k in range(targets)]
    return ["source", *named]


def token_maps(pipe: Pipeline, source: str, targets: Sequence[str | Edit]) -> list[TokenMap]:
    """The table of each target, before any run: `print(token_maps(pipe, ...)[0])`.

    Raises:
        PromptError, SettingError: as `prompt_to_prompt`.
    """
    length = int(pipe.text_encoder.config.max_position_embeddings)
    return tables_of(pipe.tokenizer, length, source, as_edits(targets))


def tables_of(
    tokenizer: CLIPTokenizer, length: int, source: str, edits: Sequence[Edit]
) -> list[TokenMap]:
    """The same without a model's weights; `length` is that of its prompts, 77 tokens."""
    before = read(tokenizer, source, length)
    return [edit.table(before, read(tokenizer, edit.prompt, length)) for edit in edits]


def as_edits(targets: str | Sequence[str | Edit]) -> list[Edit]:
    targets = [targets] if isinstance(targets, str) else targets
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise SettingError(f"{len(targets)} targets are given", expected=f"1 to {MAX_TARGETS}")
    return [Edit(target) if isinstance(target, str) else target for target in targets]


@checked_keywords
def prompt_to_prompt(
    pipe: Pipeline,
    source: str,
    targets: str | Sequence[str | Edit],
    seeds: int | Sequence[int] = (0,),
    *,
    tables: Sequence[TokenMap] | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    cross_sites: Sites = EVERYWHERE,
    self_sites: Sites = COARSE,
    blend: LocalBlend | None = None,
    mask: ImageLike | None = None,
    batch: int | None = None,
    tile: int | None = None,
    progress: Progress = iter,
) -> SourceAndTargets:
    """Generate the image of a prompt, and beside it its edit by each of other prompts.

    Args:
        targets: prompts, or `Edit`s that say more; each starts from its seed's source.
        tables: as `token_maps` made them of the same source and targets; None makes them.
        cross_sites, self_sites: the layers that are edited, see `Sites`.
        blend: keeps the targets to the source where the edit is not.
        mask: keeps them to the source where it is black; of the images' shape.
        batch: rows that go through the UNet together, sources and targets all counted; None:
            as many as fit into memory, see `Pipeline.plan`.
        tile: see `Pipeline.posterior`.

    Warns:
        PairingWarning: see `token_map`.

    Raises:
        PromptError: a word that is in none of the prompts where it should be.
        SettingError: a setting out of range, or prompts that cannot be paired word by word.
        ImageError: a mask that marks nothing, or of another shape.
        ModelError: an inpainting model.
    """
    pipe.require_channels("prompt-to-prompt")
    pipe.require_denoising("prompt-to-prompt")
    check_sampling(steps, guidance, rescale)
    edits = as_edits(targets)
    tables = list(tables) if tables is not None else token_maps(pipe, source, edits)
    seeds, shape = seed_list(seeds), pipe.latent_shape(height, width)
    timesteps = pipe.timesteps(steps)
    if mask is not None:
        blend = within_mask(blend, mask_of_latents(pipe, mask, (shape[1], shape[2])))
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
    each = [seed for seed in seeds for _ in texts]
    noise = pipe.noise(each)
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
    decoded = pipe.decode(latents, sliced=True, tile=plan.tile)
    return SourceAndTargets(
        images=to_pil(decoded),
        seeds=each,
        labels=labels_of(len(edits)) * len(seeds),
        decoded=decoded,
        latents=latents,
        masks=None if injection.masks is None else injection.masks.final_masks(latents),
        tables=tables,
        plan=plan,
    )


def mask_of_latents(pipe: Pipeline, mask: ImageLike, grid: tuple[int, int]) -> Tensor:
    """A mask on the latent grid (1, 1, h, w): every latent pixel that it touches may change."""
    factor = pipe.vae.config.factor
    fitted = prepare_mask(mask, (factor * grid[1], factor * grid[0]))
    return mask_on_grid(as_tensor(fitted), factor, cover=True)


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
    """The attention control of a run of `steps` model evaluations on latents of `grid`."""
    targets = []
    for table, edit in zip(tables, edits, strict=True):
        cross = cross_schedule(table.target, steps, edit.cross_replace, edit.cross_replace_words)
        self_steps = steps_of(edit.self_replace, steps, "self_replace")
        targets.append(TargetEdit(table, cross, self_steps))
    prompts = [tables[0].source, *(table.target for table in tables)]
    return Injection(
        targets,
        cross_sites=cross_sites,
        self_sites=self_sites,
        masks=None if blend is None else LocalBlendMasks(blend, prompts, steps, grid),
        device=device,
    )
