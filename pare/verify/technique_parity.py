"""The techniques of `pare verify`, each against the published loop on diffusers' components.

Latents are compared, and the images that each side's VAE decodes from them.  A technique
whose steps are smooth must give the same image within 1 of 255; one that amplifies rounding
must reach a PSNR, and null-text inversion also the same losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pare.io.images import to_pil
from pare.noise import Noise
from pare.pipeline import Pipeline
from pare.schedulers import add_noise, start_index
from pare.verify import diffusers_side
from pare.verify.model_pair import GUIDANCE, PROMPT, SEED, ModelPair, solver_options
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import Bound, Compared, Distance, ParityRow, Skipped
from pare.verify.published import published_erasure, published_inversion, published_p2p
from techniques import prompt_to_prompt as p2p
from techniques.erasure import PRESETS, Concept, erase_latents
from techniques.inversion import ddim_inversion, null_text, sample_latents

ONE_LEVEL = Bound("levels", 1)
FEW_FLIPS = Bound("psnr", 45)  # dB; where rounding flips a gate, that latent changes
TRAINED = Bound("psnr", 35)  # dB, between two optimisations that Adam lets diverge

TARGET, LONGER = "a sunny road in the forest", "a snowy road in the forest with a red car"
CONCEPT = "streetlights"


def row_of(
    models: ModelPair,
    group: str,
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    bound: Bound = ONE_LEVEL,
    note: str = "",
) -> ParityRow:
    """Compare latents (B, 4, h, w) and what each side's VAE makes of them."""
    timing = in_turns(ours, theirs, models.device, pairs=1)
    our_images = to_pil(models.pipe.decode(timing.ours))
    decoded = diffusers_side.decode(models.theirs, timing.theirs)
    their_images = diffusers_side.to_8_bits(models.theirs, decoded)
    apart = np.abs(stacked(our_images) - stacked(their_images))
    error = float(np.square(apart / 255).mean())
    return ParityRow(
        group,
        name,
        Distance.between(timing.ours, timing.theirs),
        bound,
        levels=int(apart.max()),
        time_ratio=timing.ratio,
        note=note,
        psnr=-10 * math.log10(error) if error else math.inf,
    )


def stacked(images: list[Any]) -> Any:
    return np.stack([np.asarray(image) for image in images]).astype(np.float64)


def not_compared(models: ModelPair) -> str | None:
    """Why the techniques are not compared on this model, if they are not."""
    if models.inpaints:
        return "an inpainting model, whose UNet takes a mask as well"
    if models.exact is not None:
        return "compared in float32"
    return None


def scheduler_for(models: ModelPair, name: str, *, karras: bool = False, **changes: Any) -> Any:
    config = {**models.pipe.scheduler_config, **changes}
    return diffusers_side.build_scheduler(name, config, karras=karras)


def texts_of(models: ModelPair, *prompts: str) -> list[Tensor]:
    """diffusers' embeddings, (1, 77, C) each."""
    return [diffusers_side.embeddings(models.theirs, prompt, "")[0] for prompt in prompts]


def unit(models: ModelPair) -> Tensor:
    return Noise([SEED], models.device).draw(models.latent_shape)


# --- erasure ------------------------------------------------------------------------------


def erase_rows(models: ModelPair) -> Iterator[Compared]:
    """Image-to-image with negative guidance for a concept, ungated and with published gates."""
    reason = not_compared(models)
    if reason:
        yield Skipped("erase", reason)
        return
    ungated = published_erasure.tutorial(GUIDANCE, [5.0])
    for name, karras in (("ddim", False), ("dpm++2m", True)):
        label = "ungated, " + name + (" with Karras sigmas" if karras else "")
        yield erase_row(models, label, name, karras, PRESETS["ungated"], lambda: ungated, ONE_LEVEL)
    early = {"warm_up": 1}  # few steps: those of the presets would end before it is over
    for preset, combine in (
        ("safe-strong", partial(published_erasure.safe, 5.0, 2000, 0.025, 1, 0.5, 0.7)),
        ("sega", partial(published_erasure.sega, 5.0, [5.0], 0.9, 1, 0.1, 0.4)),
    ):
        gates = type(PRESETS[preset])(**{**vars(PRESETS[preset]), **early})
        yield erase_row(models, preset, "dpm++2m", True, gates, combine, FEW_FLIPS, guidance=5.0)


