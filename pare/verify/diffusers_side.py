"""diffusers' side of the comparison: the only module of pare that uses diffusers.

These are diffusers' own classes, loaded from the same folder and given the same inputs: the
same noise, the same begin index.  The loops for img2img and blending are written out with
diffusers' components, because its own pipelines compute the start from `strength` differently
and encode with random noise.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pare.errors import MissingExtraError, ModelError
from pare.loading.hub_folder import find_weights
from pare.loading.model_source import ModelSource

Model = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> the model's guided output; both as diffusers' schedulers hand them over."""

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddim-inverse": "DDIMInverseScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}


def require_diffusers() -> Any:
    """The module diffusers.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise MissingExtraError(
            "the comparison needs diffusers, which is not installed",
            fix="pip install 'pare[verify]'",
        )
    import diffusers

    return diffusers


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses progress bars and log messages of diffusers and transformers."""
    diffusers = require_diffusers()
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.ERROR)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


def require_folder(path: Path) -> None:
    """Raise a ModelError for a model in one file, of which diffusers would make a guess."""
    if path.is_file():
        raise ModelError(
            f"{path} is a single file",
            expected="a folder, which both read alike",
            fix=f"convert it: pare convert {path} FOLDER",
        )


def load_reference(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' `StableDiffusionPipeline` on the files that pare loaded."""
    diffusers = require_diffusers()
    folder = Path(source.path)
    require_folder(folder)
    # The files that pare chooses for this dtype.
    half = ".fp16." in find_weights(folder, "unet", half=dtype == torch.float16).name
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder,
        torch_dtype=dtype,
        variant="fp16" if half else None,
        # The checker blanks images, which is no question of parity.
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_reference_file(path: Path, configs: Path, dtype: torch.dtype) -> Any:
    """diffusers' pipeline on a single file.

    Args:
        configs: a folder with the model's configs and tokenizer, which it would download.
    """
    pipeline = require_diffusers().StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(configs),
        torch_dtype=dtype,
        safety_checker=None,
        feature_extractor=None,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_scheduler(name: str, config: Mapping[str, Any], *, karras: bool = False) -> Any:
    """diffusers' solver of that name for a model's `scheduler_config.json`.

    `karras` decides also where the file, written for another solver, says otherwise.
    """
    kind = getattr(require_diffusers(), CLASSES[name])
    changes: dict[str, Any] = {"use_karras_sigmas": karras}
    written_for_ddim = config.get("_class_name") in ("DDIMScheduler", "DDIMInverseScheduler")
    if name in ("ddim", "ddim-inverse") and "clip_sample" not in config and not written_for_ddim:
        # Its default is to clip x0 at 1, which suits pixels; the file's own solver clips nothing.
        changes["clip_sample"] = False
    with quiet():  # it remarks on keys that were written for another solver
        return kind.from_config({**config, **changes})


def known_deviation(name: str, config: Mapping[str, Any], *, karras: bool = False) -> str | None:
    """Why diffusers' solver is no reference for this model, if it is none.

    docs/deviations.md tells what it does in each of these cases, and what pare does.
    """
    spacing = config.get("timestep_spacing", "leading")
    prediction = config.get("prediction_type", "epsilon")
    if name in ("ddim", "ddim-inverse", "pndm") and spacing != "leading":
        return f"under the {spacing} spacing diffusers' steps do not end where the next begins"
    if name == "pndm" and prediction != "epsilon":
        return f"diffusers' PNDM is right for eps alone, and this model predicts {prediction}"
    if name == "pndm" and not config.get("skip_prk_steps", False):
        return "diffusers' Runge-Kutta steps cannot start midway"
    if name == "euler-ancestral" and prediction == "sample":
        return "diffusers' Euler ancestral refuses models that predict x0"
    if name == "dpm++2m" and karras and config.get("beta_schedule") == "squaredcos_cap_v2":
        return "diffusers cuts off fractional timesteps"
    if config.get("rescale_betas_zero_snr") and name not in ("ddim", "ddim-inverse"):
        return "diffusers only comes near to a terminal SNR of zero with it"
    return None


class SolverRun:
    """One run of a diffusers scheduler from step index `start`, with all the state that it needs.

    x is in the scheduler's own scale between `begin` and `end`: x_t for some solvers,
    x_t / sqrt(alpha_bar) for those that work in sigma.
    """

    def __init__(
        self, name: str, scheduler: Any, steps: int, start: int, device: torch.device | str = "cpu"
    ) -> None:
        self.name, self.scheduler, self.start = name, scheduler, start
        scheduler.set_timesteps(steps, device=device)
        self.timesteps: Tensor = scheduler.timesteps[start:]
        if name == "pndm" and start:
            # PNDM's list repeats a timestep for its first, double step: from midway on it
            # has to do so where the run starts.
            rising = torch.from_numpy(scheduler._timesteps.copy())
            plain = rising.flip(0)[start:].to(device)
            self.timesteps = torch.cat([plain[:2], plain[1:]])
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        self.in_sigma = name in ("lms", "euler", "euler-ancestral")

    def begin(self, noise: Tensor) -> Tensor:
        """Unit noise at the strength that a run from nothing starts with."""
        return noise * self.scheduler.init_noise_sigma

    def from_latents(self, x_t: Tensor) -> Tensor:
        """Variance-preserving latents at the first level, in the scheduler's scale."""
        if not self.in_sigma:
            return x_t
        return x_t * (self.scheduler.sigmas[self.start].to(x_t) ** 2 + 1) ** 0.5

    def noised(self, x0: Tensor, noise: Tensor, k: int) -> Tensor:
        """The clean x0 at the level of evaluation k."""
        timestep = self.timesteps[k : k + 1].repeat(x0.shape[0])
        noised: Tensor = self.scheduler.add_noise(x0, noise, timestep)
        return noised

    def step(
        self, k: int, x: Tensor, model: Model, generator: torch.Generator | None, eta: float
    ) -> Tensor:
        """Evaluation k of the model, and the solver's step with it."""
        t = self.timesteps[k]
        output = model(self.scheduler.scale_model_input(x, t), t)
        extra: dict[str, Any] = {}
        if self.name == "lms":
            # Midway, diffusers counts derivatives that were never computed.
            extra = {"order": min(k + 1, 4)}
        elif self.name == "euler-ancestral":
            extra = {"generator": generator}
        elif self.name == "ddim" and eta:
            extra = {"generator": generator, "eta": eta}
        after: Tensor = self.scheduler.step(output, t, x, **extra).prev_sample
        return after

    def end(self, x: Tensor) -> Tensor:
        """The latents at the last level."""
        return x / (self.scheduler.sigmas[-1].to(x) ** 2 + 1) ** 0.5 if self.in_sigma else x

    def to_the_end(
        self, x: Tensor, model: Model, generator: torch.Generator | None = None, eta: float = 0.0
    ) -> Tensor:
        for k in range(len(self.timesteps)):
            x = self.step(k, x, model, generator, eta)
        return self.end(x)


# --- whole runs on diffusers' parts -------------------------------------------------------


def embeddings(reference: Any, prompt: str, negative: str) -> tuple[Tensor, Tensor]:
    """diffusers' own encoding of the prompt and of the negative prompt, (1, 77, C) each."""
    cond, uncond = reference.encode_prompt(
        prompt, reference.device, 1, do_classifier_free_guidance=True, negative_prompt=negative
    )
    return cond, uncond


def guided_model(reference: Any, prompt: str, negative: str, guidance: float) -> Model:
    cond, uncond = embeddings(reference, prompt, negative)
    text = torch.cat([uncond, cond])

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        output = reference.unet(torch.cat([x_t] * 2), t, encoder_hidden_states=text).sample
        without, with_prompt = output.chunk(2)
        guided: Tensor = without + guidance * (with_prompt - without)
        return guided

    return model


@torch.no_grad()
def generate(
    reference: Any,
    scheduler: Any,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance: float,
    negative: str,
    latent_shape: tuple[int, int, int],
) -> Tensor:
    """diffusers' pipeline as every user calls it -> image (1, 3, H, W) in [0, 1], CPU."""
    reference.scheduler = scheduler
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, *latent_shape), generator=generator)
    images: Tensor = reference(
        prompt,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.to(reference.device, reference.dtype),
        generator=generator,
        output_type="pt",
    ).images
    return images.float().cpu()


