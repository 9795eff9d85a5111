"""Classifier-free guidance: extrapolates from the unconditional to the conditional prediction.

    eps = uncond + scale * (cond - uncond)                  arXiv:2207.12598, eq. 6

`cond` is eps(x_t, prompt) and `uncond` is eps(x_t, ""), or of a negative prompt; the same
formula holds for v.  Scale 1 is the conditional prediction, 0 the unconditional one; the
paper's w is `scale - 1`.

Latent consistency models (arXiv:2310.04378) have learnt the guided prediction: they read the
scale as an embedding beside the timestep, and are evaluated for the prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pare.attention import BatchRow, Control, ControlledStep
from pare.errors import SettingError
from pare.runtime.numerics import check_finite
from pare.schedulers import NoiseLevel, Prediction, interpret
from pare.text.text_encoder import PromptEmbeddings
from pare.unet import UNet


def predict(
    unet: UNet,
    x_t: Tensor,
    level: NoiseLevel,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    prediction_type: str,
    rescale: float = 0.0,
    control: Control | None = None,
    step: int = 0,
    extra: Tensor | None = None,
) -> Prediction:
    """The guided prediction for x_t as x0 and eps, each (B, 4, h, w), float32.

    Args:
        x_t: latents (B, 4, h, w), float32; the UNet gets them in its own dtype.
        level: the noise level of x_t.
        guidance: the guidance scale; at 1 the batch holds the conditional branch alone.
        rescale: see `guide`.
        control: attention control; it gets `step` and the meaning of each row of the batch.
        extra: channels that an inpainting UNet reads beside x_t, the same in both branches:
            the mask and the masked image's latents, (B, 5, h, w) or (1, 5, h, w).

    Raises:
        SettingError: not as many prompts as latents.
    """
    if len(prompts) != len(x_t):
        raise SettingError(
            f"{len(prompts)} prompts are given for {len(x_t)} latents", expected="one each"
        )
    embedded = guidance if unet.config.time_cond_proj_dim is not None else None
    if guidance == 1 or embedded is not None:
        texts = {"cond": prompts.cond}
    else:
        texts = {"uncond": prompts.uncond, "cond": prompts.cond}
    latents = x_t
    if extra is not None:
        latents = torch.cat([x_t, extra.expand(len(x_t), -1, -1, -1)], dim=1)
    outputs = branch_outputs(
        unet, latents, level, texts, control=control, step=step, guidance=embedded
    )
    output = outputs["cond"]
    if "uncond" in outputs:
        output = guide(outputs["uncond"], output, guidance, rescale)
    return interpret(output, x_t, level, prediction_type)


def branch_outputs(
    unet: UNet,
    latents: Tensor,
    level: NoiseLevel,
    texts: Mapping[str, Tensor],
    *,
    control: Control | None = None,
    step: int = 0,
    guidance: float | None = None,
) -> dict[str, Tensor]:
    """The UNet's outputs for the same latents under several texts, from one batch.

    Args:
        latents: the UNet's input, (B, channels, h, w), float32.
        texts: (B, 77, C) for each branch by its name; the batch has them in this order.
        guidance: the scale that a latent consistency model reads; see `UNet.forward`.

    Returns:
        for each branch the output, eps or v, (B, 4, h, w), float32.

    Raises:
        NonFiniteError: the output holds NaN or infinities.
    """
    count = len(latents)
    rows = tuple(BatchRow(prompt, branch) for branch in texts for prompt in range(count))
    controlled = None if control is None else ControlledStep(control, step, rows)
    dtype = unet.conv_in.weight.dtype
    batch = torch.cat([latents] * len(texts)) if len(texts) > 1 else latents
    text = torch.cat(list(texts.values()))
    inputs = batch.to(dtype), level.t, text.to(dtype)
    scale = {} if guidance is None else {"guidance": guidance}
    output = unet(*inputs, controlled, **scale).float()
    check_finite(
        f"the UNet's output at step {step} (t = {level.t:g})",
        output,
        unet,
        {"the latents": batch, "the prompts' embeddings": text},
        lambda: unet(*inputs, **scale),
    )
    return dict(zip(texts, output.split(count), strict=True))


def guide(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance on predictions (B, ...), eps or v.

    `rescale` in [0, 1] is guidance rescale (arXiv:2305.08891, sec. 3.4, eq. 15 and 16): it
    brings the standard deviation, which a large scale inflates, back to the conditional's.
    """
    guided = uncond + scale * (cond - uncond)
    if rescale:
        dims = tuple(range(1, cond.ndim))
        ratio = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = rescale * (guided * ratio) + (1 - rescale) * guided
    return guided
