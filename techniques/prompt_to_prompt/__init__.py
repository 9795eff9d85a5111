"""Prompt-to-Prompt: what another prompt makes of the same image (arXiv:2208.01626).

`mapper` says which word (`pare.text.words`) of the source feeds which of the target, `control`
edits attention by it, `loop` is the algorithm.  Around it: `local_blend` keeps what the edit
is not about, `images` goes from words to images, `tutorial` is the variant that stores
all maps and replays them.
"""

from pare.text.words import Word, Words, read
from techniques.prompt_to_prompt.attention_edit import (
    Injection,
    Sites,
    Span,
    Target,
    cross_schedule,
    steps_of,
)
from techniques.prompt_to_prompt.local_blend import LocalBlend, Masks
from techniques.prompt_to_prompt.p2p_images import (
    PREFERRED_SCHEDULER,
    Edit,
    Edited,
    prepare,
    prompt_to_prompt,
    replayed,
    tables_of,
    token_maps,
)
from techniques.prompt_to_prompt.p2p_loop import edit_latents
from techniques.prompt_to_prompt.token_mapper import Mode, TokenMap, token_map, usual_mode
from techniques.prompt_to_prompt.tutorial import replay_latents

__all__ = [
    "PREFERRED_SCHEDULER",
    "Edit",
    "Edited",
    "Injection",
    "LocalBlend",
    "Masks",
    "Mode",
    "Sites",
    "Span",
    "Target",
    "TokenMap",
    "Word",
    "Words",
    "cross_schedule",
    "edit_latents",
    "prepare",
    "prompt_to_prompt",
    "read",
    "replay_latents",
    "replayed",
    "steps_of",
    "tables_of",
    "token_map",
    "token_maps",
    "usual_mode",
]
