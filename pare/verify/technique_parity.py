"""The techniques of `pare verify`, each against the published loop on diffusers' components.

Latents are compared, and the images that each side's own VAE makes of them.  A technique
whose steps are smooth has to give the same image within 1 of 255; one that enlarges rounding
is held by PSNR, and null-text inversion by the loss that it reaches, too.
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
from pare.verify.paired_timing import in_turns
from pare.verify.parity import GUIDANCE, PROMPT, SEED, Found, Subject, solver_options
from pare.verify.parity_table import Bound, Distance, Row
from pare.verify.published import published_erasure, published_inversion, published_p2p

ONE_LEVEL = Bound("levels", 1)
FEW_FLIPS = Bound("psnr", 45)  # dB; a gate that falls on the other side changes its own place
TRAINED = Bound("psnr", 35)  # dB, between two trainings that Adam has taken apart

TARGET, LONGER = "a sunny road in the forest", "a snowy road in the forest with a red car"
CONCEPT = "streetlights"


def row_of(
    subject: Subject,
    group: str,
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    bound: Bound = ONE_LEVEL,
    note: str = "",
) -> Row:
    """Compare latents (B, 4, h, w) and what each side's VAE makes of them."""
    duel = in_turns(ours, theirs, subject.device, pairs=1)
    our_images = to_pil(subject.pipe.decode(duel.ours))
    decoded = diffusers_side.decode(subject.theirs, duel.theirs)
    their_images = diffusers_side.to_8_bits(subject.theirs, decoded)
    apart = np.abs(stacked(our_images) - stacked(their_images))
    error = float(np.square(apart / 255).mean())
    return Row(
        group,
        name,
        Distance.between(duel.ours, duel.theirs),
        bound,
        levels=int(apart.max()),
        time_ratio=duel.ratio,
        note=note,
        psnr=-10 * math.log10(error) if error else math.inf,
    )


def stacked(images: list[Any]) -> Any:
    return np.stack([np.asarray(image) for image in images]).astype(np.float64)


def not_compared(subject: Subject) -> str | None:
    """Why the techniques are not compared on this model, if they are not."""
    if subject.inpaints:
        return "an inpainting model, whose UNet wants a mask as well"
    if subject.exact is not None:
        return "compared in float32"
    return None


def scheduler_for(subject: Subject, name: str, *, karras: bool = False, **changes: Any) -> Any:
    config = {**subject.pipe.scheduler_config, **changes}
    return diffusers_side.build_scheduler(name, config, karras=karras)


def texts_of(subject: Subject, *prompts: str) -> list[Tensor]:
    """diffusers' embeddings, (1, 77, C) each."""
    return [diffusers_side.embeddings(subject.theirs, prompt, "")[0] for prompt in prompts]


def unit(subject: Subject) -> Tensor:
    return Noise([SEED], subject.device).draw(subject.latent_shape)


# --- erasure ------------------------------------------------------------------------------


def erase_rows(subject: Subject) -> Iterator[Found]:
    """An image repainted while a concept is pushed away, ungated and with published gates."""
    from techniques.erasure import PRESETS

    reason = not_compared(subject)
    if reason:
        yield "erase", reason
        return
    ungated = published_erasure.tutorial(GUIDANCE, [5.0])
    for name, karras in (("ddim", False), ("dpm++2m", True)):
        label = "ungated, " + name + (" with Karras sigmas" if karras else "")
        yield erase_row(
            subject, label, name, karras, PRESETS["ungated"], lambda: ungated, ONE_LEVEL
        )
    early = {"warm_up": 1}  # few steps: those of the presets would end before it is over
    for preset, combine in (
        ("safe-strong", partial(published_erasure.safe, 5.0, 2000, 0.025, 1, 0.5, 0.7)),
        ("sega", partial(published_erasure.sega, 5.0, [5.0], 0.9, 1, 0.1, 0.4)),
    ):
        gates = type(PRESETS[preset])(**{**vars(PRESETS[preset]), **early})
        yield erase_row(subject, preset, "dpm++2m", True, gates, combine, FEW_FLIPS, guidance=5.0)


