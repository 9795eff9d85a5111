"""The model's answer under guidance.

A model that has learnt eps(x_t, prompt) and eps(x_t, "") can be pushed further in the
direction in which the prompt changes its mind than the prompt alone would push it:

    eps = uncond + scale * (cond - uncond)                  arXiv:2207.12598, eq. 6

Scale 1 is the model's own answer, 0 ignores the prompt; the paper's w is `scale - 1`.
The same holds for v.
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
    """What the guided model makes of x_t: x0 and eps, float32, each (B, 4, h, w).

    Args:
        x_t: latents (B, 4, h, w), float32; cast to the model's dtype at its door.
        level: how noisy x_t is.
        guidance: the scale of classifier-free guidance; at 1 the model runs once, not twice.
        rescale: see `guide`.
        control: attention's control; it is told `step` and what each row of the batch is.
        extra: channels that an inpainting UNet reads beside x_t, the same in both branches:
            the mask and the masked image's latents, (B, 5, h, w) or (1, 5, h, w).

    Raises:
        SettingError: not as many prompts as latents.
    """
    if len(prompts) != len(x_t):
        raise SettingError(
            f"{len(prompts)} prompts are given for {len(x_t)} latents", expected="one each"
        )
    if guidance == 1:
        texts = {"cond": prompts.cond}
    else:
        texts = {"uncond": prompts.uncond, "cond": prompts.cond}
    seen = x_t if extra is None else torch.cat([x_t, extra.expand(len(x_t), -1, -1, -1)], dim=1)
    answers = branch_outputs(unet, seen, level, texts, control=control, step=step)
    output = answers["cond"]
    if guidance != 1:
        output = guide(answers["uncond"], output, guidance, rescale)
    return interpret(output, x_t, level, prediction_type)


def branch_outputs(
    unet: UNet,
    seen: Tensor,
    level: NoiseLevel,
    texts: Mapping[str, Tensor],
    *,
    control: Control | None = None,
    step: int = 0,
) -> dict[str, Tensor]:
    """The model's answers to several texts about the same latents, all from one batch.

    Args:
        seen: what the UNet reads, (B, channels, h, w), float32.
        texts: (B, 77, C) for each branch by its name; the batch has them in this order.

    Returns:
        for each branch the UNet's output, (B, 4, h, w), float32.
    """
    count = len(seen)
    rows = tuple(BatchRow(prompt, branch) for branch in texts for prompt in range(count))
    seam = None if control is None else ControlledStep(control, step, rows)
    dtype = unet.conv_in.weight.dtype
    batch = torch.cat([seen] * len(texts)) if len(texts) > 1 else seen
    text = torch.cat(list(texts.values()))
    inputs = batch.to(dtype), level.t, text.to(dtype)
    output = unet(*inputs, seam).float()
    check_finite(
        f"the UNet's answer at step {step} (t = {level.t:g})",
        output,
        unet,
        {"the latents": batch, "the prompts' embeddings": text},
        lambda: unet(*inputs),
    )
    return dict(zip(texts, output.split(count), strict=True))


def guide(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance on predictions (B, ...), eps or v.

    `rescale` in [0, 1] draws the answer's standard deviation back to the conditional's,
    which strong guidance inflates (arXiv:2305.08891, sec. 3.4, eq. 15 and 16).
    """
    guided = uncond + scale * (cond - uncond)
    if rescale:
        dims = tuple(range(1, cond.ndim))
        ratio = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = rescale * (guided * ratio) + (1 - rescale) * guided
    return guided
