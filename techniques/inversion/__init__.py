"""From an image to the noise that the model would make it from, and back with other words.

`ddim` is the idea and the loop; the others mend what is wrong with it, each in its own file:
`fixed_point` solves each step, `null_text` trains the empty prompt, `negative` puts the
source prompt in its place, `direct` keeps the source's row where it was, `edit_friendly`
solves for the noise of DDPM, `edict` has two latents take turns.  `trace` is what they leave,
`inverted` the same with words and as a file, `images` goes from images to images,
`report` judges.
"""

from techniques.inversion.invert_image import (
    PREFERRED_SCHEDULER,
    USUAL_GUIDANCE,
    Method,
    Sampled,
    invert,
    sample,
)
from techniques.inversion.inverted import Inverted, load
from techniques.inversion.report_card import ReportCard, invert_and_report, statistics
from techniques.inversion.trace import Trace

__all__ = [
    "PREFERRED_SCHEDULER",
    "USUAL_GUIDANCE",
    "Inverted",
    "Method",
    "ReportCard",
    "Sampled",
    "Trace",
    "invert",
    "invert_and_report",
    "load",
    "sample",
    "statistics",
]
