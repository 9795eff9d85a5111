"""Guidance by a loss: sampling steered by the gradient of any function of the image.

`loss_guided_loop` is the algorithm, `guide_images` goes from prompts to images.  `losses` and
`clip_loss` are losses, `loss_language` reads losses that are written in a line.
"""

from techniques.loss_guidance.guide_images import Guided, LossWarning, guide
from techniques.loss_guidance.loss_guided_loop import GuidedStep, Loss, check_loss, guide_latents

__all__ = [
    "Guided",
    "GuidedStep",
    "Loss",
    "LossWarning",
    "check_loss",
    "guide",
    "guide_latents",
]