def erase_row(
    subject: Subject,
    label: str,
    solver: str,
    karras: bool,
    gates: Any,
    combine: Callable[[], published_erasure.Combine],
    bound: Bound,
    *,
    guidance: float = GUIDANCE,
) -> Found:
    from techniques.erasure import Concept, erase_latents

    reason = diffusers_side.known_deviation(solver, subject.pipe.scheduler_config, karras=karras)
    if reason:
        return f"erase, {label}", reason
    pipe = subject.pipe.with_scheduler(solver, **solver_options(solver, karras))
    start = start_index(subject.steps, 0.7)
    timesteps = pipe.scheduler.timesteps(subject.steps, start)
    source, noise = diffusers_side.encode(subject.theirs, subject.image), unit(subject)

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
            subject.theirs.unet,
            scheduler_for(subject, solver, karras=karras),
            source,
            texts_of(subject, "", PROMPT, CONCEPT),
            noise,
            steps=subject.steps,
            start=start,
            combine=combine(),
        )

    return row_of(subject, "erase", label, ours, theirs, bound)


# --- inversion ----------------------------------------------------------------------------


def invert_rows(subject: Subject) -> Iterator[Found]:
    """DDIM to the noise and back; null-text by its losses and by the image it gives back."""
    from techniques.inversion import ddim

    reason = not_compared(subject) or diffusers_side.known_deviation(
        "ddim-inverse", subject.pipe.scheduler_config
    )
    if reason:
        yield "invert", reason
        return
    pipe = subject.pipe.with_scheduler("ddim")
    fixed = {"set_alpha_to_one": False, "clip_sample": False}
    inverse = partial(scheduler_for, subject, "ddim-inverse", **fixed)
    forward = partial(scheduler_for, subject, "ddim", **fixed)
    source = diffusers_side.encode(subject.theirs, subject.image)
    prompts, (cond,) = pipe.encode_prompts([PROMPT]), texts_of(subject, PROMPT)
    unet, steps = subject.theirs.unet, subject.steps

    def their_noise() -> Tensor:
        return published_inversion.reference_invert(unet, inverse(), source, cond, steps=steps)[0]

    yield row_of(
        subject,
        "invert",
        "ddim, the noise",
        lambda: ddim.invert(pipe, source, prompts, steps).x_T,
        their_noise,
    )

    def again() -> Tensor:
        trace = ddim.invert(pipe, source, prompts, steps)
        return ddim.sample_latents(pipe, trace, prompts, 1.0)

    def their_again() -> Tensor:
        return published_inversion.reference_sample(
            unet, forward(), their_noise(), cond, steps=steps
        )[0]

    yield row_of(subject, "invert", "ddim, there and back", again, their_again)
    yield from null_text_rows(subject, pipe, source, forward)


def null_text_rows(
    subject: Subject, pipe: Pipeline, source: Tensor, forward: Callable[[], Any]
) -> Iterator[Found]:
    from techniques.inversion import ddim, null_text

    steps, inner = min(4, subject.steps), 5
    prompts = pipe.encode_prompts([PROMPT])
    uncond, cond = texts_of(subject, "", PROMPT)
    pivot = ddim.invert_latents(pipe, source, prompts.cond, steps)
    our_losses: list[float] = []
    their_losses: list[float] = []

    def ours() -> Tensor:
        trace = null_text.invert(
            pipe, source, prompts, steps, GUIDANCE, inner_steps=inner,
            watch=lambda i, losses: our_losses.append(losses[-1]),
        )  # fmt: skip
        return null_text.sample_latents(pipe, trace, prompts, GUIDANCE)

    def theirs() -> Tensor:
        subject.theirs.unet.requires_grad_(False)  # the embedding alone is trained
        with torch.enable_grad():
            learnt = published_inversion.reference_null_text(
                subject.theirs.unet, forward(), list(pivot[:, None]), uncond, cond,
                guidance=GUIDANCE, inner_steps=inner, losses=their_losses,
            )  # fmt: skip
        return published_inversion.reference_guided(
            subject.theirs.unet, forward(), pivot[:1], learnt, cond, guidance=GUIDANCE
        )

    yield row_of(subject, "invert", "null-text, the image", ours, theirs, TRAINED)
    reached = Distance.between(torch.tensor(our_losses), torch.tensor(their_losses))
    note = f"last losses {our_losses[-1]:.2e} and {their_losses[-1]:.2e}"
    yield Row("invert", "null-text, the losses", reached, Bound("relative", 0.02), note=note)


# --- prompt-to-prompt ---------------------------------------------------------------------

