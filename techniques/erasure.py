"""Concept erasure: an image without what nobody asked for, by pushing away from it.

Guidance pulls towards the prompt.  Erasure adds pushes away from concepts:

    eps = u + s (c - u) - sum_i w_i (e_i - u)

u, c and e_i are the model's answers to nothing, to the prompt and to concept i, all from one
batch.  A negative w_i pulls instead: the formula is that of composable diffusion
(arXiv:2206.01714, eq. 11) with its signs shown.

Ungated, the push acts on every pixel at every step, also where nothing of the concept is to
be seen, and with several concepts it outweighs the prompt: 5 x 10 against 7.5 tears an image
apart.  `Gates` let it act where and when it has a reason to.

`erase_latents` is the loop with the formula, `gate` the gates; `erase` goes from words
and images to images around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, Control, Site
from pare.errors import SettingError
from pare.guidance import guide
from pare.io.images import fit, fit_to_multiple, to_pil, to_tensor
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress, check_sampling, one_per_seed
from pare.runtime import validation
from pare.runtime.memory_plan import Plan
from pare.schedulers import (
    History,
    NoiseLevel,
    Timesteps,
    add_noise,
    start_index,
)
from pare.text.text_encoder import PromptEmbeddings, words_of

if TYPE_CHECKING:
    from PIL import Image

# The solver that suits the technique; `pare erase` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}
MAX_CONCEPTS = 32
MAX_WEIGHT = 1000.0
STRENGTH = 0.3  # on an image, if nobody says otherwise: enough to repaint things, not places


# --- what to push away from, and when ------------------------------------------------------


@dataclass(frozen=True)
class Concept:
    """Something that is not to be in the image, in words."""

    prompt: str
    weight: float = 10.0
    """How hard it is pushed away; below 0 it is asked for instead."""


@dataclass(frozen=True)
class Gates:
    """Where and when a push acts.  The defaults let everything through."""

    warm_up: int = 0
    """Steps before the first push.  The early steps settle the layout, which is to stay."""
    threshold: float | None = None
    """Push only where c - e is below this: where the prompt does not lead away from the
    concept by itself (arXiv:2211.05105, eq. 6)."""
    sensitivity: float | None = None
    """Weigh each push by clamp(|c - e| x this, max 1): little where prompt and concept say
    the same, as the paper's code does (its eq. 6 has a maximum where the code has this)."""
    quantile: float | None = None
    """In each channel, push only at the pixels where |e - u| is above this quantile: where
    the concept has most to say (arXiv:2301.12247, eq. 5)."""
    attention: float | None = None
    """Push only where the cross-attention of the concept's words is above this quantile
    (arXiv:2311.16711, eq. 10)."""
    momentum: float = 0.0
    """How much of the earlier steps' pushes is added (arXiv:2211.05105, eq. 7)."""
    memory: float = 0.0
    """How much of the momentum stays from step to step (there beta, eq. 8)."""
    cap: float | None = None
    """The sum of all pushes is at most this times as long as the prompt's pull s (c - u)."""


# Published settings, by name.  safe-*: arXiv:2211.05105, table 1 ("Hyp-..."); there the push
# is weighed by guidance, and all unwanted concepts stand in one prompt.
PRESETS: Mapping[str, Gates] = {
    "ungated": Gates(),
    "safe-medium": Gates(10, threshold=0.01, sensitivity=1000, momentum=0.3, memory=0.4),
    "safe-strong": Gates(7, threshold=0.025, sensitivity=2000, momentum=0.5, memory=0.7),
    "safe-max": Gates(0, threshold=1.0, sensitivity=5000, momentum=0.5, memory=0.7),
    "sega": Gates(10, quantile=0.9, momentum=0.1, memory=0.4),
    "ledits++": Gates(2, quantile=0.9, attention=0.75),
}


def usual_weight(preset: str, guidance: float) -> float:
    """The weight of a concept in what `preset` is from: 10 in the tutorial's formula, the scale
    of guidance in Safe Latent Diffusion, 5 in SEGA's and LEDITS++'s code."""
    if preset == "ungated":
        return Concept.weight
    return guidance if preset.startswith("safe") else 5.0


def gate(
    direction: Tensor, towards: Tensor, gates: Gates, attention: Tensor | None = None
) -> Tensor:
    """How much of a push is let through at each place, in [0, 1], (B, 4, h, w).

    Args:
        direction: e - u, from nothing to the concept, in units of eps, (B, 4, h, w).
        towards: c - e, from the concept to the prompt.
        attention: how much each place looks at the concept's words, (B, 1, h, w).
    """
    through = torch.ones_like(direction)
    if gates.sensitivity is not None:
        through = through * (towards.abs() * gates.sensitivity).clamp(max=1.0)
    if gates.threshold is not None:
        through = through * (towards < gates.threshold)
    if gates.quantile is not None:
        size = direction.abs()
        through = through * (size >= quantile(size, gates.quantile))
    if gates.attention is not None and attention is not None:
        through = through * (attention >= quantile(attention, gates.attention))
    return through


