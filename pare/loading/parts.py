"""The parts of a model that are no modules of pare's own, loaded one by one.

    unet         = pare.UNet.from_pretrained("roads", subfolder="unet")
    vae          = pare.AutoencoderKL.from_pretrained("roads", subfolder="vae")
    text_encoder = pare.TextEncoder.from_pretrained("roads", subfolder="text_encoder")
    tokenizer    = pare.Tokenizer.from_pretrained("roads", subfolder="tokenizer")
    scheduler    = pare.Scheduler.from_pretrained("roads", subfolder="scheduler")

`Pipeline.from_pretrained` loads all of them at once, and checks that they fit together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pare import schedulers
from pare.loading.modules import check_subfolder, load_tokenizer
from pare.loading.resolve import resolve_model, scheduler_config

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class Tokenizer:
    """Loads CLIP's tokenizer, which is transformers'."""

    @staticmethod
    def from_pretrained(
        model: str | Path,
        *,
        subfolder: str = "tokenizer",
        revision: str | None = None,
        tokenizer: Path | None = None,
    ) -> CLIPTokenizer:
        """A model's tokenizer; `model`, `tokenizer` and what it raises as for `load_model`."""
        check_subfolder("tokenizer", subfolder)
        return load_tokenizer(model, revision=revision, tokenizer=tokenizer)[0]


class Scheduler:
    """Loads a scheduler: `pare.schedulers.Scheduler` is the base of what it gives."""

    @staticmethod
    def from_pretrained(
        model: str | Path,
        name: str | None = None,
        *,
        subfolder: str = "scheduler",
        revision: str | None = None,
        **options: Any,
    ) -> schedulers.Scheduler:
        """A model's own scheduler, or for its noise schedule the one with another `name`.

        Args:
            name, options: as for `schedulers.build_scheduler`.

        Raises:
            PareError: as `load_model` and `build_scheduler`.
        """
        check_subfolder("scheduler", subfolder)
        config, where = scheduler_config(resolve_model(model, revision=revision))
        return schedulers.build_scheduler(config, where, name, **options)
