"""Stable Diffusion in one file: its tensors' names and shapes beside the Hub's.

The original training code (LDM, arXiv:2112.10752) put the whole model in one checkpoint:

    model.diffusion_model.…          the UNet
    first_stage_model.…              the VAE
    cond_stage_model.transformer.…   SD 1's text encoder: CLIP, as transformers names it
    cond_stage_model.model.…         SD 2's text encoder: OpenCLIP
    model_ema.…                      the UNet's moving average, with its dots removed

The Hub's layout has the same tensors under other names.  The tables map in one
direction, Hub to LDM: `unet_name`, `vae_place`, `open_clip_place`.  The other direction is
the same table read backwards, so that the two cannot disagree.

A single file has no config either.  `read_unet`, `read_vae` and `read_text` find the
architecture in the tensors' names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pare.config import UNetConfig
from pare.errors import WeightsError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Place:
    """Where a tensor of the Hub's layout lies in a single file."""

    name: str
    third: int | None = None
    """OpenCLIP keeps query, key and value in one tensor: 0, 1, 2 is which third."""
    convolution: bool = False
    """LDM's VAE holds attention's projections as 1x1 convolutions: (C, C, 1, 1)."""

    def shape(self, shape: Shape) -> Shape:
        """The shape in the file of a tensor that has `shape` on the Hub."""
        if self.third is not None:
            return (3 * shape[0], *shape[1:])
        return (*shape, 1, 1) if self.convolution else shape

    def take(self, stored: Tensor) -> Tensor:
        """The Hub's tensor, a view of the file's."""
        if self.third is not None:
            return stored.chunk(3)[self.third]
        if self.convolution and stored.ndim == 4:
            return stored[:, :, 0, 0]
        return stored


# --- the UNet -----------------------------------------------------------------------------

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
# LDM numbers the layers of its Sequentials, the SiLUs and the dropout between them included.
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_name(name: str, config: UNetConfig) -> str:
    """`down_blocks.0.resnets.1.norm1.weight` -> `input_blocks.2.0.in_layers.0.weight`.

    LDM counts blocks through all stages.  With n ResNets a stage (`layers_per_block`), a
    stage has n + 1 input blocks (the last one halves the resolution; block 0 is `conv_in`)
    and n + 1 output blocks, the last of which also doubles the resolution.  In a block,
    layer 0 is the ResNet and layer 1 the transformer.
    """
    per_stage = config.layers_per_block + 1
    match name.split("."):
        case ["down_blocks", stage, "resnets", k, layer, leaf]:
            block = 1 + int(stage) * per_stage + int(k)
            return f"input_blocks.{block}.0.{UNET_RESNET[layer]}.{leaf}"
        case ["down_blocks", stage, "attentions", k, *rest]:
            block = 1 + int(stage) * per_stage + int(k)
            return f"input_blocks.{block}.1.{'.'.join(rest)}"
        case ["down_blocks", stage, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(stage) + 1) * per_stage}.0.op.{leaf}"
        case ["mid_block", "resnets", k, layer, leaf]:
            return f"middle_block.{2 * int(k)}.{UNET_RESNET[layer]}.{leaf}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["up_blocks", stage, "resnets", k, layer, leaf]:
            return f"output_blocks.{int(stage) * per_stage + int(k)}.0.{UNET_RESNET[layer]}.{leaf}"
        case ["up_blocks", stage, "attentions", k, *rest]:
            return f"output_blocks.{int(stage) * per_stage + int(k)}.1.{'.'.join(rest)}"
        case ["up_blocks", stage, "upsamplers", "0", "conv", leaf]:
            block = (int(stage) + 1) * per_stage - 1
            # The transformer, where there is one, takes number 1.
            layer = "2" if config.up_block_types[int(stage)] == "CrossAttnUpBlock2D" else "1"
            return f"output_blocks.{block}.{layer}.conv.{leaf}"
    stem, _, leaf = name.rpartition(".")
    return f"{UNET_ENDS[stem]}.{leaf}"


def ema_name(name: str) -> str:
    """`input_blocks.0.0.weight` -> `model_ema.diffusion_modelinput_blocks00weight`."""
    return "model_ema." + f"diffusion_model.{name}".replace(".", "")


def read_unet(shapes: Shapes) -> dict[str, Any]:
    """The Hub's `unet/config.json` for an LDM UNet's tensors (names without the prefix).

    `sample_size` is SD 1's; `upcast_attention` is true for every model of SD 2's kind, as
    no tensor tells SD 2.1, which needs it, from SD 2.0, which it does not hurt.

    Raises:
        WeightsError: a tensor that would tell is not there, or the block counts disagree.
    """
    blocks = numbers(shapes, r"input_blocks\.(\d+)\.")
    per_stage = min(numbers(shapes, r"input_blocks\.(\d+)\.0\.op\.weight"), default=len(blocks))
    stages, rest = divmod(len(blocks), per_stage)
    if rest or per_stage < 2 or not 1 <= stages <= 8:
        raise WeightsError(
            f"the UNet has {len(blocks)} input blocks, the first to halve the resolution being "
            f"number {per_stage}",
            expected="the same number of blocks on every stage",
        )
    firsts = [1 + stage * per_stage for stage in range(stages)]
    widths = [shape_of(shapes, f"input_blocks.{i}.0.in_layers.2.weight", 4)[0] for i in firsts]
    down = [f"input_blocks.{i}.1.norm.weight" in shapes for i in firsts]
    up = [f"output_blocks.{k * per_stage}.1.norm.weight" in shapes for k in range(stages)]
    # SD 1 enters its transformers by a 1x1 convolution and has 8 heads on every stage;
    # SD 2 enters by a linear layer and has heads of width 64.
    linear = len(shape_of(shapes, "middle_block.1.proj_in.weight")) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": [max(1, width // 64) for width in widths] if linear else 8,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": shape_of(
            shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2
        )[1],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in down],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shape_of(shapes, "input_blocks.0.0.weight", 4)[1],
        "layers_per_block": per_stage - 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": shape_of(shapes, "out.2.weight", 4)[0],
        "sample_size": 64,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in up],
        "upcast_attention": linear,
        "use_linear_projection": linear,
    }


