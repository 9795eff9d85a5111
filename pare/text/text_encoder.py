"""Prompts to embeddings: the tokenizer and CLIP's text encoder, both from transformers.

The UNet gets 77 vectors a prompt, one a token: the keys and values of its cross-attention
(`pare.attention`).
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pare.config import HubConfig, Pin, integer, number, one_of
from pare.errors import ConfigError, SettingError
from pare.runtime.forked import check_forked
from pare.runtime.numerics import check_finite
from pare.runtime.validation import check_prompt, prompt_list

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class TextConfig(HubConfig):
    """The architecture of the text encoder: `text_encoder/config.json` (`CLIPTextModel`)."""

    vocab_size: int
    hidden_size: int
    """Width of the embeddings, the UNet's `cross_attention_dim`."""
    intermediate_size: int
    num_hidden_layers: int
    """12 for SD 1; 23 for SD 2, which leaves out the last of OpenCLIP's 24."""
    num_attention_heads: int
    max_position_embeddings: int
    """Tokens a prompt, its start and its end included: 77."""
    hidden_act: str
    layer_norm_eps: float
    bos_token_id: int
    eos_token_id: int
    """Where the encoder's pooled output is read, which Stable Diffusion does not use."""
    pad_token_id: int

    # What transformers' class meant by an absent key when SD 1 was published.
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }

    PINNED: ClassVar[Mapping[str, Pin]] = {
        "model_type": Pin(("clip_text_model",), "SD's text encoder is CLIP's alone"),
        "pruned_heads": Pin(({}, None), "SD's text encoder has all its heads"),
        "is_decoder": Pin((False,), "SD's text encoder writes no text"),
        "is_encoder_decoder": Pin((False,), "SD's text encoder writes no text"),
        "add_cross_attention": Pin((False,), "SD's text encoder sees text alone"),
        "quantization_config": Pin((None,), "pare reads plain numbers"),
    }
    # What transformers writes into the file of any model, over the years: how to train it, what
    # to return from a call, how to write text with it.  None of it changes the embeddings.
    UNUSED: ClassVar[frozenset[str]] = frozenset(
        """
        architectures attention_dropout dropout initializer_factor initializer_range
        projection_dim transformers_version name_or_path
        torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing
        attn_implementation auto_map chunk_size_feed_forward use_cache
        output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
        tie_word_embeddings tie_encoder_decoder cross_attention_hidden_size
        finetuning_task id2label label2id num_labels problem_type task_specific_params
        tokenizer_class prefix sep_token_id decoder_start_token_id
        max_length min_length do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
        no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
        forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
        """.split()  # noqa: SIM905 - one name a line would fill a screen
    )

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            integer(values, key, where, 1)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            integer(values, key, where, 0, values["vocab_size"] - 1)
        integer(values, "num_hidden_layers", where, 1, 1000)
        integer(values, "max_position_embeddings", where, 3, 1000)  # start, a token, end
        one_of(values, "hidden_act", where, ("quick_gelu", "gelu"))
        values["layer_norm_eps"] = number(values, "layer_norm_eps", where, 0, 1)
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ConfigError(
                f"{where} splits {values['hidden_size']} channels into "
                f"{values['num_attention_heads']} heads",
                expected="a number of heads that divides the width",
            )
        return values


class PromptTruncated(UserWarning):
    """A prompt was longer than the text encoder's 77 tokens: its end has no effect."""


class UnknownWords(UserWarning):
    """A prompt has words that do not occur in the captions that the model was trained on."""


WORDS_FILE = "tokenizer/words.txt"  # one a line, in a model's folder
MOST_WORDS = 1_000_000  # bytes of that file
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
WEIGHT = re.compile(r"\(([^():]*):[0-9.]+\)")  # as web interfaces write it: (car:1.3)


@dataclass(frozen=True)
class PromptEmbeddings:
    """Text embeddings of the prompts, and of the negative prompts for guidance."""

    cond: Tensor
    """(B, 77, C)"""
    uncond: Tensor
    """(B, 77, C): the negative prompts, "" where there is none."""

    def __len__(self) -> int:
        return self.cond.shape[0]

    def __getitem__(self, rows: slice) -> PromptEmbeddings:
        return PromptEmbeddings(self.cond[rows], self.uncond[rows])


