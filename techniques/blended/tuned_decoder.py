"""A decoder fine-tuned to one image ("background reconstruction" in arXiv:2206.02779).

The VAE's decoder cannot reproduce every image exactly: faces, letters and fine textures
change.  Its weights can be fine-tuned to *this* image: outside the mask to the original's
pixels, inside to what it decoded before.  As one network makes both, there is no seam.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.pipeline import Pipeline, Progress

TUNING_STEPS = 75
LEARNING_RATE = 1e-4
OUTSIDE_WEIGHT = 100.0  # of the original's pixels against the edit's, as published


def decode_tuned(
    pipe: Pipeline,
    latents: Tensor,
    original: Tensor,
    edit: Tensor,
    *,
    steps: int = TUNING_STEPS,
    progress: Progress = iter,
) -> Tensor:
    """Decode one image with a decoder that is tuned to it; the pipeline's is left as it is.

    The copy is trained in float32 with Adam, whatever the model's type.  It needs about four
    times the decoder's weights and the activations of one image.

    Args:
        latents: of the edited image, (1, 4, h, w), scaled.
        original: (1, 3, H, W) in [-1, 1].
        edit: (1, 1, H, W), 1 = edit and 0 = keep.
        steps: of Adam.  0 is the decoder as it is.

    Returns:
        (1, 3, H, W) in about [-1, 1], float32 on the CPU.
    """
    original, edit = original.to(pipe.device), edit.to(pipe.device)
    edited = pipe.decode(latents).to(pipe.device)  # the target inside the mask
    with torch.no_grad():
        unscaled = (latents / pipe.vae.config.scaling_factor).to(pipe.device)
        z = copy.deepcopy(pipe.vae.post_quant_conv).float()(unscaled)

    decoder = copy.deepcopy(pipe.vae.decoder).float().requires_grad_(True)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
    for _ in progress(range(steps)):
        with torch.enable_grad():
            output = decoder(z)
            inside = F.mse_loss(edit * output, edit * edited)
            outside = F.mse_loss((1 - edit) * output, (1 - edit) * original)
            loss = inside + OUTSIDE_WEIGHT * outside
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        image: Tensor = decoder(z)
    return image.cpu()