def quantile(values: Tensor, share: float) -> Tensor:
    """In each channel of each image, the value that `share` of the pixels stay below.

    (B, C, h, w) -> (B, C, 1, 1)
    """
    # In float32: torch has no quantile of half precision, and ranks need the digits.
    return torch.quantile(values.float().flatten(2), share, dim=2)[..., None, None]


# --- the algorithm -------------------------------------------------------------------------


@torch.no_grad()
def erase_latents(
    pipe: Pipeline,
    x_t: Tensor,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    concepts: Sequence[Concept],
    *,
    guidance: float,
    gates: Gates = PRESETS["ungated"],
    rescale: float = 0.0,
    noise: Noise | None = None,
    progress: Progress = iter,
    watch: Callable[[int, list[Tensor]], None] | None = None,
) -> Tensor:
    """x_t at the timestep schedule's first level -> latents at its last, both (B, 4, h, w).

    Args:
        watch: is given the step index and, for each concept, what was subtracted from the
            guided eps on its account, (B, 4, h, w).
    """
    texts = branch_texts(pipe, prompts, concepts)
    looks = WhereLookedAt(pipe, concepts) if gates.attention is not None else None
    momentum: Tensor | float = 0.0
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        outputs = pipe.branch_outputs(x_t, level, texts, control=looks, step=i)
        uncond, cond, *unwanted = outputs.values()

        # The gates' thresholds are published for eps: other outputs are brought to its scale.
        to_eps = eps_per_output(level, pipe.scheduler.prediction_type)
        pushes = []
        for k, (concept, answer) in enumerate(zip(concepts, unwanted, strict=True)):
            attention = looks.at(k, x_t) if looks else None
            direction = answer - uncond
            through = gate(direction * to_eps, (cond - answer) * to_eps, gates, attention)
            pushes.append(concept.weight * through * direction)

        total = torch.stack(pushes).sum(0) + gates.momentum * momentum
        momentum = gates.memory * momentum + (1 - gates.memory) * total
        if gates.cap is not None:
            total = capped(total, guidance * (cond - uncond), gates.cap)

        output = guide(uncond, cond, guidance, rescale)
        if i >= gates.warm_up:
            output = output - total
            if watch:
                watch(i, pushes)
        prediction = pipe.interpret(output, x_t, level)
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def branch_texts(
    pipe: Pipeline, prompts: PromptEmbeddings, concepts: Sequence[Concept]
) -> dict[str, Tensor]:
    """(B, 77, C) for each branch of the batch, in its order: uncond, cond, one a concept."""
    texts = {"uncond": prompts.uncond, "cond": prompts.cond}
    for k, concept in enumerate(concepts):
        texts[branch(k)] = pipe.encode_prompts([concept.prompt] * len(prompts)).cond
    return texts


def branch(k: int) -> str:
    """The name of concept `k`'s rows in the batch."""
    return f"concept {k}"


def eps_per_output(level: NoiseLevel, prediction_type: str) -> float:
    """By how much eps differs where the model's output differs by 1, for the same x_t."""
    if prediction_type == "v_prediction":
        return level.signal_rate  # eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
    if prediction_type == "sample":
        return level.signal_rate / level.noise_rate
    return 1.0


def capped(total: Tensor, pull: Tensor, cap: float) -> Tensor:
    """`total`, no longer in each image than `cap` times `pull`; all (B, 4, h, w)."""
    dims = tuple(range(1, total.ndim))
    length = torch.linalg.vector_norm(total, dim=dims, keepdim=True)
    longest = cap * torch.linalg.vector_norm(pull, dim=dims, keepdim=True)
    return total * (longest / length.clamp(min=1e-12)).clamp(max=1.0)


class WhereLookedAt(Control):
    """How much each place looks at each concept's words, over one step's cross-attention.

    Of the concepts' own rows of the batch, the mean over the heads and the words, and over
    all layers whose grid is neither the coarsest nor, in a large image, the finest: there
    attention knows where things are (arXiv:2208.01626, section 3; LEDITS++ takes 16 x 16).
    """

    FINEST = 32  # cells a side

    def __init__(self, pipe: Pipeline, concepts: Sequence[Concept]) -> None:
        room = pipe.text_encoder.config.max_position_embeddings - 2
        self.words = [
            slice(1, 1 + max(1, len(words_of(pipe.tokenizer, concept.prompt, room))))
            for concept in concepts
        ]
        self.coarsest = len(pipe.unet.config.block_out_channels) - 1
        self.maps: dict[tuple[int, int], list[Tensor]] = {}

    def observes(self, site: Site, step: int) -> bool:
        return site.kind == "cross" and site.stage < self.coarsest

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        here = call.rows[row]
        if not here.branch.startswith("concept") or max(call.height, call.width) > self.FINEST:
            return
        k = int(here.branch.removeprefix("concept "))
        share = weights[:, :, self.words[k]].sum(2).mean(0)
        self.maps.setdefault((k, here.prompt), []).append(share.view(1, 1, call.height, call.width))

    def at(self, k: int, x_t: Tensor) -> Tensor:
        """The maps of concept `k` since the last look, at the latents' size: (B, 1, h, w)."""
        size = (x_t.shape[2], x_t.shape[3])
        rows = []
        for image in range(len(x_t)):
            maps = self.maps.pop((k, image))
            grown = [F.interpolate(m, size, mode="bilinear", antialias=False) for m in maps]
            rows.append(torch.stack(grown).mean(0))
        return torch.cat(rows)


