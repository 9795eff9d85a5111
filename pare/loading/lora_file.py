"""Reads LoRA files: which layer each tensor belongs to, and what it is there.

    lora_unet_down_blocks_0_…_attn1_to_q.lora_down.weight      kohya, LyCORIS, the web UIs
    unet.down_blocks.0.….attn1.to_q.lora_A.weight              diffusers today
    down_blocks.0.….attn1.processor.to_q_lora.down.weight      diffusers in 2023
    text_encoder.….q_proj.lora_linear_layer.down.weight        the same, of the text encoder
    base_model.model.down_blocks.0.….to_q.lora_A.weight        peft

Layers are compared by their names without dots (`flat`), as kohya's have none.  No code in a
file is run (`pare.loading.checkpoint`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pare.errors import ModelError, WeightsError
from pare.loading.checkpoint import FLOATING, open_checkpoint, stored_dtype
from pare.loading.lora_layers import (
    Decomposed,
    Full,
    Hadamard,
    Kronecker,
    LowRank,
    WeightChange,
)

# How a tensor's name ends -> what it is to its layer.
PARTS = {
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_B.bias": "bias",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "alpha": "alpha", "dora_scale": "magnitude_of_either",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b",
    "hada_t1": "t1", "hada_t2": "t2",
    "lokr_w1": "k1", "lokr_w1_a": "k1_a", "lokr_w1_b": "k1_b",
    "lokr_w2": "k2", "lokr_w2_a": "k2_a", "lokr_w2_b": "k2_b", "lokr_t2": "kt2",
    "diff": "full", "diff_b": "bias",
}  # fmt: skip
NAME = re.compile(
    r"(?P<layer>.{1,400}?)[._](?P<part>"
    + "|".join(sorted((re.escape(part) for part in PARTS), key=len, reverse=True))
    + ")"
)
ADAPTER = re.compile(r"\.(lora_(?:A|B|magnitude_vector)|hada_\w+|lokr_\w+)\.(?:default|adapter_\d)")
"""peft's name of an adapter inside a tensor's name."""
PREFIXES = ("base_model.model.", "lora_unet_", "lora_te_", "lycoris_", "unet.", "text_encoder.")

# Files for other models, by their tensors' names, and for what else there is.
OTHER_BASES = (
    (r"lora_te[12]_|text_encoder_2\.|.*transformer_blocks[._][1-9]", "Stable Diffusion XL"),
    (r".*(double_blocks|single_transformer_blocks|single_blocks)", "Flux"),
    (r".*joint_blocks|(lora_)?transformer[._]", "a diffusion transformer (Stable Diffusion 3 …)"),
    (r".*motion_modules", "AnimateDiff"),
    (r"(base_model\.model\.)?model[._]layers[._]\d+[._](self_attn|mlp)", "a language model"),
)
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""The width of the text embeddings that cross-attention reads -> the base model."""

CONFIG = "adapter_config.json"
CONFIG_KEY = "lora_adapter_metadata"
LARGEST_CONFIG = 2**20
LARGEST_ALPHA = 1e6


@dataclass(frozen=True)
class Scaling:
    """Alpha and rank where tensors do not say them: peft's config."""

    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Those of single layers, by the ends of their names."""
    ranks: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    """alpha / sqrt(r), arXiv:2312.03732."""

    def of(self, layer: str, rank: int | None) -> float:
        """What multiplies the delta of a layer by its flat name; `rank` as the tensors have it."""
        alpha = pattern(self.alphas, layer, self.alpha)
        given = pattern(self.ranks, layer, self.rank) if rank is None else rank
        if alpha is None or not given:
            return 1.0
        return alpha / (math.sqrt(given) if self.rank_stabilised else given)


def pattern(values: Mapping[str, float], layer: str, otherwise: float | None) -> float | None:
    return next((v for end, v in values.items() if f"_{layer}".endswith(f"_{end}")), otherwise)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as a file holds it, not fitted to a model yet."""

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]
    """Flat name of a layer, see `flat` -> its tensors, by the values of `PARTS`."""
    scalings: tuple[Scaling, Scaling] = (Scaling(), Scaling())
    """Of the UNet's layers and the text encoder's, where no alpha is stored."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        return sum(map(len, self.layers.values()))

    @property
    def text_width(self) -> int | None:
        """The width of the text embeddings that its cross-attention layers read; None if the file
        has no such layer."""
        for name, parts in self.layers.items():
            matrix = parts.get("down", parts.get("full"))
            if re.search(r"attn2_to_[kv]$", name) and matrix is not None and matrix.ndim >= 2:
                return matrix.shape[1]
        return None


def flat(name: str) -> str:
    """A layer's name as kohya has it: `mid_block.attentions.0.proj_in` -> `mid_block_…_proj_in`."""
    return name.replace(".", "_")


