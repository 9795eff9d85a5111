"""Inversion: from an image to the noise that a model makes it from; and edits from there.

`ddim_inversion` is the idea and its loop.  `fixed_point`, `null_text`, `edit_friendly` and
`edict` are inversions with loops of their own; `inverted_sampling` is the one loop that samples
from their results, edits included.  `invert_image` and `edit_image` go from images to images,
`latent_trace` and `inverted` hold what an inversion yields, `report_card` measures it.
"""

from techniques.inversion.edit_image import (
    EDIT_METHODS,
    Edited,
    Kind,
    check_kind,
    edit,
    usual_guidance,
    usual_strength,
)
from techniques.inversion.invert_image import (
    PREFERRED_SCHEDULER,
    USUAL_GUIDANCE,
    Sampled,
    invert,
    sample,
)
from techniques.inversion.inverted import Inverted, load
from techniques.inversion.inverted_sampling import sample_latents
from techniques.inversion.latent_trace import Method, Trace
from techniques.inversion.report_card import ReportCard, invert_and_report, statistics

__all__ = [
    "EDIT_METHODS",
    "PREFERRED_SCHEDULER",
    "USUAL_GUIDANCE",
    "Edited",
    "Inverted",
    "Kind",
    "Method",
    "ReportCard",
    "Sampled",
    "Trace",
    "check_kind",
    "edit",
    "invert",
    "invert_and_report",
    "load",
    "sample",
    "sample_latents",
    "statistics",
    "usual_guidance",
    "usual_strength",
]