Edit = Callable[[Tensor, Tensor], Tensor]
"""The source's maps and the target's own -> those that are to act."""


def p2p_rows(subject: Subject) -> Iterator[Found]:
    """Words replaced, refined and reweighted in lockstep; and the tutorial's replay."""
    from techniques import prompt_to_prompt as technique

    reason = not_compared(subject)
    if reason:
        yield "p2p", reason
        return
    tokenizer = subject.theirs.tokenizer
    mapper = published_p2p.replacement_mapper(
        [
            (token_count(tokenizer, old), token_count(tokenizer, new))
            for old, new in zip(PROMPT.split(), TARGET.split(), strict=True)
        ]
    ).to(subject.device)
    places, alphas = (
        values.to(subject.device)
        for values in published_p2p.refinement_mapper(
            tokenizer(PROMPT).input_ids, tokenizer(LONGER).input_ids
        )
    )
    factors = torch.ones(77, device=subject.device)
    first = 1 + token_count(tokenizer, PROMPT.split()[0])
    factors[first : first + token_count(tokenizer, PROMPT.split()[1])] = 2.0  # snowy

    def replace(base: Tensor, own: Tensor) -> Tensor:
        return base @ mapper

    def refine(base: Tensor, own: Tensor) -> Tensor:
        return base[:, :, places] * alphas + own * (1 - alphas)

    def reweight(base: Tensor, own: Tensor) -> Tensor:
        return base * factors

    twice = technique.Edit(PROMPT, weights={PROMPT.split()[1]: 2.0})
    for label, solver, edit, combine in (
        ("replace, ddim", "ddim", technique.Edit(TARGET, "replace"), replace),
        ("replace, euler", "euler", technique.Edit(TARGET, "replace"), replace),
        ("refine, dpm++2m", "dpm++2m", technique.Edit(LONGER, "refine"), refine),
        ("reweight, ddim", "ddim", twice, reweight),
    ):
        reason = diffusers_side.known_deviation(solver, subject.pipe.scheduler_config)
        if reason:
            yield f"p2p, {label}", reason
        else:
            yield p2p_row(subject, label, solver, edit, combine)

    pipe = subject.pipe.with_scheduler("ddim")

    def replayed() -> Tensor:
        return technique.replayed(
            pipe, PROMPT, [TARGET], [SEED], steps=subject.steps, guidance=GUIDANCE
        ).latents.flatten(0, 1)

    def their_replay() -> Tensor:
        source, target, uncond = texts_of(subject, PROMPT, TARGET, "")
        made = published_p2p.reference_replay(
            subject.theirs.unet,
            partial(scheduler_for, subject, "ddim"),
            unit(subject),
            source,
            target,
            uncond,
            steps=subject.steps,
            guidance=GUIDANCE,
            injection_ratio=1.0,
        )
        return torch.cat(made)

    reason = diffusers_side.known_deviation("ddim", subject.pipe.scheduler_config)
    if reason:
        yield "p2p, replay", reason
    else:
        yield row_of(subject, "p2p", "replay, ddim", replayed, their_replay)


def p2p_row(subject: Subject, label: str, solver: str, edit: Any, combine: Edit) -> Row:
    from techniques.prompt_to_prompt import prompt_to_prompt

    pipe = subject.pipe.with_scheduler(solver, **solver_options(solver, karras=False))
    steps = subject.steps
    _, h, w = subject.latent_shape
    cross = torch.zeros(steps + 1, 1, 77, device=subject.device)
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
        made = prompt_to_prompt(pipe, PROMPT, [edit], [SEED], steps=steps, guidance=GUIDANCE)
        return made.latents.flatten(0, 1)

    def theirs() -> Tensor:
        source, target, uncond = texts_of(subject, PROMPT, edit.prompt, "")
        return published_p2p.reference_p2p(
            subject.theirs.unet,
            scheduler_for(subject, solver),
            unit(subject),
            [source, target],
            uncond,
            controller,
            steps=steps,
            guidance=GUIDANCE,
        )

    return row_of(subject, "p2p", label, ours, theirs)


def token_count(tokenizer: Any, word: str) -> int:
    return len(tokenizer(word, add_special_tokens=False).input_ids)


COMPARISONS: dict[str, Callable[[Subject], Iterator[Found]]] = {
    "erase": erase_rows,
    "invert": invert_rows,
    "p2p": p2p_rows,
}