@torch.no_grad()
def encode(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> Tensor:
    """Prompts -> embeddings (B, 77, C): the encoder's last hidden state, normed.

    Warns:
        PromptTruncated: a prompt does not fit; the warning shows what was cut.

    Raises:
        PromptError: a prompt that is no text, or far too long.
        NonFiniteError: the embeddings hold NaN or infinities.
    """
    check_forked()
    length = text_encoder.config.max_position_embeddings
    ids = tokenize(tokenizer, [check_prompt(prompt) for prompt in prompts], length)
    ids = ids.to(text_encoder.device)
    embeddings: Tensor = text_encoder(ids).last_hidden_state
    check_finite(
        "the text encoder's embeddings", embeddings, text_encoder, {}, lambda: text_encoder(ids)
    )
    return embeddings


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int = 77) -> Tensor:
    """Prompts -> token ids (B, length): start, the words, end, and padding to `length`.

    Start, end and padding are added here: a tokenizer that is asked to pad or truncate changes
    its own settings, which two runs in two threads may share.
    """
    words = {prompt: words_of(tokenizer, prompt, length - 2) for prompt in dict.fromkeys(prompts)}
    rows = []
    for prompt in prompts:
        row = [tokenizer.bos_token_id, *words[prompt], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))  # SD 1 and 2 differ
    return torch.tensor(rows)


def words_of(tokenizer: CLIPTokenizer, prompt: str, room: int) -> list[int]:
    """The ids of the prompt's tokens, at most `room`; a warning shows what is cut off."""
    return tokens_of(tokenizer, prompt, room)[0]


def tokens_of(
    tokenizer: CLIPTokenizer, prompt: str, room: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """`words_of`, and where in the prompt each token starts and ends."""
    # Not verbose: transformers would warn too, in terms of indexing errors.
    tokens = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = tokens.input_ids
    offsets: list[tuple[int, int]] = tokens.offset_mapping
    if len(ids) > room:
        warnings.warn(cut_off(len(ids), room, prompt[offsets[room][0] :]), stacklevel=4)
    return ids[:room], offsets[:room]


def cut_off(count: int, room: int, rest: str) -> PromptTruncated:
    """The warning for a prompt of `count` tokens where there is `room` for fewer."""
    cut = rest.strip()
    shown = cut if len(cut) <= 80 else cut[:79] + "…"
    return PromptTruncated(
        f"the prompt has {count} tokens and the text encoder reads {room}: {shown!r} is cut off"
    )


def known_words(folder: Path | str) -> frozenset[str] | None:
    """The words of the captions that a model was trained on, lower case; None if not listed.

    A tokenizer encodes any text and splits an unknown word into smaller pieces, so the words
    are listed in a file of their own, `tokenizer/words.txt`.  The built-in model has one;
    models that were trained on captions from the web have none.

    Args:
        folder: the model's (`pipe.source.path`).
    """
    path = Path(folder) / WORDS_FILE
    if not path.is_file() or path.stat().st_size > MOST_WORDS:
        return None
    return frozenset(path.read_text(encoding="utf-8", errors="replace").lower().split())


def unknown_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of the prompt that are not `known`, each once, in the prompt's order."""
    return [word for word in dict.fromkeys(WORD.findall(prompt.lower())) if word not in known]


def warn_of_unknown_words(prompts: Sequence[str], known: frozenset[str], model: str) -> None:
    """Warn about words of the prompts that `model` was not trained on."""
    text = " ".join(prompts)
    weighted = WEIGHT.search(text)
    if weighted:
        warnings.warn(
            f"{weighted[0]} is read as words: pare has no weights in prompts; `pare p2p --weight` "
            "scales the attention to a word",
            UnknownWords,
            stacklevel=3,
        )
    unknown = unknown_words(WEIGHT.sub(r"\1", text), known)
    if unknown:
        words = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        warnings.warn(
            f"{model} was never taught {words}; `pare inspect {shlex.quote(model)}` lists the "
            f"{len(known)} words that it knows",
            UnknownWords,
            stacklevel=3,
        )


def paired(prompts: Sequence[str], negative: str | Sequence[str]) -> list[str]:
    """One negative prompt per prompt.

    Raises:
        SettingError: several negative prompts, and not as many as prompts.
        PromptError: a negative prompt that is no text.
    """
    negatives = prompt_list(negative)
    if isinstance(negative, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise SettingError(
            f"{len(negatives)} negative prompts are given for {len(prompts)} prompts",
            expected="one, or one per prompt",
        )
    return negatives
