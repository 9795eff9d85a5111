"""Prompt-to-Prompt (arXiv:2208.01626): edit an image by its prompt, through attention weights.

`p2p_loop` is the algorithm, `attention_edit` the edit of attention, by the table of
`token_mapper`: which word of the source feeds which of the target.  `local_blend` keeps the
rest of the image, `p2p_images` goes from prompts to images, and `tutorial` is a well-known
tutorial's variant that stores all attention maps.
"""

from pare.text.words import Word, Words, read
from techniques.prompt_to_prompt.attention_edit import (
    Injection,
    Sites,
    Span,
    TargetEdit,
    cross_schedule,
    steps_of,
)
from techniques.prompt_to_prompt.local_blend import LocalBlend, LocalBlendMasks, within_mask
from techniques.prompt_to_prompt.p2p_images import (
    PREFERRED_SCHEDULER,
    Edit,
    SourceAndTargets,
    labels_of,
    prepare,
    prompt_to_prompt,
    tables_of,
    token_maps,
)
from techniques.prompt_to_prompt.p2p_loop import edit_latents
from techniques.prompt_to_prompt.token_mapper import (
    Mode,
    PairingWarning,
    TokenMap,
    token_map,
    usual_mode,
)
from techniques.prompt_to_prompt.tutorial import replay_latents

__all__ = [
    "PREFERRED_SCHEDULER",
    "Edit",
    "Injection",
    "LocalBlend",
    "LocalBlendMasks",
    "Mode",
    "PairingWarning",
    "Sites",
    "SourceAndTargets",
    "Span",
    "TargetEdit",
    "TokenMap",
    "Word",
    "Words",
    "cross_schedule",
    "edit_latents",
    "labels_of",
    "prepare",
    "prompt_to_prompt",
    "read",
    "replay_latents",
    "steps_of",
    "tables_of",
    "token_map",
    "token_maps",
    "usual_mode",
    "within_mask",
]