def erase_row(
    models: ModelPair,
    label: str,
    solver: str,
    karras: bool,
    gates: Any,
    combine: Callable[[], published_erasure.Combine],
    bound: Bound,
    *,
    guidance: float = GUIDANCE,
) -> Compared:
    reason = diffusers_side.known_deviation(solver, models.pipe.scheduler_config, karras=karras)
    if reason:
        return Skipped(f"erase, {label}", reason)
    pipe = models.pipe.with_scheduler(solver, **solver_options(solver, karras))
    start = start_index(models.steps, 0.7)
    timesteps = pipe.scheduler.timesteps(models.steps, start)
    source, noise = diffusers_side.encode(models.theirs, models.image), unit(models)

    def ours() -> Tensor:
        return erase_latents(
            pipe,
            add_noise(source, noise, timesteps.levels[0].alpha_bar),
            timesteps,
            pipe.encode_prompts([PROMPT]),
            [Concept(CONCEPT, 5.0)],
            guidance=guidance,
            gates=gates,
        )

    def theirs() -> Tensor:
        return published_erasure.reference_erase(
            models.theirs.unet,
            scheduler_for(models, solver, karras=karras),
            source,
            texts_of(models, "", PROMPT, CONCEPT),
            noise,
            steps=models.steps,
            start=start,
            combine=combine(),
        )

    return row_of(models, "erase", label, ours, theirs, bound)


# --- inversion ----------------------------------------------------------------------------


def invert_rows(models: ModelPair) -> Iterator[Compared]:
    """DDIM inversion and reconstruction; null-text by its losses and its reconstruction."""
    reason = not_compared(models) or diffusers_side.known_deviation(
        "ddim-inverse", models.pipe.scheduler_config
    )
    if reason:
        yield Skipped("invert", reason)
        return
    pipe = models.pipe.with_scheduler("ddim")
    fixed = {"set_alpha_to_one": False, "clip_sample": False}
    inverse = partial(scheduler_for, models, "ddim-inverse", **fixed)
    forward = partial(scheduler_for, models, "ddim", **fixed)
    source = diffusers_side.encode(models.theirs, models.image)
    prompts, (cond,) = pipe.encode_prompts([PROMPT]), texts_of(models, PROMPT)
    unet, steps = models.theirs.unet, models.steps

    def their_noise() -> Tensor:
        return published_inversion.reference_invert(unet, inverse(), source, cond, steps=steps)[0]

    yield row_of(
        models,
        "invert",
        "ddim, the noise",
        lambda: ddim_inversion.invert(pipe, source, prompts, steps).x_T,
        their_noise,
    )

    def again() -> Tensor:
        trace = ddim_inversion.invert(pipe, source, prompts, steps)
        return sample_latents(pipe, trace, prompts, 1.0)

    def their_again() -> Tensor:
        return published_inversion.reference_sample(
            unet, forward(), their_noise(), cond, steps=steps
        )[0]

    yield row_of(models, "invert", "ddim, there and back", again, their_again)
    yield from null_text_rows(models, pipe, source, forward)


def null_text_rows(
    models: ModelPair, pipe: Pipeline, source: Tensor, forward: Callable[[], Any]
) -> Iterator[Compared]:
    steps, inner = min(4, models.steps), 5
    prompts = pipe.encode_prompts([PROMPT])
    uncond, cond = texts_of(models, "", PROMPT)
    pivot = ddim_inversion.invert(pipe, source, prompts, steps).latents
    our_losses: list[float] = []
    their_losses: list[float] = []

    def ours() -> Tensor:
        trace = null_text.invert(
            pipe, source, prompts, steps, GUIDANCE, inner_steps=inner,
            watch=lambda i, losses: our_losses.append(losses[-1]),
        )  # fmt: skip
        return sample_latents(pipe, trace, prompts, GUIDANCE)

    def theirs() -> Tensor:
        models.theirs.unet.requires_grad_(False)  # the embedding alone is trained
        with torch.enable_grad():
            learnt = published_inversion.reference_null_text(
                models.theirs.unet, forward(), list(pivot[:, None]), uncond, cond,
                guidance=GUIDANCE, inner_steps=inner, losses=their_losses,
            )  # fmt: skip
        return published_inversion.reference_guided(
            models.theirs.unet, forward(), pivot[:1], learnt, cond, guidance=GUIDANCE
        )

    yield row_of(models, "invert", "null-text, the image", ours, theirs, TRAINED)
    reached = Distance.between(torch.tensor(our_losses), torch.tensor(their_losses))
    note = f"last losses {our_losses[-1]:.2e} and {their_losses[-1]:.2e}"
    yield ParityRow("invert", "null-text, the losses", reached, Bound("relative", 0.02), note=note)


# --- prompt-to-prompt ---------------------------------------------------------------------

