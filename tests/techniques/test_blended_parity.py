"""The blend against the tutorial's own loop on diffusers, and proof that this would notice."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pare.guidance
import pare.pipeline
import techniques.blended
import techniques.blended.blended_loop
from pare.pipeline import Pipeline
from pare.schedulers import Timesteps
from tests.conftest import ROADS
from tests.random_models import normal
from tests.references.reference_blend import reference_blend
from tests.techniques.blending import SCHEDULER_CONFIG, Exact, TinyModel, distance, embedding
from tests.techniques.mutants import mutant

BOUND = 1e-5

# pare's scheduler and options -> diffusers' class and options.
SOLVERS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "dpm++2m karras": (
        {"scheduler": "dpm++2m", "karras": True},
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++2m": (
        {"scheduler": "dpm++2m"},
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++"},
    ),
    "ddim": ({"scheduler": "ddim"}, diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": ({"scheduler": "euler"}, diffusers.EulerDiscreteScheduler, {}),
    "lms karras": (
        {"scheduler": "lms", "karras": True},
        diffusers.LMSDiscreteScheduler,
        {"use_karras_sigmas": True},
    ),
    "pndm": ({"scheduler": "pndm"}, diffusers.PNDMScheduler, {}),
}


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.build()


# Odd latents, so that the up path must meet the skips; a mask in two parts, one at the border.
SOURCE = normal(1, 4, 9, 11, seed=2)
FOREGROUND, BACKGROUND = normal(1, 4, 9, 11, seed=3), normal(1, 4, 9, 11, seed=4)
MASK = torch.zeros(1, 1, 9, 11)
MASK[..., 2:6, 3:8] = MASK[..., 8, 9:] = 1


def both(
    model: TinyModel,
    module: ModuleType,
    solver: str = "dpm++2m karras",
    steps: int = 25,
    strength: float = 0.95,
    guidance: float = 12.0,
) -> tuple[Tensor, Tensor]:
    """Edited latents by `module`'s loop (the real one, or a mutant) and the reference's."""
    ours, their_class, their_options = SOLVERS[solver]
    pipe = model.pipe(**ours)
    start = techniques.blended.first_step(steps, strength, "up")
    timesteps: Timesteps = pipe.scheduler.timesteps(steps, start)
    edited = module.blend_latents(
        pipe,
        timesteps,
        pipe.encode_prompts(["a snowy road"]),
        SOURCE,
        MASK,
        FOREGROUND,
        BACKGROUND,
        guidance=guidance,
    )
    reference = reference_blend(
        model.their_unet,
        their_class.from_config(SCHEDULER_CONFIG, **their_options),
        SOURCE,
        MASK,
        embedding(""),
        embedding("a snowy road"),
        FOREGROUND,
        BACKGROUND,
        steps=steps,
        strength=strength,
        guidance=guidance,
    )
    return edited, reference


@pytest.mark.parametrize(
    ("steps", "strength"), [(1, 1.0), (2, 1.0), (7, 0.4), (20, 0.9), (25, 0.95)]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_latents_are_the_reference_s(
    model: TinyModel, solver: str, steps: int, strength: float
) -> None:
    if solver in ("pndm", "lms karras"):
        strength = 1.0  # midway, the reference's reach for a history that is not there
    if solver in ("euler", "lms karras"):
        steps = max(steps, 2)  # the reference's single step starts at the clean end
    edited, reference = both(model, techniques.blended.blended_loop, solver, steps, strength)
    assert distance(edited, reference) < BOUND


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_the_reference_s(model: TinyModel, guidance: float) -> None:
    edited, reference = both(model, techniques.blended.blended_loop, steps=7, guidance=guidance)
    assert distance(edited, reference) < BOUND


# --- the comparison notices mistakes --------------------------------------------------------


LEVEL = "background = add_noise(source, background_noise, level.alpha_bar)"
BLEND = "x_t = edit * x_t + (1 - edit) * background"
MUTATIONS = {
    "the background one level too clean": (
        LEVEL, LEVEL.replace("level.alpha_bar", "timesteps.levels[i + 1].alpha_bar"),
    ),
    "the background one level too noisy": (
        LEVEL, LEVEL.replace("level.alpha_bar", "timesteps.levels[max(i - 1, 0)].alpha_bar"),
    ),
    "no final pin": ("return mask * x_t + (1 - mask) * source", "return x_t"),
    "one noise for both": (LEVEL, LEVEL.replace("background_noise", "foreground_noise")),
    "the mask the other way round": (BLEND, "x_t = (1 - edit) * x_t + edit * background"),
    "a forgetful solver": ('if not keep_history:', "if True:"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_blend_is_noticed(model: TinyModel, name: str, tmp_path: Path) -> None:
    old, new = MUTATIONS[name]
    module = mutant(techniques.blended.blended_loop, old, new, tmp_path)
    edited, reference = both(model, module)
    assert distance(edited, reference) > 100 * BOUND


def test_the_wrong_order_of_the_guidance_s_rows_is_noticed(
    model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = "zip(texts, output.split(count), strict=True)"
    new = "zip(reversed(texts), output.split(count), strict=True)"
    module = mutant(pare.guidance, old, new, tmp_path)
    monkeypatch.setattr(pare.pipeline, "guiding", module)
    edited, reference = both(model, techniques.blended.blended_loop)
    assert distance(edited, reference) > 100 * BOUND


def test_an_unchanged_copy_of_the_module_passes(model: TinyModel, tmp_path: Path) -> None:
    """So that what the mutants fail on is the mutation."""
    module = mutant(techniques.blended.blended_loop, LEVEL, LEVEL, tmp_path)
    edited, reference = both(model, module)
    assert distance(edited, reference) < BOUND


# --- images, on the built-in model --------------------------------------------------------


@pytest.mark.parametrize(
    ("strength", "guidance", "sample"), [(0.95, 7.5, False), (0.7, 12.0, True)]
)
def test_images_on_roads(strength: float, guidance: float, sample: bool) -> None:
    """From the same image, mask, words and noise to images: no channel off by more than 1."""
    prompt, negative, steps = "a snowy road in the forest", "a car", 25
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(ROADS, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(
        ROADS, subfolder="scheduler", algorithm_type="dpmsolver++", use_karras_sigmas=True
    )
    # Its table in float64, as pare's is: trained weights enlarge what float32 rounds there.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    image = scene(128, 96)
    mask = Image.new("L", image.size)
    mask.paste(255, (24, 32, 88, 80))

    generator = torch.Generator().manual_seed(5)
    foreground, background, encoder = (
        torch.randn(1, 4, 12, 16, generator=generator) for _ in range(3)
    )
    with torch.no_grad():
        posterior = theirs.vae.encode(theirs.image_processor.preprocess(image)).latent_dist
        source = posterior.mean + posterior.std * encoder if sample else posterior.mode()
        cond, uncond = theirs.encode_prompt(prompt, "cpu", 1, True, negative)
        edited = reference_blend(
            Exact(theirs.unet),
            scheduler,
            source * theirs.vae.config.scaling_factor,
            torch.from_numpy(
                np.array(mask.resize((16, 12), Image.Resampling.NEAREST), dtype=np.float32) / 255
            )[None, None],
            uncond,
            cond,
            foreground,
            background,
            steps=steps,
            strength=strength,
            guidance=guidance,
        )
        decoded = theirs.vae.decode(edited / theirs.vae.config.scaling_factor).sample
    [reference] = theirs.image_processor.postprocess(decoded)

    pipe = Pipeline.from_pretrained(
        ROADS, device="cpu", dtype="float32", scheduler="dpm++2m", karras=True
    )
    pipe.unet.double()
    result = techniques.blended.blend(
        pipe, image, mask, prompt, [5], negative=negative, steps=steps, strength=strength,
        guidance=guidance, sample=sample, background="latent", rounding="up",
    )  # fmt: skip
    assert distance(result.latents, edited) < 1e-4
    apart = np.asarray(result.images[0]).astype(int) - np.asarray(reference)
    assert np.abs(apart).max() <= 1


def scene(width: int, height: int) -> Image.Image:
    """Sky over ground, with something in the middle: near enough to what roads knows."""
    image = Image.new("RGB", (width, height), (120, 170, 220))
    image.paste((60, 120, 60), (0, height // 2, width, height))
    image.paste((90, 90, 95), (width // 3, height // 2, 2 * width // 3, height))
    image.paste((200, 30, 30), (width // 2, height // 2, width // 2 + 16, height // 2 + 12))
    return image