def load_lora(path: Path) -> LoraFile:
    """Open a LoRA's file, or the folder in which diffusers or peft saved it.

    Raises:
        ModelError: the file is something else, or is for another kind of model.
        WeightsError: it is damaged, or changes layers in a way that is not supported.
        OSError: it cannot be opened.
    """
    path = weights_file(path)
    file = open_checkpoint(path)
    layers: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in file.tensors.items():
        match = NAME.fullmatch(ADAPTER.sub(r".\1", name))
        if match is None:
            strange.append(name)
            continue
        parts = layers.setdefault(layer_name(match["layer"]), {})
        part = PARTS[match["part"]]
        if part in parts:
            raise WeightsError(f"{path} holds {name[:120]!r} twice, under two names")
        if stored_dtype(tensor) not in FLOATING and part != "alpha":
            raise WeightsError(f"{path} holds {name[:120]} as {stored_dtype(tensor)}")
        parts[part] = tensor
    refuse_other_bases(path, list(file.tensors))
    if not layers or all(set(parts) <= {"alpha", "bias"} for parts in layers.values()):
        raise ModelError(
            f"{path} holds no LoRA ({len(file.tensors)} tensors: "
            f"{', '.join(name[:60] for name in sorted(file.tensors)[:3]) or 'none'} …)",
            expected="a LoRA of kohya's, diffusers' or peft's",
        )
    if strange:
        raise WeightsError(
            f"{path} holds {strange[0][:120]!r}, which no LoRA, LoHa or LoKr has",
            expected="low-rank changes of linear layers and convolutions",
        )
    texts = {str(k): str(v) for k, v in file.extras.items() if isinstance(v, str | int | float)}
    return LoraFile(path, layers, scalings(path, texts), texts)


def weights_file(path: Path) -> Path:
    """The file itself, or that of a folder.

    Raises:
        ModelError: a folder without one.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in HUB_FILES if (path / name).is_file()]
    if not found:
        raise ModelError(f"{path} is a folder without a LoRA", expected=" or ".join(HUB_FILES))
    return found[0]


HUB_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""Names of a LoRA's file in a folder, as diffusers and peft write it; the first is taken."""