# --- the VAE ------------------------------------------------------------------------------

VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_place(name: str, stages: int) -> Place:
    """`decoder.up_blocks.0.resnets.2.conv1.bias` -> `decoder.up.3.block.2.conv1.bias`.

    LDM numbers the decoder's stages as the encoder's, by resolution: the decoder starts at
    the last one.
    """
    match name.split("."):
        case [half, ("down_blocks" | "up_blocks") as way, stage, kind, k, layer, leaf]:
            number = int(stage) if way == "down_blocks" else stages - 1 - int(stage)
            stem = f"{half}.{way.removesuffix('_blocks')}.{number}"
            if kind == "resnets":
                return Place(f"{stem}.block.{k}.{vae_resnet(layer)}.{leaf}")
            return Place(f"{stem}.{kind.removesuffix('rs')}.conv.{leaf}")
        case [half, "mid_block", "resnets", k, layer, leaf]:
            return Place(f"{half}.mid.block_{int(k) + 1}.{vae_resnet(layer)}.{leaf}")
        case [half, "mid_block", "attentions", "0", *layer, leaf]:
            kind = ".".join(layer)
            projection = kind != "group_norm" and leaf == "weight"
            return Place(f"{half}.mid.attn_1.{VAE_ATTENTION[kind]}.{leaf}", convolution=projection)
        case [half, "conv_norm_out", leaf]:
            return Place(f"{half}.norm_out.{leaf}")
    return Place(name)  # conv_in, conv_out, quant_conv, post_quant_conv


def vae_resnet(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


def read_vae(shapes: Shapes) -> dict[str, Any]:
    """The Hub's `vae/config.json` for an LDM VAE's tensors (names without the prefix).

    Raises:
        WeightsError: a tensor that would tell is not there.
    """
    stages = len(numbers(shapes, r"encoder\.down\.(\d+)\."))
    layers = len(numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\."))
    widths = [
        shape_of(shapes, f"encoder.down.{stage}.block.0.conv1.weight", 4)[0]
        for stage in range(stages)
    ]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "in_channels": shape_of(shapes, "encoder.conv_in.weight", 4)[1],
        "latent_channels": shape_of(shapes, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "out_channels": shape_of(shapes, "decoder.conv_out.weight", 4)[0],
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
    }


# --- the text encoder ---------------------------------------------------------------------

OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def open_clip_place(name: str) -> Place:
    """`text_model.encoder.layers.3.self_attn.k_proj.bias` ->

    the second third of `transformer.resblocks.3.attn.in_proj_bias`.
    """
    if name in OPEN_CLIP_ENDS:
        return Place(OPEN_CLIP_ENDS[name])
    _, _, _, number, *layer, leaf = name.split(".")
    block = f"transformer.resblocks.{number}"
    kind = ".".join(layer)
    if kind in FUSED:
        return Place(f"{block}.attn.in_proj_{leaf}", third=FUSED[kind])
    return Place(f"{block}.{OPEN_CLIP_LAYER[kind]}.{leaf}")


def read_text(shapes: Shapes, *, open_clip: bool) -> dict[str, Any]:
    """The Hub's `text_encoder/config.json` for a text encoder's tensors (without prefix).

    SD 2 reads OpenCLIP's last layer but one, and the Hub's files leave the last one out.
    Here too: if the file has OpenCLIP's head (`text_projection`) or all 24 layers of the
    ViT-H that SD 2 uses, the last layer does not count.

    Raises:
        WeightsError: a tensor that would tell is not there.
    """
    if open_clip:
        layers = len(numbers(shapes, r"transformer\.resblocks\.(\d+)\."))
        if "text_projection" in shapes or layers == 24:
            layers -= 1
        tokens, positions = "token_embedding.weight", "positional_embedding"
        wide = "transformer.resblocks.0.mlp.c_fc.weight"
    else:
        layers = len(numbers(shapes, r"text_model\.encoder\.layers\.(\d+)\."))
        tokens = "text_model.embeddings.token_embedding.weight"
        positions = "text_model.embeddings.position_embedding.weight"
        wide = "text_model.encoder.layers.0.mlp.fc1.weight"
    vocabulary, width = shape_of(shapes, tokens, 2)
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": shape_of(shapes, wide, 2)[0],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": shape_of(shapes, positions, 2)[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // 64),  # both CLIPs have heads of width 64
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": 512 if open_clip else width,
        "vocab_size": vocabulary,
    }


# --- reading an architecture off names and shapes -----------------------------------------


def numbers(shapes: Shapes, pattern: str) -> set[int]:
    """Every number that stands in the pattern's group in some tensor's name."""
    found = (re.match(pattern, name) for name in shapes)
    # More than three digits are no block of any model, and huge numbers take long to read.
    return {int(match[1]) for match in found if match and len(match[1]) <= 3}


def shape_of(shapes: Shapes, name: str, ndim: int | None = None) -> Shape:
    """The shape of a tensor that tells something about the architecture."""
    if name not in shapes:
        raise WeightsError(
            f"the file lacks {name}, which tells the architecture", fix="download it again"
        )
    if ndim is not None and len(shapes[name]) != ndim:
        raise WeightsError(f"{name} has the shape {shapes[name]}", expected=f"{ndim} dimensions")
    return shapes[name]
