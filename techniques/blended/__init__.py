"""Blended latent diffusion: repaint what a mask marks, keep the rest (arXiv:2206.02779).

`blended_loop` is the algorithm.  Around it: `edit_canvas` fits image and mask to each other,
`blend_image` goes from images to images, `background` decides the pixels outside the mask
(`poisson` and `tuned_decoder` are two ways), `inpainting_model` runs UNets that take the mask
as input, `ranking` sorts candidates, `solver_history` measures a choice.
"""

from techniques.blended.background import Background, Difference, difference
from techniques.blended.blend_image import PREFERRED_SCHEDULER, Blended, Method, blend, first_step
from techniques.blended.blended_loop import blend_latents, shrunken
from techniques.blended.edit_canvas import Canvas, mask_on_grid, prepare_mask
from techniques.blended.inpainting_model import inpaint_latents
from techniques.blended.ranking import Rank, at_mask, by_loss
from techniques.blended.solver_history import HistoryRow, measure_history
from techniques.blended.tuned_decoder import decode_tuned

__all__ = [
    "PREFERRED_SCHEDULER",
    "Background",
    "Blended",
    "Canvas",
    "Difference",
    "HistoryRow",
    "Method",
    "Rank",
    "at_mask",
    "blend",
    "blend_latents",
    "by_loss",
    "decode_tuned",
    "difference",
    "first_step",
    "inpaint_latents",
    "mask_on_grid",
    "measure_history",
    "prepare_mask",
    "shrunken",
]
