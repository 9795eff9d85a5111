"""Concept erasure from prompts, or an image, to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.io.images import ImageLike, as_image, fit, fit_to_multiple, to_tensor
from pare.pipeline import Pipeline, Progress, check_sampling, one_per_seed
from pare.results import Images
from pare.runtime.calls import checked_keywords
from pare.runtime.validation import seed_list
from pare.schedulers import add_noise, start_index
from techniques.erasure.erasure_loop import (
    PRESETS,
    Concept,
    Gates,
    check_concepts,
    check_gates,
    erase_latents,
)

if TYPE_CHECKING:
    from pare.runtime.memory_plan import Plan

# The solver that suits the technique; `pare erase` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}
STRENGTH = 0.3  # the default on an image: enough to repaint objects, not the layout


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Erased(Images):
    """Images with concepts erased, one a seed, and where each concept was subtracted."""

    latents: Tensor  # (B, 4, h, w), scaled
    term_norms: Tensor
    """(steps, concepts, B, h, w), float32 on the CPU: the norm over the four channels of each
    concept's term w g (e - u); 0 during the warm-up."""
    plan: Plan  # the batch and tile that the run was made with


@checked_keywords
def erase(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    concepts: Sequence[Concept],
    seeds: int | Sequence[int] = (0,),
    *,
    image: ImageLike | None = None,
    strength: float = STRENGTH,
    steps: int = 25,
    guidance: float = 7.5,
    gates: Gates = PRESETS["sega"],
    rescale: float = 0.0,
    negative: str | Sequence[str] = "",
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
    tile: int | None = None,
    progress: Progress = iter,
) -> Erased:
    """Generate images, or repaint one, with concepts erased.

    From each image's own generator are drawn, in this order: its noise, then that of each step
    (if the scheduler wants any).

    Args:
        prompts: what the images show, one for all seeds, or one each.
        image: what to repaint; any size, returned at its own.  None starts from noise.
        strength: of the noise added to `image`, as in image-to-image.
        height, width: of the image that is worked on; multiples of 8.  None: what the model
            was trained at, or `image`'s own, at the next multiple.
        batch: images that go through the UNet together, each with a row for every concept;
            None: as many as fit into memory, see `Pipeline.plan`.
        tile: see `Pipeline.posterior`.

    Raises:
        SettingError: a setting out of range; no concept, or too many.
        ModelError: an inpainting model.
        NotEnoughMemoryError: not even one image fits, on a CPU.
    """
    pipe.require_channels("erasure")
    pipe.require_denoising("erasure")
    check_sampling(steps, guidance, rescale)
    check_concepts(concepts)
    check_gates(gates)
    seeds, noise = seed_list(seeds), pipe.noise(seeds)
    embeddings = pipe.encode_prompts(one_per_seed(prompts, seeds), negative)
    before, source = None, None
    if image is None:
        timesteps = pipe.timesteps(steps)
        shape = pipe.latent_shape(height, width)
    else:
        before = as_image(image)
        timesteps = pipe.timesteps(steps, start_index(steps, strength))
        if width is None or height is None:
            worked, restore = fit_to_multiple(before, pipe.vae.config.factor)
        else:
            worked, restore = fit(before, (width, height))
        source = pipe.encode(to_tensor(worked), tile=tile)
        shape = (source.shape[1], source.shape[2], source.shape[3])
    rows = 2 + len(concepts)  # of the UNet's batch, for each image
    pixels = (pipe.vae.config.factor * side for side in shape[1:])
    plan = pipe.plan(len(noise), *pixels, batch=batch, tile=tile, rows=rows)

    term_norms = torch.zeros(len(timesteps), len(concepts), len(noise), *shape[1:])
    parts = []
    for some in plan.batches:
        fresh = noise[some].draw(shape)
        if source is None:
            x_t = fresh * timesteps.initial_scale
        else:
            x_t = add_noise(source.expand_as(fresh), fresh, timesteps.levels[0].alpha_bar)

        def watch(i: int, terms: list[Tensor], some: slice = some) -> None:
            term_norms[i, :, some] = torch.stack([term.norm(dim=1) for term in terms]).cpu()

        parts.append(
            erase_latents(
                pipe, x_t, timesteps, embeddings[some], concepts,
                guidance=guidance, gates=gates, rescale=rescale, noise=noise[some],
                progress=progress, watch=watch,
            )
        )  # fmt: skip
    latents = torch.cat(parts)
    made = Images.from_decoded(pipe.decode(latents, sliced=True, tile=plan.tile), seeds).images
    return Erased(
        images=made if before is None else [restore(one) for one in made],
        seeds=tuple(seeds),
        latents=latents,
        before=before,
        term_norms=term_norms,
        plan=plan,
    )
