"""A real image, edited by a prompt: an inversion, and an edit on the way back from it.

`way` is what the inversion methods (`techniques.inversion`) do at each step of the way back.
`loops` is the edits on that way: other words, prompt-to-prompt, a mask, concepts pushed away;
each is a loop of its own.  `images` goes from an image and words to the edited image, and
says which method goes with which edit.
"""

from techniques.edit.edit_image import (
    GUIDANCE,
    METHODS,
    PREFERRED_SCHEDULER,
    STRENGTH,
    USUAL_METHOD,
    Edited,
    Kind,
    check_kind,
    edit,
    usual_guidance,
    usual_strength,
)

__all__ = [
    "GUIDANCE",
    "METHODS",
    "PREFERRED_SCHEDULER",
    "STRENGTH",
    "USUAL_METHOD",
    "Edited",
    "Kind",
    "check_kind",
    "edit",
    "usual_guidance",
    "usual_strength",
]