@torch.no_grad()
def img2img(
    reference: Any,
    run: SolverRun,
    image: Any,
    prompt: str,
    *,
    seed: int,
    guidance: float,
    negative: str,
) -> Tensor:
    """Noise a PIL image to the run's first level and denoise it -> (1, 3, H, W) in [0, 1]."""
    model = guided_model(reference, prompt, negative, guidance)
    generator = torch.Generator().manual_seed(seed)
    source = encode(reference, image)
    noise = torch.randn(source.shape, generator=generator).to(source)
    x = run.noised(source, noise, 0)
    return decode(reference, run.to_the_end(x, model, generator))


@torch.no_grad()
def blend(
    reference: Any,
    run: SolverRun,
    image: Any,
    mask: Any,
    prompt: str,
    *,
    seed: int,
    guidance: float,
    negative: str,
) -> tuple[Tensor, Tensor]:
    """Blended latent diffusion on diffusers' parts: the edited image, and the unedited one
    after its way through the VAE, both (1, 3, H, W) in [0, 1].

    `image` and `mask` are PIL's; white is repainted.  The background has its own noise, one
    for the whole run, and stands at every evaluation at the foreground's level.
    """
    model = guided_model(reference, prompt, negative, guidance)
    generator = torch.Generator().manual_seed(seed)
    source = encode(reference, image)
    foreground_noise = torch.randn(source.shape, generator=generator).to(source)
    background_noise = torch.randn(source.shape, generator=generator).to(source)
    height, width = source.shape[-2:]
    small = np.asarray(mask.convert("L").resize((width, height), resample=0))  # 0: nearest
    edit = torch.from_numpy(small / 255).to(source)[None, None]
    x = run.noised(source, foreground_noise, 0)
    for k in range(len(run.timesteps)):
        x = edit * x + (1 - edit) * run.noised(source, background_noise, k)
        x = run.step(k, x, model, generator, eta=0.0)
    x0 = edit * run.end(x) + (1 - edit) * source
    return decode(reference, x0), decode(reference, source)


def encode(reference: Any, image: Any) -> Tensor:
    """A PIL image -> scaled latents, the posterior's mode."""
    pixels = reference.image_processor.preprocess(image).to(reference.device, reference.dtype)
    latents: Tensor = reference.vae.encode(pixels).latent_dist.mode()
    return latents * reference.vae.config.scaling_factor


def decode(reference: Any, latents: Tensor) -> Tensor:
    """Scaled latents -> images in [0, 1] on the CPU."""
    pixels = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample
    images: Tensor = reference.image_processor.postprocess(pixels, output_type="pt")
    return images.float().cpu()


def to_8_bits(reference: Any, images: Tensor) -> list[Any]:
    """Images in [0, 1] -> PIL, as diffusers rounds."""
    processor = reference.image_processor
    pil_images: list[Any] = processor.numpy_to_pil(processor.pt_to_numpy(images))
    return pil_images