# --- from words, or an image, to images -------------------------------------------------


@dataclass(frozen=True)
class Erased:
    """Images without the concepts, and where each was pushed away."""

    images: list[Image.Image]  # one a seed, RGB, of the input's size if there was one
    latents: Tensor  # (B, 4, h, w), scaled
    pushes: Tensor
    """(steps, concepts, B, h, w), float32 on the CPU: the length, over the four channels, of
    what was subtracted from eps; 0 before the warm-up has passed."""


def erase(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    concepts: Sequence[Concept],
    seeds: Sequence[int] = (0,),
    *,
    image: Image.Image | None = None,
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
    """Make images, or repaint one, while pushing away from concepts.

    From each image's own generator come, in this order: its noise, then that of each step
    (if the scheduler wants any).

    Args:
        prompts: what the images show, one for all seeds, or one each.
        image: what to repaint; any size, handed back at its own.  None starts from noise.
        strength: how much of the timestep schedule runs on `image`.
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
    noise = pipe.noise(seeds)
    embeddings = pipe.encode_prompts(one_per_seed(prompts, seeds), negative)
    if image is None:
        timesteps = pipe.timesteps(steps)
        shape, source = pipe.latent_shape(height, width), None
    else:
        timesteps = pipe.timesteps(steps, start_index(steps, strength))
        if width is None or height is None:
            worked, restore = fit_to_multiple(image.convert("RGB"), pipe.vae.config.factor)
        else:
            worked, restore = fit(image.convert("RGB"), (width, height))
        source = pipe.encode(to_tensor(worked), tile=tile)
        shape = (source.shape[1], source.shape[2], source.shape[3])
    plan = plan_erasure(pipe, len(noise), len(concepts), shape, batch=batch, tile=tile)
    pushes = torch.zeros(len(timesteps), len(concepts), len(noise), *shape[1:])
    parts = []
    for some in plan.batches:
        fresh = noise[some].draw(shape)
        if source is None:
            x_t = fresh * timesteps.initial_scale
        else:
            first = timesteps.levels[0]
            x_t = add_noise(source.expand_as(fresh), fresh, first.alpha_bar)

        def watch(i: int, pushed: list[Tensor], some: slice = some) -> None:
            pushes[i, :, some] = torch.stack([push.norm(dim=1) for push in pushed]).cpu()

        parts.append(
            erase_latents(
                pipe,
                x_t,
                timesteps,
                embeddings[some],
                concepts,
                guidance=guidance,
                gates=gates,
                rescale=rescale,
                noise=noise[some],
                progress=progress,
                watch=watch,
            )
        )
    latents = torch.cat(parts)
    images = to_pil(pipe.decode(latents, sliced=True, tile=plan.tile))
    if image is not None:
        images = [restore(made) for made in images]
    return Erased(images, latents, pushes)


def plan_erasure(
    pipe: Pipeline,
    images: int,
    concepts: int,
    latent_shape: Sequence[int],
    *,
    batch: int | None = None,
    tile: int | None = None,
) -> Plan:
    """How a run fits into memory, each image being a row for "", its prompt and each concept.

    Raises:
        SettingError, NotEnoughMemoryError: as `Pipeline.plan`.
    """
    height, width = (pipe.vae.config.factor * side for side in latent_shape[1:])
    return pipe.plan(images, height, width, batch=batch, tile=tile, rows=2 + concepts)


def check_concepts(concepts: Sequence[Concept]) -> None:
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise SettingError(f"{len(concepts)} concepts are given", expected=f"1 to {MAX_CONCEPTS}")
    for concept in concepts:
        validation.check_prompt(concept.prompt)
        if not concept.prompt.strip():
            raise SettingError("a concept is empty", expected="words, for example 'streetlights'")
        what = f"the weight of {concept.prompt!r}"
        validation.check_number(what, concept.weight, -MAX_WEIGHT, MAX_WEIGHT)


def check_gates(gates: Gates) -> None:
    if isinstance(gates.warm_up, bool) or not 0 <= gates.warm_up <= 1000:
        raise SettingError(f"warm_up is {gates.warm_up!r}", expected="steps, 0 to 1000")
    bounds = {
        "threshold": (-1000.0, 1000.0), "sensitivity": (0.0, 1e6), "quantile": (0.0, 1.0),
        "attention": (0.0, 1.0), "momentum": (0.0, 1.0), "memory": (0.0, 1.0),
        "cap": (0.0, 1000.0),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        value = getattr(gates, name)
        if value is not None:
            validation.check_number(name, value, low, high)
