"""Renaming of tensors on the Hub: names in older files to today's.

pare's modules have today's names (`pare.unet`, `pare.vae`), so that most files need no
renaming.  Three things have changed over the years:

    the VAE's attention      `query, key, value, proj_attn` until 2023
    the text encoder         with or without `text_model.` in front
    position_ids             the numbers 0 to 76, no weight, in old text encoders' files
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container

LEGACY_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The projections of the VAE's attention: before 2023 -> today."""

POSITION_IDS = "text_model.embeddings.position_ids"

Rename = Callable[[str, Container[str]], str | None]
"""(a name in a file, all names that the module has) -> the module's name; None: not needed."""


def same_name(name: str, wanted: Container[str]) -> str | None:
    return name


def vae_name(name: str, wanted: Container[str]) -> str | None:
    """`….query.weight` -> `….to_q.weight`, if the VAE has it."""
    today = current_vae_name(name)
    return today if today in wanted else name


def current_vae_name(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    parent, _, layer = path.rpartition(".")
    return (
        f"{parent}.{LEGACY_VAE_ATTENTION[layer]}.{leaf}" if layer in LEGACY_VAE_ATTENTION else name
    )


def legacy_vae_name(name: str) -> str:
    """`….attentions.0.to_q.weight` -> `….attentions.0.query.weight`"""
    for old, new in LEGACY_VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def text_name(name: str, wanted: Container[str]) -> str | None:
    """A text encoder's name with or without the prefix, as the module has it."""
    bare = name.removeprefix("text_model.")
    if f"text_model.{bare}" == POSITION_IDS:
        return None
    return next((n for n in (bare, f"text_model.{bare}") if n in wanted), name)


RENAMES: dict[str, Rename] = {"unet": same_name, "vae": vae_name, "text_encoder": text_name}
"""The renaming function of each part of a folder."""


def own_names(stored: Collection[str], wanted: Container[str], rename: Rename) -> dict[str, str]:
    """The module's name of each tensor in a file -> the file's."""
    keys: dict[str, str] = {}
    for key in stored:
        name = rename(key, wanted)
        if name is not None:
            # Where the file has both, the old name stays what it is: unexpected.
            keys[key if name in stored else name] = key
    return keys
