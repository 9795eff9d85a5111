"""Prompts to embeddings: the tokenizer and CLIP's text encoder, both from transformers.

The UNet never sees words.  It sees 77 vectors a prompt, one a token, and every pixel's
cross-attention chooses among them (`pare.attention`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.settings import check_prompt

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class PromptTruncated(UserWarning):
    """A prompt was longer than the text encoder's 77 tokens: its end has no effect."""


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the UNet reads: the prompts, and what guidance steers away from."""

    cond: Tensor
    """(B, 77, C)"""
    uncond: Tensor
    """(B, 77, C): the negative prompts, "" where there is none."""

    def __len__(self) -> int:
        return self.cond.shape[0]


@torch.no_grad()
def encode(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> Tensor:
    """Prompts -> embeddings (B, 77, C): the encoder's last hidden state, normed.

    Warns:
        PromptTruncated: a prompt does not fit; the warning shows what was cut.

    Raises:
        PromptError: a prompt that is no text, or far too long.
    """
    length = text_encoder.config.max_position_embeddings
    ids = tokenize(tokenizer, [check_prompt(prompt) for prompt in prompts], length)
    embeddings: Tensor = text_encoder(ids.to(text_encoder.device)).last_hidden_state
    return embeddings


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int = 77) -> Tensor:
    """Prompts -> token ids (B, length), padded as the tokenizer pads (SD 1 and 2 differ)."""
    for prompt in prompts:
        warn_if_truncated(tokenizer, prompt, length)
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def warn_if_truncated(tokenizer: CLIPTokenizer, prompt: str, length: int) -> None:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    room = length - 2  # start and end of text
    if len(ids) > room:
        cut = tokenizer.decode(ids[room:]).strip()
        shown = cut if len(cut) <= 80 else cut[:79] + "…"
        warnings.warn(
            f"the prompt has {len(ids)} tokens and the text encoder reads {room}: cut {shown!r}",
            PromptTruncated,
            stacklevel=2,
        )


def paired(prompts: Sequence[str], negative: str | Sequence[str]) -> list[str]:
    """One negative prompt a prompt.

    Raises:
        SettingError: several negative prompts, and not as many as prompts.
    """
    if isinstance(negative, str):
        return [negative] * len(prompts)
    if len(negative) != len(prompts):
        raise SettingError(
            f"{len(negative)} negative prompts are given for {len(prompts)} prompts",
            expected="one, or one a prompt",
        )
    return list(negative)
