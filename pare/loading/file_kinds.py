"""Recognises the kind of a weight file by the names of its tensors.

A checkpoint of Stable Diffusion 1.x / 2.x has a UNet, a VAE and a text encoder.  Other files
(another model, a LoRA, a ControlNet) are refused, and the message says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pare.errors import ModelError, SettingError
from pare.loading.checkpoint import Checkpoint
from pare.loading.ldm_names import Shapes

# A tensor that every file with the part has, and what may stand before its name.
LANDMARKS = {
    "unet": ("input_blocks.0.0.weight", ("model.diffusion_model.", "")),
    "vae": ("encoder.down.0.block.0.conv1.weight", ("first_stage_model.", "")),
    "clip": (
        "embeddings.token_embedding.weight",
        ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
    ),
    "open_clip": ("token_embedding.weight", ("cond_stage_model.model.",)),
}

# What a file is if it has a tensor whose name matches, the surest signs first.
OTHER_MODELS = (
    (r"(lora_(unet|te)|.*\.(lora_|hada_|lokr_|oft_))", "a LoRA: a change to a model, not a model"),
    (r"(control_model\.|input_hint_block\.|controlnet_cond_embedding\.)", "a ControlNet"),
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r".*\bjoint_blocks\.", "Stable Diffusion 3"),
    (r".*\bdouble_blocks\.", "Flux"),
    (r".*motion_modules\.", "an AnimateDiff motion module"),
    (r".*\.fuser\.", "a GLIGEN model"),
    (r"(ip_adapter|image_proj)\.", "an IP-Adapter"),
    (r"(emb_params|string_to_param|clip_[lg])$", "a textual-inversion embedding"),
    (r"model\.diffusion_model\.label_emb\.0\.0\.", "Stable Diffusion XL or unCLIP"),
    (r"label_emb\.0\.0\.", "Stable Diffusion XL's or unCLIP's UNet"),
    (r"(model\.diffusion_model\.)?label_emb\.weight", "the x4 upscaler"),
    (r"(embedder|cc_projection)\.", "a model that is conditioned on images"),
    (r"(clip_txt_mapper|.*\bchannelwise)\b", "Stable Cascade"),
    (r"(encoder\.block\.0\.layer\.0\.SelfAttention|model\.layers\.\d+\.self_attn)\.",
     "a language model"),
    (r"(conv_first|body\.0\.rdb1|model\.0\.weight|params_ema)", "an image upscaler"),
    (r"vision_model\.|visual\.", "a CLIP image encoder"),
    (r"(down_blocks\.0\.resnets|mid_block\.attentions)\.",
     "the UNet of a model's folder on the Hub; name the folder"),
    (r"(en|de)coder\.mid_block\.", "the VAE of a model's folder on the Hub; name the folder"),
    (r"(text_model\.)?(embeddings|encoder\.layers)\.",
     "the text encoder of a model's folder on the Hub; name the folder"),
)  # fmt: skip


def find_prefix(shapes: Shapes, part: str) -> str | None:
    landmark, prefixes = LANDMARKS[part]
    return next((prefix for prefix in prefixes if prefix + landmark in shapes), None)


def check_kind(
    checkpoint: Checkpoint, prefixes: Mapping[str, str | None], only: str | None
) -> None:
    """Raise a ModelError that says what the file is, unless it is Stable Diffusion 1.x / 2.x."""
    path, shapes = checkpoint.path, checkpoint.shapes
    if only is not None and only not in ("unet", "vae"):
        raise SettingError(f"`only` is {only!r}", expected="unet or vae")
    what = name_model([*shapes, *checkpoint.extras])
    embedding = len(shapes) <= 2 and all(len(shape) <= 2 for shape in shapes.values())
    if what is None and embedding and prefixes["unet"] is None and shapes:
        what = "a textual-inversion embedding"
    if what is None and (*shapes.get("decoder.conv_in.weight", ()), 0, 0)[1] == 16:
        what = "Flux's or Stable Diffusion 3's VAE"
    if what is not None:
        raise ModelError(f"{path} is {what}", expected="a Stable Diffusion 1.x or 2.x checkpoint")
    text = prefixes["clip"] is not None or prefixes["open_clip"] is not None
    found = {"unet": prefixes["unet"] is not None, "vae": prefixes["vae"] is not None,
             "text encoder": text}  # fmt: skip
    if only is not None and found[only]:
        return
    missing = [part for part, there in found.items() if not there]
    if not missing:
        return
    if len(missing) == 3:
        some = ", ".join(sorted(shapes)[:3]) or "none"
        raise ModelError(
            f"{path} is no model that pare knows ({len(shapes)} tensors: {some} …)",
            expected="a Stable Diffusion 1.x or 2.x checkpoint",
        )
    has = " and ".join(part for part, there in found.items() if there)
    raise ModelError(
        f"{path} has a {has} and no {' and no '.join(missing)}",
        expected="a whole model",
        fix="convert a UNet or a VAE alone with `pare convert --only unet` or `--only vae`",
    )


def name_model(names: Iterable[str]) -> str | None:
    """What a file with these tensors is, if it is one of `OTHER_MODELS`."""
    listed = list(names)
    for pattern, words in OTHER_MODELS:
        match = re.compile(pattern).match
        if any(match(name) for name in listed):
            return words
    return None
