"""Parity of the text encoder, the UNet and the VAE, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pare.io.images import to_tensor
from pare.text.text_encoder import PromptTruncated, encode
from pare.verify import diffusers_side
from pare.verify.layer_parity import compare_layers
from pare.verify.model_pair import PROMPT, ModelPair, unit_noise
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import Compared, Distance, ParityRow

PROMPTS = {
    "a prompt": PROMPT,
    "the empty prompt": "",
    "odd characters": "Straße №7 -- 2 cars, (snow!) 雪",
    "more than 77 tokens": "a red car behind a tree on a winding road at dawn, " * 12,
}
EDGE = 32  # latents along a side at most, where every layer's output is kept


def text_rows(models: ModelPair) -> Iterator[Compared]:
    """Tokens and every layer of the text encoder."""
    pipe = models.pipe
    for name, prompt in PROMPTS.items():

        def ours(prompt: str = prompt) -> Tensor:
            with warnings.catch_warnings():  # one of the prompts is too long on purpose
                warnings.simplefilter("ignore", PromptTruncated)
                return encode(pipe.tokenizer, pipe.text_encoder, [prompt])

        def theirs(pipeline: Any, prompt: str = prompt) -> Tensor:
            cond: Tensor = pipeline.encode_prompt(prompt, pipeline.device, 1, False)[0]
            return cond

        yield model_row(models, "text", name, "text_encoder", ours, theirs)


def unet_rows(models: ModelPair) -> Iterator[Compared]:
    """Every layer of the UNet, on grids of even and of odd size."""
    unet = models.pipe.unet
    height, width = (min(side, EDGE) for side in unet.config.sample_size)
    cond, uncond = diffusers_side.embeddings(models.theirs, PROMPT, "")
    text = torch.cat([uncond, cond])
    # Two images, each at a timestep of its own.
    t = torch.tensor([981, 17], device=models.device)
    for h, w in ((height, width), (max(1, height // 2 - 1), max(1, width // 2 + 1))):
        x_t = unit_noise((2, unet.config.in_channels, h, w)).to(text)

        def ours(x_t: Tensor = x_t) -> Tensor:
            return unet(x_t, t, text)

        def theirs(pipeline: Any, x_t: Tensor = x_t) -> Tensor:
            there = pipeline.dtype
            output: Tensor = pipeline.unet(
                x_t.to(there), t, encoder_hidden_states=text.to(there)
            ).sample
            return output

        yield model_row(models, "unet", f"latents {h} x {w}", "unet", ours, theirs)


def vae_rows(models: ModelPair) -> Iterator[Compared]:
    """Every layer of the encoder and of the decoder."""
    vae = models.pipe.vae
    height, width = (min(side, EDGE) for side in models.latent_shape[1:])
    factor = vae.config.factor
    resized = models.image.resize((width * factor, height * factor))
    image = to_tensor(resized).to(models.device, models.pipe.dtype)
    latents = models.theirs.vae.encode(image).latent_dist.mode()

    def our_encoding() -> Tensor:
        posterior = vae.encode(image)
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def their_encoding(pipeline: Any) -> Tensor:
        posterior = pipeline.vae.encode(image.to(pipeline.dtype)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def our_decoding() -> Tensor:
        return vae.decode(latents)

    def their_decoding(pipeline: Any) -> Tensor:
        decoded: Tensor = pipeline.vae.decode(latents.to(pipeline.dtype)).sample
        return decoded

    size = f"{resized.height} x {resized.width}"
    yield model_row(models, "vae", f"encoder {size}", "vae", our_encoding, their_encoding)
    yield model_row(models, "vae", f"decoder {size}", "vae", our_decoding, their_decoding)


def model_row(
    models: ModelPair,
    group: str,
    name: str,
    part: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[Any], Tensor],
) -> ParityRow:
    """Compare one part of the model, layer by layer, then time it.

    `ours()` runs pare's part and `theirs(pipeline)` diffusers' on the same input.
    """
    compared = compare_layers(
        without_prefix(getattr(models.pipe, part)),
        without_prefix(getattr(models.theirs, part)),
        ours,
        lambda: theirs(models.theirs),
    )
    bound = models.bound(compared.theirs, theirs)
    departed = compared.first_departure(bound.limit)
    note = f"departs first at {departed}" if departed else f"{len(compared.layers)} layers"
    timing = in_turns(ours, lambda: theirs(models.theirs), models.device, pairs=5)
    distance = Distance.between(compared.ours, compared.theirs)
    return ParityRow(group, name, distance, bound, time_ratio=timing.ratio, note=note)


def without_prefix(module: nn.Module) -> nn.Module:
    """The text encoder below `text_model.`, which transformers 5 has not in its layers' names."""
    inner = getattr(module, "text_model", module)
    return inner if isinstance(inner, nn.Module) else module
