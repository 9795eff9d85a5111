"""What a LoRA file changes: its base, its layers and their norms, and what training noted in it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pare.errors import ModelError, WeightsError
from pare.loading.lora import LayerChange, describe_layers
from pare.loading.lora_file import WIDTHS, LoraFile, load_lora

# What kohya's scripts write into safetensors' metadata, `ss_` in front, and what it is.
KOHYA = {
    "output_name": "name", "sd_model_name": "trained on", "base_model_version": "base",
    "network_module": "network", "network_dim": "rank", "network_alpha": "alpha",
    "num_train_images": "images", "num_epochs": "epochs", "steps": "steps",
    "learning_rate": "learning rate", "unet_lr": "UNet's", "text_encoder_lr": "text encoder's",
    "clip_skip": "CLIP skip", "resolution": "resolution", "training_comment": "comment",
}  # fmt: skip
TAGS = "ss_tag_frequency"
MOST_TAGS = 12
LONGEST_TAGS = 2**22
"""Characters of the table of tags that are read."""
DEPTH = 4
BLOCK = re.compile(
    r"(?P<kind>down|up|input|output)_blocks_(?P<number>\d+)|mid(dle)?_block|.*encoder_layers"
)


@dataclass(frozen=True)
class LoraSummary:
    """A LoRA file at a glance."""

    base: str
    """The base model that it was trained for, by the width of the text that it reads."""
    layers: tuple[LayerChange, ...]
    training: Mapping[str, str]
    """What kohya's scripts noted."""
    tags: Mapping[str, int]
    """The most frequent tags of the training's captions."""

    @property
    def kinds(self) -> dict[str, int]:
        return dict(Counter(layer.kind for layer in self.layers))

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for layer in self.layers if layer.rank is not None})

    @property
    def blocks(self) -> dict[str, list[LayerChange]]:
        """The layers by the part of the model that they are in."""
        grouped: dict[str, list[LayerChange]] = {}
        for layer in self.layers:
            grouped.setdefault(block_of(layer.name), []).append(layer)
        return grouped


def summarise_lora(path: Path) -> LoraSummary | None:
    """The LoRA in a file; None if it holds none, or one that cannot be read."""
    try:
        file = load_lora(path)
        layers = tuple(describe_layers(file))
    except (ModelError, WeightsError):
        return None
    training = {
        words: file.metadata[f"ss_{key}"][:200]
        for key, words in KOHYA.items()
        if file.metadata.get(f"ss_{key}") not in (None, "None", "")
    }
    return LoraSummary(base_of(file), layers, training, frequent_tags(file.metadata.get(TAGS, "")))


def base_of(file: LoraFile) -> str:
    width = file.text_width
    if width is None:
        return ""
    return WIDTHS.get(width, f"a model whose text embeddings have {width} numbers")


def block_of(name: str) -> str:
    """`up_blocks_1_attentions_0_…` -> `up.1`; as LDM counts them, `output_blocks_3`."""
    match = BLOCK.match(name)
    if match is None:
        return "other"
    if match["kind"] in ("down", "up"):
        return f"{match['kind']}.{match['number']}"
    if match["kind"]:
        return match[0]
    return "mid" if match[0].startswith("mid") else "text"


def frequent_tags(text: str) -> dict[str, int]:
    """kohya's table {folder: {tag: count}}, all folders together."""
    try:
        raw = json.loads(text) if text and len(text) <= LONGEST_TAGS else {}
    except (ValueError, RecursionError):
        return {}
    counts: Counter[str] = Counter()
    for inner in raw.values() if isinstance(raw, dict) else ():
        for tag, count in inner.items() if isinstance(inner, dict) else ():
            if isinstance(count, int) and abs(count) < 2**31:
                counts[str(tag)[:80]] += count
    return dict(counts.most_common(MOST_TAGS))


def joint_norm(layers: Sequence[LayerChange]) -> float:
    """The Frobenius norm of several deltas together."""
    return math.sqrt(sum(layer.norm**2 for layer in layers))
