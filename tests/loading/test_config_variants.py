"""Configs as people's folders have them: what diffusers loads and what pare loads is one model.

Each variant says what the plain config says in other words, or something that is used.  The same
weights, read under both, give the same bits.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from pare.config import UNetConfig, UnusedKeys, VAEConfig
from pare.errors import ConfigError
from pare.loading.model_configs import check_index, read_configs, scheduler_config_of
from pare.loading.modules import load_model
from pare.pipeline import Pipeline
from tests.random_models import TINY_UNET, TINY_VAE, normal, unet_pair, vae_pair
from tests.tiny_model import write_tiny_model

diffusers.utils.logging.set_verbosity_error()

# What a trainer's wrapper for the moving average leaves in a config.
EMA = {
    "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 100, "power": 0.6667,
    "update_after_step": 0, "use_ema_warmup": False,
}  # fmt: skip

OTHER_WORDS: list[dict[str, Any]] = [
    {"upcast_attention": None},
    {"use_linear_projection": None},
    {"dual_cross_attention": None},
    {"center_input_sample": None},
    {"class_embeddings_concat": None},
    {"upcast_attention": 0, "use_linear_projection": 0},
    {"act_fn": "swish"},
    {"act_fn": "SiLU"},
    {"layers_per_block": [1, 1]},
    {"cross_attention_dim": [12, 12]},
    {"attention_head_dim": [2, 2]},
    {"only_cross_attention": [False, False]},
    {"transformer_layers_per_block": [1, 1]},
    {"down_block_types": ["CrossAttnDownBlock2D", "UNetResDownBlock2D"]},
    {"mid_block_scale_factor": 1.0, "downsample_padding": 1, "norm_eps": 1e-5},
    {"sample_size": [8, 8]},
    {"flip_sin_to_cos": False},
    {"flip_sin_to_cos": None},
    {"freq_shift": 1},
    {"time_embedding_dim": 24},
    {"time_embedding_dim": 32},
    {"time_cond_proj_dim": 6},
    {"time_cond_proj_dim": 7},
]
WITHOUT_EFFECT: list[dict[str, Any]] = [
    EMA,
    {"dropout": 0.1},
    {"resnet_skip_time_act": True},
    {"resnet_out_scale_factor": 0.7},
    {"cross_attention_norm": "layer_norm"},
    {"mid_block_only_cross_attention": True},
    {"addition_time_embed_dim": 256},
    {"projection_class_embeddings_input_dim": 2816},
    {"gradient_checkpointing": True, "my_note": "fine-tuned"},
]


def same_output(variant: dict[str, Any]) -> None:
    ours, theirs = unet_pair({**TINY_UNET, **variant})
    x_t, text = normal(2, 4, 8, 8), normal(2, 77, 12, seed=2)
    for scale in (None, 7.5) if "time_cond_proj_dim" in variant else (None,):
        embedded = None
        if scale is not None:
            embed = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding
            embedded = embed(None, torch.tensor(scale - 1).repeat(2), variant["time_cond_proj_dim"])
        reference = theirs(x_t, 501, encoder_hidden_states=text, timestep_cond=embedded).sample
        assert torch.equal(ours(x_t, 501, text, guidance=scale), reference)


@pytest.mark.parametrize("variant", OTHER_WORDS, ids=str)
def test_a_unet_in_other_words(variant: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedKeys)
        same_output(variant)


@pytest.mark.parametrize("variant", WITHOUT_EFFECT, ids=str)
def test_keys_without_effect_on_a_unet(variant: dict[str, Any]) -> None:
    with pytest.warns(UnusedKeys, match=next(iter(variant))):
        same_output(variant)
    with pytest.raises(ConfigError):
        UNetConfig.read({**TINY_UNET, **variant}, "the file", strict=True)


@pytest.mark.parametrize(
    "variant",
    [
        {"act_fn": "swish"},
        {"force_upcast": None},
        {"sample_size": [16, 16]},
        {"norm_num_groups": 2},
        {"use_quant_conv": True, "mid_block_add_attention": 1},
        EMA,
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        {"shift_factor": 0.1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::pare.config.UnusedKeys")
def test_a_vae_in_other_words(variant: dict[str, Any]) -> None:
    ours, theirs = vae_pair({**TINY_VAE, **variant})
    latents, image = normal(1, 4, 4, 4), normal(1, 3, 16, 16)
    assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)
    assert torch.equal(ours.encode(image).mode(), theirs.encode(image).latent_dist.mode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "gelu"),
        ("addition_embed_type", "text"),
        ("attention_type", "gated"),
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("conv_in_kernel", 5),
        ("conv_out_kernel", 5),
        ("cross_attention_dim", [12, 24]),
        ("downsample_padding", 0),
        ("dual_cross_attention", True),
        ("encoder_hid_dim", 8),
        ("layers_per_block", [1, 2]),
        ("mid_block_scale_factor", 1.4),
        ("mid_block_type", None),
        ("num_class_embeds", 10),
        ("only_cross_attention", [True, False]),
        ("resnet_time_scale_shift", "scale_shift"),
        ("time_embedding_act_fn", "silu"),
        ("time_embedding_type", "fourier"),
        ("timestep_post_act", "silu"),
        ("transformer_layers_per_block", [1, 2]),
    ],
)
def test_what_would_change_the_image_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        UNetConfig.read({**TINY_UNET, key: value}, "the file")


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_sample_size_that_nothing_says() -> None:
    assert UNetConfig.read({**TINY_UNET, "sample_size": None}, "a file").sample_size == (64, 64)
    with pytest.raises(ConfigError, match="sample_size"):
        VAEConfig.read({**TINY_VAE, "sample_size": None}, "a file", strict=True)


def test_the_vae_says_the_sample_size(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    change(folder / "unet/config.json", sample_size=None)
    assert read_configs(folder).unet.sample_size == (8, 8)  # its VAE's 64 pixels
    change(folder / "vae/config.json", sample_size=None)
    assert read_configs(folder).unet.sample_size == (64, 64)


def test_a_folder_with_flax_names(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    names = {
        "_class_name": "FlaxStableDiffusionPipeline",
        "unet": ["diffusers", "FlaxUNet2DConditionModel"],
        "vae": ["diffusers", "FlaxAutoencoderKL"],
        "text_encoder": ["transformers", "FlaxCLIPTextModel"],
        "scheduler": ["diffusers", "FlaxDDIMScheduler"],
    }
    change(folder / "model_index.json", **names, image_encoder=[None, None])
    check_index(folder)
    assert scheduler_config_of(folder)[0]["_class_name"] == "DDIMScheduler"
    load_model(folder, device="cpu")


def test_strict_refuses_what_is_left_out_else(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    change(folder / "unet/config.json", **EMA)
    with pytest.warns(UnusedKeys, match="decay"):
        Pipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(ConfigError, match="unknown key"):
        Pipeline.from_pretrained(folder, device="cpu", strict=True)


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_encoder_under_the_name_of_a_whole_clip(tmp_path: Path, nested: bool) -> None:
    folder = write_tiny_model(tmp_path)
    path = folder / "text_encoder/config.json"
    plain = read_configs(folder).text_encoder
    raw = json.loads(path.read_text()) | {"model_type": "clip"}
    path.write_text(json.dumps({"model_type": "clip", "text_config": raw} if nested else raw))
    assert read_configs(folder).text_encoder == plain
    with pytest.raises(ConfigError):
        read_configs(folder, strict=True)
