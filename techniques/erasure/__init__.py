"""Concept erasure: guidance with the directions of unwanted concepts subtracted.

`erasure_loop` is the algorithm and its gates, `erase_images` goes from prompts or an image to
images, `erasure_maps` draws where and how strongly each concept was subtracted.
"""

from techniques.erasure.erase_images import PREFERRED_SCHEDULER, STRENGTH, Erased, erase
from techniques.erasure.erasure_loop import (
    PRESETS,
    Concept,
    ErasureGuidance,
    Gates,
    check_concepts,
    check_gates,
    erase_latents,
    usual_weight,
)

__all__ = [
    "PREFERRED_SCHEDULER",
    "PRESETS",
    "STRENGTH",
    "Concept",
    "Erased",
    "ErasureGuidance",
    "Gates",
    "check_concepts",
    "check_gates",
    "erase",
    "erase_latents",
    "usual_weight",
]
