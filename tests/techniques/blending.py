"""What the tests of blending share: a tiny model in pare's and in diffusers' form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pare.loading.model_source import ModelSource
from pare.loading.modules import Components
from pare.pipeline import Pipeline
from pare.schedulers import build_scheduler
from pare.text.text_encoder import PromptEmbeddings
from tests.random_models import TINY_UNET, TINY_VAE, normal, unet_pair, vae_pair

# SD 1.4's scheduler file, whatever solver is built from it.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}

# Factor 4: neither SD's 8 nor the two levels' 2, so that no number fits by accident.
VAE = TINY_VAE | {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "scaling_factor": 0.3,
}


class TinyPipeline(Pipeline):
    """The real pipeline around tiny models, with made-up embeddings for every prompt."""

    def encode_prompts(
        self, prompts: Sequence[str], negative: str | Sequence[str] = ""
    ) -> PromptEmbeddings:
        negatives = [negative] * len(prompts) if isinstance(negative, str) else negative
        return PromptEmbeddings(
            cond=torch.cat([embedding(p) for p in prompts]),
            uncond=torch.cat([embedding(p) for p in negatives]),
        )


def embedding(prompt: str) -> Tensor:
    return normal(1, 77, TINY_UNET["cross_attention_dim"], seed=sum(prompt.encode()) + 1)


class Exact:
    """A UNet of diffusers' in float64, with float32 at its doors, as pare's has them.

    Long guided runs enlarge how a processor rounds until it hides what is compared: the loops.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet.double()

    def __call__(
        self, x: Tensor, t: Any, text: Tensor | None = None, *,
        encoder_hidden_states: Tensor | None = None,
    ) -> Any:  # fmt: skip
        given = encoder_hidden_states if text is None else text
        assert given is not None
        return SimpleNamespace(sample=self.unet(x.double(), t, given.double()).sample.float())


@dataclass(frozen=True)
class TinyModel:
    """One set of random weights, as pare's pipeline and as diffusers' UNet and VAE."""

    components: Components
    their_unet: Any
    their_vae: Any

    def pipe(self, scheduler: str = "dpm++2m", **options: Any) -> TinyPipeline:
        solver = build_scheduler(SCHEDULER_CONFIG, "the test's file", scheduler, **options)
        return TinyPipeline(self.components, solver)

    @classmethod
    def build(cls, **changes: Any) -> TinyModel:
        """`changes` are to the UNet's config."""
        unet, their_unet = unet_pair(TINY_UNET | changes)
        vae, their_vae = vae_pair(VAE)
        source = ModelSource("tiny", "tiny")
        no_text: Any = None
        components = Components(unet, vae, no_text, no_text, SCHEDULER_CONFIG, source)
        return cls(components, their_unet, their_vae)

    def exact(self) -> TinyModel:
        """The same weights, both UNets in float64; see `Exact`."""
        self.components.unet.double()
        return TinyModel(self.components, Exact(self.their_unet), self.their_vae)


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask: white in the box (left, upper, right, lower)."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft colours, unlike in every place."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
