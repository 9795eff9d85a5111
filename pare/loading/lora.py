"""Applies LoRA files to a model: twins of its UNet and text encoder, which share its weights.

    lora = load_lora(path)                                           (pare.loading.lora_file)
    unet, text_encoder = with_lora(unet, text_encoder, lora, LoraWeights(0.8, {"mid": 0}), "roads")

Every layer that the file changes gets a twin that adds the change to its output
(`pare.loading.lora_layers`).  No weight of the model is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pare.errors import ModelError, WeightsError
from pare.loading.ldm_names import unet_name
from pare.loading.lora_file import WIDTHS, LoraFile, flat, make_change, shape_of_layer
from pare.loading.lora_layers import ADAPTABLE, AnyLayer, WeightChange, adapted, merged_weight
from pare.runtime.module_copies import with_layers
from pare.runtime.validation import check_lora_weights
from pare.text.clip import TextEncoder
from pare.unet import UNet

OLD_TEXT_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""The text encoder's projections in diffusers' files of 2023."""


@dataclass(frozen=True)
class LoraWeights:
    """How strongly a LoRA changes the model: everywhere, and other than that in some blocks.

    A block is `text` (the text encoder), `unet`, `in`, `time`, `down`, `mid`, `up` or `out`; one of
    the down or up blocks alone, `up.1`; or a resolution stage of the UNet, `stage.0` being the
    latents' own: down block, up block and, at the lowest, the middle.  Of the blocks that a layer
    is in, the one that is named last decides.
    """

    weight: float = 1.0
    """1 is as trained, 0 leaves the layer as it is; negative and larger values extrapolate."""
    blocks: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a SettingError for a number or a block that cannot be."""
        check_lora_weights(self.weight, self.blocks)

    def at(self, blocks: tuple[str, ...]) -> float:
        """The weight for a layer that is in those blocks."""
        named = [weight for block, weight in self.blocks.items() if block in blocks]
        return named[-1] if named else self.weight


@dataclass(frozen=True)
class Place:
    """A layer of the model that a LoRA may change."""

    network: str
    """"unet" or "text_encoder"."""
    path: str
    layer: AnyLayer
    blocks: tuple[str, ...]
    """The names of the blocks that it is in, see `LoraWeights`."""


def with_lora(
    unet: UNet, text_encoder: TextEncoder, file: LoraFile, weights: LoraWeights, model: str
) -> tuple[UNet, TextEncoder]:
    """Twins of the two networks under a LoRA; those given are unchanged.

    Args:
        model: its name, for messages.

    Raises:
        ModelError: the LoRA is for another base model.
        WeightsError: it changes layers that the model lacks, or does not fit them.
        SettingError: weights that cannot be.
    """
    weights.check()
    changes = changes_of(unet, text_encoder, file, weights, model)
    layers: dict[str, dict[str, nn.Module]] = {"unet": {}, "text_encoder": {}}
    for place, change in changes:
        layers[place.network][place.path] = adapted(place.layer, [change])
    return (
        with_layers(unet, layers["unet"]) if layers["unet"] else unet,
        with_layers(text_encoder, layers["text_encoder"])
        if layers["text_encoder"]
        else text_encoder,
    )


def changes_of(
    unet: UNet,
    text_encoder: nn.Module,
    file: LoraFile,
    weights: LoraWeights,
    model: str,
    weight_of: Callable[[Place], Tensor] = lambda place: place.layer.weight,
) -> list[tuple[Place, WeightChange]]:
    """Every layer that the LoRA changes at these weights, and its change in the layer's dtype.

    Args:
        weight_of: a layer's weight, where the modules are on the meta device.
    """
    check_base(unet, file, model)
    places = places_by_name(unet, text_encoder)
    unknown = sorted(set(file.layers) - set(places))
    if unknown:
        listed = [f"  {name}" for name in unknown[:20]]
        more = [f"  … and {len(unknown) - 20} more"] if len(unknown) > 20 else []
        raise WeightsError(
            f"{file.path} changes {len(unknown)} of its {len(file.layers)} layers that {model} "
            "does not have",
            table=[*listed, *more],
        )
    seen: dict[tuple[str, str], str] = {}
    changes = []
    for name in file.layers:
        place = places[name]
        other = seen.setdefault((place.network, place.path), name)
        if other != name:
            raise WeightsError(f"{file.path} changes one layer twice, as {other} and {name}")
        strength = weights.at(place.blocks)
        if strength:
            weight, is_text = weight_of(place), place.network == "text_encoder"
            change = make_change(file, name, weight, strength, text=is_text)
            changes.append((place, change.to(weight.device, weight.dtype)))
    return changes


def check_base(unet: UNet, file: LoraFile, model: str) -> None:
    """Raise a ModelError if the cross-attention that the LoRA changes reads other text."""
    width, ours = file.text_width, unet.config.cross_attention_dim
    if width not in (None, ours):
        trained = WIDTHS.get(width or 0, f"a model whose text embeddings have {width} numbers")
        raise ModelError(
            f"{file.path} was trained for {trained}",
            expected=f"a LoRA for {WIDTHS.get(ours, 'a model')} like {model}, whose text "
            f"embeddings have {ours} numbers",
        )


def bake(
    unet: UNet,
    text_encoder: nn.Module,
    stored: Mapping[str, Mapping[str, Tensor]],
    loras: Iterable[tuple[LoraFile, LoraWeights]],
    model: str,
) -> dict[str, dict[str, Tensor]]:
    """A model's tensors with LoRA files added to the weights, W' = W + delta.

    Args:
        unet, text_encoder: the networks, which may be on the meta device.
        stored: their tensors, by the names "unet" and "text_encoder"; of a model without one of
            them {}.

    Raises:
        ModelError, WeightsError, SettingError: as `with_lora`.
    """
    found = {part: dict(tensors) for part, tensors in stored.items()}

    def name_of(place: Place, leaf: str) -> str:
        bare = f"{place.path.removeprefix('text_model.')}.{leaf}"
        named = (bare, f"text_model.{bare}")
        return next((name for name in named if name in stored.get(place.network, {})), "")

    def weight_of(place: Place) -> Tensor:
        name = name_of(place, "weight")
        if not name:
            raise ModelError(f"{model} has no {place.path}, which the LoRA changes")
        return stored[place.network][name]

    together: dict[tuple[str, str], tuple[Place, list[WeightChange]]] = {}
    for file, weights in loras:
        weights.check()
        for place, change in changes_of(unet, text_encoder, file, weights, model, weight_of):
            entry = together.setdefault((place.network, place.path), (place, []))
            entry[1].append(change.float())
    for place, changes in together.values():
        tensors = found[place.network]
        tensors[name_of(place, "weight")] = merged_weight(weight_of(place), changes)
        biases = [change.bias for change in changes if change.bias is not None]
        bias = name_of(place, "bias")
        if biases and not bias:
            raise WeightsError(f"{place.path} of {model} has no bias, and the LoRA changes it")
        if biases:
            tensors[bias] = (tensors[bias].float() + sum(biases)).to(tensors[bias].dtype)
    return found


# --- the model's layers, by the names that files have for them -----------------------------


def places_by_name(unet: UNet, text_encoder: nn.Module) -> dict[str, Place]:
    """Every layer that a LoRA may change, by each flat name that files have for it."""
    places: dict[str, Place] = {}
    for path, layer in unet.named_modules():
        if isinstance(layer, ADAPTABLE):
            place = Place("unet", path, layer, unet_blocks(path, len(unet.down_blocks)))
            in_one_file = unet_name(f"{path}.weight", unet.config).removesuffix(".weight")
            for name in (path, path.removesuffix(".0"), in_one_file):
                places[flat(name)] = place
    for path, layer in text_encoder.named_modules():
        if isinstance(layer, ADAPTABLE):
            bare = path.removeprefix("text_model.")
            stem, _, leaf = bare.rpartition(".")
            names = [bare, f"{stem}.{OLD_TEXT_NAMES.get(leaf, leaf)}"]
            for name in names:
                place = Place("text_encoder", path, layer, ("text",))
                places[flat(name)] = places[flat(f"text_model.{name}")] = place
    return places


ENDS = {"conv_in": "in", "conv_out": "out", "time_embedding": "time"}


def unet_blocks(path: str, stages: int) -> tuple[str, ...]:
    """The blocks that a layer of a UNet with that many stages is in, see `LoraWeights`."""
    first, number, *_ = [*path.split("."), ""]
    match first:
        case "down_blocks":
            return ("unet", "down", f"down.{number}", f"stage.{number}")
        case "up_blocks":  # they count from the lowest resolution
            return ("unet", "up", f"up.{number}", f"stage.{stages - 1 - int(number)}")
        case "mid_block":
            return ("unet", "mid", f"stage.{stages - 1}")
    return ("unet", ENDS[first])


# --- what a file changes ------------------------------------------------------------------


@dataclass(frozen=True)
class LayerChange:
    """A layer that a file changes, and by how much."""

    name: str
    """As in the file, without dots."""
    kind: str
    """"LoRA", "LoHa", "LoKr", "DoRA" or "full"."""
    rank: int | None
    norm: float
    """The Frobenius norm of the delta, alpha included."""


def describe_layers(file: LoraFile) -> Iterator[LayerChange]:
    """Each layer of a file, without a model.  Of DoRA the norm is that of the delta inside."""
    for name, parts in file.layers.items():
        shape = shape_of_layer(parts)
        kind = kind_of(parts)
        if shape is None:
            yield LayerChange(name, kind, None, 0.0)
            continue
        bare = {k: v for k, v in parts.items() if not k.startswith("magnitude") and k != "bias"}
        weight = torch.empty(shape, device="meta")
        inner = LoraFile(file.path, {name: bare}, file.scalings)
        is_text = re.search(r"(^|_)encoder_layers_", name) is not None
        change = make_change(inner, name, weight, 1.0, text=is_text)
        low = next((parts[p] for p in ("down", "w1_b", "k1_b", "k2_b") if p in parts), None)
        rank = None if low is None else low.shape[0]
        yield LayerChange(name, kind, rank, change.norm(weight))


def kind_of(parts: Mapping[str, object]) -> str:
    if any(part.startswith("magnitude") for part in parts):
        return "DoRA"
    if "down" in parts:
        return "LoRA"
    if "w1_a" in parts:
        return "LoHa"
    return "LoKr" if any(part.startswith("k") for part in parts) else "full"