def layer_name(name: str) -> str:
    """The flat name of a layer, without what says which network it is in."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return flat(name.replace(".processor.", ".").replace(".base_layer", ""))


def refuse_other_bases(path: Path, names: list[str]) -> None:
    for expression, base in OTHER_BASES:
        match = re.compile(expression).match
        if any(match(name) for name in names):
            raise ModelError(
                f"{path} was trained for {base}", expected="a LoRA for Stable Diffusion 1.x or 2.x"
            )


# --- alpha and rank -----------------------------------------------------------------------


def scalings(path: Path, texts: Mapping[str, str]) -> tuple[Scaling, Scaling]:
    """The scaling of the UNet's layers and of the text encoder's, from what lies around them."""
    config: object = {}
    beside = path.parent / CONFIG
    if CONFIG_KEY in texts:
        config = parse_config(texts[CONFIG_KEY], f"{path} ({CONFIG_KEY})")
    elif path.stem == "adapter_model" and beside.is_file():
        with beside.open("rb") as file:
            config = parse_config(file.read(LARGEST_CONFIG), str(beside))
        return (read_scaling(config, "", path),) * 2
    return read_scaling(config, "unet.", path), read_scaling(config, "text_encoder.", path)


def parse_config(text: str | bytes, where: str) -> object:
    try:
        if len(text) >= LARGEST_CONFIG:
            raise ValueError("it is too long")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} cannot be read ({str(error)[:100]})") from error


def read_scaling(config: object, prefix: str, path: Path) -> Scaling:
    """The part of a peft config that scales."""
    raw: dict[str, Any] = config if isinstance(config, dict) else {}
    values = {k.removeprefix(prefix): v for k, v in raw.items() if k.startswith(prefix)}

    def number(value: object) -> float | None:
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return check_alpha(float(value), path)
        raise WeightsError(f"{path} has a config whose alpha or rank is {str(value)[:40]!r}")

    def numbers(key: str) -> dict[str, float]:
        found = values.get(key) or {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {flat(str(name)): number(one) or 0.0 for name, one in pairs}

    return Scaling(
        number(values.get("lora_alpha", values.get("alpha"))),
        number(values.get("r")),
        numbers("alpha_pattern"),
        numbers("rank_pattern"),
        values.get("use_rslora") is True,
    )


def check_alpha(alpha: float, path: Path) -> float:
    if not abs(alpha) <= LARGEST_ALPHA:  # NaN, too
        raise WeightsError(f"{path} has an alpha of {alpha:g}")
    return alpha


# --- a layer's change ---------------------------------------------------------------------


def make_change(
    file: LoraFile, name: str, weight: Tensor, strength: float, *, text: bool
) -> WeightChange:
    """The change that a file has for a layer with that weight.

    Args:
        name: the layer's flat name.
        strength: multiplies the change.
        text: the layer is the text encoder's.

    Raises:
        WeightsError: the tensors do not fit together, or not to the weight.
    """
    parts = dict(file.layers[name])
    alpha = parts.pop("alpha", None)
    bias, magnitude = parts.pop("bias", None), parts.pop("magnitude", None)
    either = parts.pop("magnitude_of_either", None)
    shape = tuple(weight.shape)
    found = build(parts, shape) if parts or bias is not None else None
    if found is None:
        sizes = [f"{part} {'x'.join(map(str, t.shape))}" for part, t in parts.items()]
        raise WeightsError(
            f"{file.path} does not fit {name}, whose weight is {' x '.join(map(str, shape))} "
            f"({', '.join(sizes)})",
            fix="it may be for another model, or damaged",
        )
    if not all(map(finite, (*parts.values(), bias, magnitude, either))):
        raise WeightsError(f"{file.path} holds NaN or infinities in {name}", fix="get it again")
    change, rank = found
    if alpha is not None and alpha.numel() == 1:
        own = check_alpha(float(alpha), file.path)
        scale = own / rank if rank else 1.0
    elif alpha is not None:
        raise WeightsError(f"{file.path} has an alpha of {alpha.numel()} numbers in {name}")
    else:
        scale = file.scalings[text].of(name, rank)
    change.scale = scale * strength
    if bias is not None:
        if tuple(bias.shape) != shape[:1]:
            raise WeightsError(f"{file.path} has a bias of {tuple(bias.shape)} in {name}")
        change.bias = bias.float() * change.scale
    return decomposed(file, name, change, weight, magnitude, either)


def finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.float().isfinite().all())


def decomposed(
    file: LoraFile, name: str, change: WeightChange, weight: Tensor,
    magnitude: Tensor | None, either: Tensor | None,
) -> WeightChange:  # fmt: skip
    """The change, under DoRA's magnitudes if there are any.

    peft's are one for each output channel.  LyCORIS has one for each input channel by default:
    then they lie along the second axis.
    """
    vector = either if magnitude is None else magnitude
    if vector is None:
        return change
    outputs, inputs = weight.shape[:2]
    by_input = magnitude is None and tuple(vector.shape[:2]) == (1, inputs)
    if vector.numel() != (inputs if by_input else outputs):
        raise WeightsError(
            f"{file.path} has {vector.numel()} magnitudes in {name}",
            expected=f"{outputs}, one for each output channel",
        )
    bias, change.bias = change.bias, None
    whole = Decomposed(change, vector, weight, inputs=by_input)
    if bias is not None:
        whole.bias = bias
    return whole


def build(
    parts: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[WeightChange, int | None] | None:
    """A change from its tensors, and its rank; None if they do not fit a weight of that shape.

    Sizes are compared before anything is multiplied.
    """
    names = set(parts)
    for wanted, make in KINDS.items():
        if names == set(wanted):
            return make(parts, shape)
    return None


Made = tuple[WeightChange, int | None] | None


def low_rank(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Made:
    down, up, mid = parts["down"], parts["up"], parts.get("mid")
    rank = down.shape[0] if down.ndim >= 2 else 0
    inputs = math.prod(shape[1:] if mid is None else shape[1:2])
    between = rank if mid is None else (*mid.shape, 0)[0]
    if not rank or down.numel() != rank * inputs or up.numel() != shape[0] * between:
        return None
    if mid is not None and tuple(mid.shape) != (between, rank, *shape[2:]):
        return None
    ones = [1] * (len(shape) - 2)
    shaped = down.reshape(rank, *(shape[1:] if mid is None else (shape[1], *ones)))
    return LowRank(shaped, up.reshape(shape[0], between, *ones), mid, 1.0), rank


def hadamard(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Made:
    factors = [
        [parts[name] for name in (f"w{k}_a", f"w{k}_b", f"t{k}") if name in parts] for k in (1, 2)
    ]
    sizes = [product_shape(*some) for some in factors]
    flattened = (shape[0], math.prod(shape[1:]))
    if any(size not in (shape, flattened) for size in sizes) or sizes[0] != sizes[1]:
        return None
    return Hadamard(factors[0], factors[1], 1.0), parts["w1_b"].shape[0]


def kronecker(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Made:
    one = [parts[name] for name in ("k1", "k1_a", "k1_b") if name in parts]
    other = [parts[name] for name in ("k2", "k2_a", "k2_b", "kt2") if name in parts]
    small, large = product_shape(*one), product_shape(*other)
    if small is None or large is None or len(small) != 2:
        return None
    whole = (small[0] * large[0], small[1] * math.prod(large[1:]))
    if whole != (shape[0], math.prod(shape[1:])) or shape[1] % small[1]:
        return None
    low = parts.get("k1_b", parts.get("k2_b"))
    return Kronecker(one, other, 1.0), None if low is None else low.shape[0]


def full(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Made:
    difference = parts.get("full")
    if difference is not None and difference.numel() != math.prod(shape):
        return None
    return Full(difference, 1.0), None


def product_shape(
    a: Tensor, b: Tensor | None = None, core: Tensor | None = None
) -> tuple[int, ...] | None:
    """The shape of `lora_layers.product`; None where it cannot be made."""
    if b is None:
        return tuple(a.shape) if a.ndim >= 2 and a.numel() else None
    if a.ndim != 2 or b.ndim < 2 or not a.numel() or not b.numel():
        return None
    if core is None:
        return (a.shape[0], *b.shape[1:]) if b.ndim == 2 and a.shape[1] == b.shape[0] else None
    fits = core.ndim == 4 and b.ndim == 2 and tuple(core.shape[:2]) == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:]) if fits else None


KINDS: dict[tuple[str, ...], Callable[[Mapping[str, Tensor], tuple[int, ...]], Made]] = {
    ("down", "up"): low_rank,
    ("down", "up", "mid"): low_rank,
    ("w1_a", "w1_b", "w2_a", "w2_b"): hadamard,
    ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"): hadamard,
    **{
        (*one, *other): kronecker
        for one in (("k1",), ("k1_a", "k1_b"))
        for other in (("k2",), ("k2_a", "k2_b"), ("k2_a", "k2_b", "kt2"))
    },
    ("full",): full,
    (): full,
}
"""The tensors that a layer may have together."""


def shape_of_layer(parts: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """The shape of the weight that the tensors change, as far as they tell it: without a model, to
    show what a file holds."""
    names = set(parts)
    if "full" in names:
        return tuple(parts["full"].shape)
    if {"down", "up"} <= names and parts["down"].ndim >= 2 and parts["up"].ndim >= 2:
        kernel = parts.get("mid", parts["down"]).shape[2:]
        return (parts["up"].shape[0], parts["down"].shape[1], *kernel)
    if {"w1_a", "w1_b"} <= names:
        return product_shape(*(parts[n] for n in ("w1_a", "w1_b", "t1") if n in names))
    small, large = (
        [parts[name] for name in some if name in names]
        for some in (("k1", "k1_a", "k1_b"), ("k2", "k2_a", "k2_b", "kt2"))
    )
    one, other = (product_shape(*some) if some else None for some in (small, large))
    if one is None or other is None:
        return None
    return (one[0] * other[0], one[1] * other[1], *other[2:])
