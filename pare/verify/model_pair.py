"""One model, loaded by pare and by diffusers, and what every comparison of the two shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pare.pipeline import Pipeline
from pare.verify import diffusers_side
from pare.verify.parity_table import SAME_BITS, Bound, Distance

PROMPT, NEGATIVE = "a snowy road in the forest", "night"
SEED, GUIDANCE = 7, 7.5
SOLVERS = ("ddim", "dpm++2m", "lms", "pndm", "euler", "euler-ancestral")
KARRAS = ("dpm++2m", "lms", "euler")  # solvers that can take Karras sigmas


@dataclass(frozen=True)
class ModelPair:
    """One model, loaded by both."""

    pipe: Pipeline
    theirs: Any
    """diffusers' pipeline, at the same device and dtype."""
    exact: Any | None
    """diffusers' pipeline in float32, where the comparison is in half precision."""
    steps: int

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.pipe.latent_shape()

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes a mask and a masked image beside the latents."""
        return self.pipe.unet.config.in_channels != self.pipe.vae.config.latent_channels

    @cached_property
    def image(self) -> Image.Image:
        """An image of the model's own world to edit: made by diffusers, for both."""
        if self.inpaints:
            return soft_colours()
        scheduler = diffusers_side.build_scheduler("ddim", self.pipe.scheduler_config)
        images = diffusers_side.generate(
            self.exact or self.theirs,
            scheduler,
            PROMPT,
            seed=SEED,
            steps=self.steps,
            guidance=GUIDANCE,
            negative="",
            latent_shape=self.latent_shape,
        )
        image: Image.Image = diffusers_side.to_8_bits(self.theirs, images)[0]
        return image

    def bound(self, theirs: Tensor, run_exact: Callable[[Any], Tensor]) -> Bound:
        """What one call of a model has to keep; `theirs` is what diffusers gave."""
        if self.exact is not None:
            own = Distance.between(theirs, run_exact(self.exact))
            return Bound("relative", own.relative)
        return SAME_BITS if self.device.type == "cpu" else Bound("relative", 1e-5)


def load_pair(
    model: str | Path, device: str, dtype: str, steps: int, revision: str | None = None
) -> ModelPair:
    pipe = Pipeline.from_pretrained(
        model, device=device, dtype=dtype, revision=revision, scheduler="ddim"
    )
    theirs = diffusers_side.load_reference(pipe.source, pipe.device, pipe.dtype)
    exact = None
    if pipe.dtype != torch.float32:
        exact = diffusers_side.load_reference(pipe.source, pipe.device, torch.float32)
    return ModelPair(pipe, theirs, exact, steps)


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TensorFloat32 (a 10-bit mantissa) in matrix products and convolutions on a GPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def soft_colours() -> Image.Image:
    """A smooth random image, for models that cannot make one from a prompt alone."""
    colours = np.random.default_rng(SEED).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((256, 256), Image.Resampling.BICUBIC)


def unit_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def solver_options(name: str, karras: bool) -> dict[str, Any]:
    """`karras` as an option, given also where it is False: the model's file may say otherwise."""
    return {"karras": karras} if name in KARRAS else {}