Edit = Callable[[Tensor, Tensor], Tensor]
"""The source's and the target's attention weights -> those that are used."""


def p2p_rows(models: ModelPair) -> Iterator[Compared]:
    """Replacement, refinement and reweighting of words in lockstep; and the tutorial's replay."""
    reason = not_compared(models)
    if reason:
        yield Skipped("p2p", reason)
        return
    tokenizer = models.theirs.tokenizer
    mapper = published_p2p.replacement_mapper(
        [
            (token_count(tokenizer, old), token_count(tokenizer, new))
            for old, new in zip(PROMPT.split(), TARGET.split(), strict=True)
        ]
    ).to(models.device)
    places, alphas = (
        values.to(models.device)
        for values in published_p2p.refinement_mapper(
            tokenizer(PROMPT).input_ids, tokenizer(LONGER).input_ids
        )
    )
    factors = torch.ones(77, device=models.device)
    first = 1 + token_count(tokenizer, PROMPT.split()[0])
    factors[first : first + token_count(tokenizer, PROMPT.split()[1])] = 2.0  # snowy

    def replace(base: Tensor, own: Tensor) -> Tensor:
        return base @ mapper

    def refine(base: Tensor, own: Tensor) -> Tensor:
        return base[:, :, places] * alphas + own * (1 - alphas)

    def reweight(base: Tensor, own: Tensor) -> Tensor:
        return base * factors

    twice = p2p.Edit(PROMPT, weights={PROMPT.split()[1]: 2.0})
    for label, solver, edit, combine in (
        ("replace, ddim", "ddim", p2p.Edit(TARGET, "replace"), replace),
        ("replace, euler", "euler", p2p.Edit(TARGET, "replace"), replace),
        ("refine, dpm++2m", "dpm++2m", p2p.Edit(LONGER, "refine"), refine),
        ("reweight, ddim", "ddim", twice, reweight),
    ):
        reason = diffusers_side.known_deviation(solver, models.pipe.scheduler_config)
        if reason:
            yield Skipped(f"p2p, {label}", reason)
        else:
            yield p2p_row(models, label, solver, edit, combine)

    pipe = models.pipe.with_scheduler("ddim")

    def replayed() -> Tensor:
        timesteps = pipe.scheduler.timesteps(models.steps)
        made = p2p.replay_latents(
            pipe, unit(models) * timesteps.initial_scale, timesteps,
            pipe.encode_prompts([PROMPT]), pipe.encode_prompts([TARGET]), guidance=GUIDANCE,
        )  # fmt: skip
        return torch.cat(made)

    def their_replay() -> Tensor:
        source, target, uncond = texts_of(models, PROMPT, TARGET, "")
        made = published_p2p.reference_replay(
            models.theirs.unet,
            partial(scheduler_for, models, "ddim"),
            unit(models),
            source,
            target,
            uncond,
            steps=models.steps,
            guidance=GUIDANCE,
            injection_ratio=1.0,
        )
        return torch.cat(made)

    reason = diffusers_side.known_deviation("ddim", models.pipe.scheduler_config)
    if reason:
        yield Skipped("p2p, replay", reason)
    else:
        yield row_of(models, "p2p", "replay, ddim", replayed, their_replay)


def p2p_row(models: ModelPair, label: str, solver: str, edit: Any, combine: Edit) -> ParityRow:
    pipe = models.pipe.with_scheduler(solver, **solver_options(solver, karras=False))
    steps = models.steps
    _, h, w = models.latent_shape
    cross = torch.zeros(steps + 1, 1, 77, device=models.device)
    cross[: round(edit.cross_replace * steps)] = 1

    def controller(layers: int) -> published_p2p.Controller:
        return published_p2p.Controller(
            [combine],
            layers,
            cross,
            round(edit.self_replace * steps),
            self_limit=math.ceil(h / 2) * math.ceil(w / 2),
        )

    def ours() -> Tensor:
        made = p2p.prompt_to_prompt(pipe, PROMPT, [edit], [SEED], steps=steps, guidance=GUIDANCE)
        return made.latents

    def theirs() -> Tensor:
        source, target, uncond = texts_of(models, PROMPT, edit.prompt, "")
        return published_p2p.reference_p2p(
            models.theirs.unet,
            scheduler_for(models, solver),
            unit(models),
            [source, target],
            uncond,
            controller,
            steps=steps,
            guidance=GUIDANCE,
        )

    return row_of(models, "p2p", label, ours, theirs)


def token_count(tokenizer: Any, word: str) -> int:
    return len(tokenizer(word, add_special_tokens=False).input_ids)
