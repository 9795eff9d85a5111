"""Models in folders: every file that pare reads, damaged in every way."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pare.config import UnusedKeys
from pare.errors import ConfigError
from pare.loading.model_configs import read_configs
from tests.hostile.command import Command
from tests.hostile.damage import JSON, NO_FILES, PICKLES, SAFETENSORS
from tests.tiny_model import change_json

GENERATE = ("generate", "x", "--steps", "1", "--size", "16x16", "--out", "out", "--model")

UNET = "unet/diffusion_pytorch_model.safetensors"
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
WEIGHTS = (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def dealt(table: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each damage to one of the files, in turns."""
    return list(zip(itertools.cycle(names), table, strict=False))


# --- the folder ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_folder(pare: Command, model: Path, kind: str) -> None:
    shutil.rmtree(model)
    NO_FILES[kind](model)
    pare.refuses(*GENERATE, "model")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "model\0", "no/such", "no/such/one", "~", "http://example.org/model",
     "x" * 300, "x" * 5000, "model\n\x1b[2J", "\u202emodel", "\udcff", "https:owner/name",
     "owner/", "/name", "roads/", "ROADS", "-", "con", "model/unet/config.json",
     "model/unet/diffusion_pytorch_model.safetensors", "model/tokenizer/merges.txt"],
)  # fmt: skip
def test_names_that_are_no_model(pare: Command, model: Path, name: str) -> None:
    pare.refuses(*GENERATE, name)


@pytest.mark.parametrize("name", [*CONFIGS[:6], "tokenizer/merges.txt", *WEIGHTS])
def test_missing_files(pare: Command, model: Path, name: str) -> None:
    (model / name).unlink()
    pare.refuses(*GENERATE, "model", words=name.rpartition("/")[2])


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["model_index.json", "tokenizer/merges.txt", UNET])
def test_what_is_no_file(pare: Command, model: Path, name: str, kind: str) -> None:
    NO_FILES[kind](model / name)
    pare.refuses(*GENERATE, "model", words=name.rpartition("/")[2])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", UNET, "unet"])
def test_what_must_not_be_read(pare: Command, model: Path, name: str) -> None:
    (model / name).chmod(0)
    try:
        pare.refuses(*GENERATE, "model", words="permission denied")
    finally:
        (model / name).chmod(0o700)


# --- configs -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), dealt(JSON, CONFIGS))
def test_damaged_configs(pare: Command, model: Path, name: str, kind: str) -> None:
    JSON[kind](model / name)
    pare.refuses(*GENERATE, "model", words=name)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["empty", "array", "deep-arrays", "five-gigabytes", "image"])
def test_damaged_extras(pare: Command, model: Path, name: str, kind: str) -> None:
    (model / "tokenizer" / name).write_text("{}")
    JSON[kind](model / "tokenizer" / name)
    pare.refuses(*GENERATE, "model", words=name)


INDEXES: dict[str, tuple[dict[str, object], str]] = {
    "no-class": ({"_class_name": ..., "unet": ...}, "no class as the unet"),
    "class-is-a-list": ({"_class_name": [["x"]], "unet": ...}, "no class as the unet"),
    "sdxl": ({"_class_name": "StableDiffusionXLPipeline"}, "Stable Diffusion XL"),
    "sd-3": ({"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
    "flux": ({"_class_name": "FluxPipeline"}, "Flux"),
    "kandinsky": ({"_class_name": "KandinskyV22Pipeline"}, "Kandinsky"),
    "unet-null": ({"unet": None}, "no class as the unet"),
    "unet-nothing": ({"unet": [None, None]}, "no class as the unet"),
    "unet-text": ({"unet": "UNet2DConditionModel"}, "no class as the unet"),
    "unet-other": ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
    "unet-list": ({"unet": ["diffusers", ["UNet2DConditionModel"]]}, "as the unet"),
    "unet-object": ({"unet": ["diffusers", {"a": [1]}]}, "as the unet"),
    "unet-escape": ({"unet": ["diffusers", "\x1b[2J\ud800"]}, "as the unet"),
    "vae-flux": ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
    "text-t5": ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    "tokenizer-code": ({"tokenizer": ["os", "system"]}, "system"),
    "second-text": ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2"),
    "controlnet": ({"controlnet": ["diffusers", "ControlNetModel"]}, "ControlNetModel"),
    "prior": ({"prior": ["diffusers", {"x": "\ud800"}]}, "prior"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_indexes_of_other_models(pare: Command, model: Path, kind: str) -> None:
    changes, words = INDEXES[kind]
    change_json(model / "model_index.json", **changes)
    pare.refuses(*GENERATE, "model", words=words)


Values = dict[str, object]
WRONG: Values = {
    "null": None,
    "text": "4",
    "list": [[]],
    "object": {"a": 1},
    "negative": -1,
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 2**70,
    "float-overflow": 1e300,
}
KEYS = {
    "unet": (
        "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types",
        "layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups",
        "norm_eps", "act_fn", "mid_block_type", "sample_size",
    ),
    "vae": ("latent_channels", "block_out_channels", "scaling_factor", "norm_num_groups",
            "down_block_types", "layers_per_block", "sample_size"),
    "text_encoder": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                     "max_position_embeddings", "hidden_act", "layer_norm_eps", "eos_token_id"),
    "scheduler": ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end",
                  "prediction_type", "steps_offset", "set_alpha_to_one"),
}  # fmt: skip
BAD_VALUES = [
    (part, key, kind)
    for part, keys in KEYS.items()
    for key, kind in zip(keys, itertools.cycle(WRONG), strict=False)
]


@pytest.mark.parametrize(("part", "key", "kind"), BAD_VALUES)
def test_values_of_the_wrong_type(
    pare: Command, model: Path, part: str, key: str, kind: str
) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change_json(model / part / name, **{key: WRONG[kind]})
    pare.refuses(*GENERATE, "model", words=key)


CONFIG_CHANGES: dict[str, tuple[str, dict[str, object], str]] = {
    "sdxl-unet": ("unet", {"addition_embed_type": "text_time"}, "that is SDXL's"),
    "upscaler": ("unet", {"num_class_embeds": 1000}, "the upscaler's"),
    "gligen": ("unet", {"attention_type": "gated"}, "GLIGEN"),
    "lcm": ("unet", {"time_cond_proj_dim": 256}, "does not fit"),
    "lcm-text": ("unet", {"time_cond_proj_dim": "256"}, "time_cond_proj_dim"),
    "lcm-huge": ("unet", {"time_cond_proj_dim": 2**40}, "time_cond_proj_dim"),
    "layers-listed": ("unet", {"layers_per_block": [1, 2]}, "layers_per_block"),
    "layers-empty": ("unet", {"layers_per_block": []}, "layers_per_block"),
    "layers-nested": ("unet", {"transformer_layers_per_block": [[1], [2]]}, "SDXL"),
    "true-for-one": ("unet", {"in_channels": True}, "in_channels"),
    "flux-vae": ("vae", {"use_quant_conv": False}, "Flux"),
    "hundred-levels": ("vae", {"block_out_channels": [4] * 100}, "1 to 8 widths"),
    "zero-width": ("unet", {"block_out_channels": [0, 0]}, "block_out_channels"),
    "wide": ("unet", {"block_out_channels": [2**16, 2**16]}, "does not fit"),
    "deep": ("unet", {"layers_per_block": 9}, "does not fit"),
    "other-heads": ("unet", {"attention_head_dim": 3}, "heads"),
    "groups-zero": ("unet", {"norm_num_groups": 0}, "norm_num_groups"),
    "groups": ("unet", {"norm_num_groups": 3}, "groups"),
    "other-width": ("text_encoder", {"hidden_size": 16}, "different models"),
    "many-tokens": ("text_encoder", {"vocab_size": 2**20}, "does not fit"),
    "few-tokens": ("text_encoder", {"vocab_size": 524 - 3, "pad_token_id": 1,
                                    "bos_token_id": 1, "eos_token_id": 1}, "vocabulary"),
    "hundred-layers": ("text_encoder", {"num_hidden_layers": 100}, "does not fit"),
    "million-layers": ("text_encoder", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    "solver-unknown": ("index", {"scheduler": ["diffusers", "DreamScheduler"]}, "DreamScheduler"),
    "solver-list": ("index", {"scheduler": ["diffusers", ["PNDMScheduler"]]}, "PNDMScheduler"),
    "betas-infinite": ("scheduler", {"trained_betas": [float("inf")] * 1000}, "trained_betas"),
    "betas-few": ("scheduler", {"trained_betas": [0.1]}, "trained_betas"),
    "betas-nested": ("scheduler", {"trained_betas": [[0.1]] * 1000}, "trained_betas"),
    "betas-text": ("scheduler", {"trained_betas": "0.1"}, "trained_betas"),
    "flow": ("scheduler", {"prediction_type": "flow_prediction"}, "flow_prediction"),
}  # fmt: skip


UNKNOWN_KEYS: dict[str, tuple[dict[str, object], str]] = {
    "unknown": ({"frobnicate": 1}, "frobnicate"),
    "misspelt": ({"upcast_atention": True}, "did you mean 'upcast_attention'"),
    "escape": ({"\x1b[2J\ud800": 1}, "not used"),
    "megabyte": ({"k" * 1_000_000: 1}, "kkk…"),
    "thousand": ({f"k{k}": 1 for k in range(1000)}, "and 988 more"),
}


@pytest.mark.parametrize("kind", UNKNOWN_KEYS)
def test_unknown_keys(model: Path, kind: str) -> None:
    """They are left out with a warning of bounded length, or refused if that is asked for."""
    keys, words = UNKNOWN_KEYS[kind]
    change_json(model / "unet" / "config.json", **keys)
    with pytest.warns(UnusedKeys, match=re.escape(words)) as said:
        read_configs(model)
    assert all(len(str(one.message)) < 2000 for one in said)
    with pytest.raises(ConfigError, match="unknown key") as caught:
        read_configs(model, strict=True)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", CONFIG_CHANGES)
def test_configs_of_other_models(pare: Command, model: Path, kind: str) -> None:
    part, changes, words = CONFIG_CHANGES[kind]
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = model / "model_index.json" if part == "index" else model / part / name
    change_json(path, **changes)
    pare.refuses(*GENERATE, "model", words=words)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (..., "does not name its solver"),
        ("DreamScheduler", "DreamScheduler"),
        (["PNDMScheduler"], "PNDMScheduler"),
    ],
    ids=str,
)
def test_a_solver_that_the_index_does_not_name(
    pare: Command, model: Path, said: object, words: str
) -> None:
    change_json(model / "model_index.json", scheduler=...)
    change_json(model / "scheduler" / "scheduler_config.json", _class_name=said)
    pare.refuses(*GENERATE, "model", words=words)


MERGES = {
    "nul": b"#version: 0.2\ns\0n o\n",
    "not-text": b"\xff\xfe",
    "one-word": b"#version: 0.2\nsn\n",
    "three-words": b"#version: 0.2\ns n o\n",
    "unknown": "#version: 0.2\n雪 雪\n".encode(),
    "megabytes": b"s n\n" * 2_200_000,
    "json": b'{"s": "n"}',
}


@pytest.mark.parametrize("kind", MERGES)
def test_damaged_merges(pare: Command, model: Path, kind: str) -> None:
    (model / "tokenizer" / "merges.txt").write_bytes(MERGES[kind])
    pare.refuses(*GENERATE, "model", words="merges.txt")


# --- weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), dealt(SAFETENSORS, WEIGHTS))
def test_damaged_safetensors(pare: Command, model: Path, name: str, kind: str) -> None:
    SAFETENSORS[kind](model / name)
    pare.refuses(*GENERATE, "model", words=name)


@pytest.mark.parametrize("kind", PICKLES)
def test_damaged_pickles(pare: Command, model: Path, kind: str) -> None:
    (model / UNET).unlink()
    file = model / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"conv_in.bias": torch.ones(8)}, file)
    PICKLES[kind](file)
    pare.refuses(*GENERATE, "model", words=file.name)
    assert not Path("it-ran").exists()


Change = Callable[[dict[str, Tensor]], object]
BIAS, WEIGHT = "conv_in.bias", "conv_in.weight"
TENSORS: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop(BIAS), f"missing {BIAS}"),
    "unexpected": (lambda t: t.update(extra=torch.ones(1)), "unexpected extra"),
    "misshapen": (lambda t: t.update({BIAS: torch.ones(9)}), f"wrong shape {BIAS} 9 instead of 8"),
    "turned": (lambda t: t.update({WEIGHT: t[WEIGHT].mT[:, :3].contiguous()}), "wrong shape"),
    "none": (lambda t: t.clear(), "and 1"),
    "lora": (lambda t: t.update({"to_q.lora_A.weight": torch.ones(4, 4)}), "unexpected to_q.lora"),
    "int8": (lambda t: t.update({BIAS: t[BIAS].to(torch.int8)}), "as I8"),
    "bool": (lambda t: t.update({BIAS: t[BIAS] > 0}), "as BOOL"),
    "complex": (lambda t: t.update({BIAS: t[BIAS].to(torch.complex64)}), "as C64"),
    "nan": (lambda t: t[WEIGHT].fill_(float("nan")), "NaN or infinities"),
    "one-nan": (lambda t: t[BIAS][:1].fill_(float("nan")), "NaN or infinities"),
    "infinite": (lambda t: t[WEIGHT].fill_(float("inf")), "NaN or infinities"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit(pare: Command, model: Path, kind: str) -> None:
    change, words = TENSORS[kind]
    tensors = load_file(model / UNET)
    change(tensors)
    save_file(tensors, model / UNET)
    said = pare.refuses(*GENERATE, "model")
    assert words in " ".join(said.split())


ODD_TENSORS: dict[str, Callable[[Tensor], object]] = {
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.flatten(1).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "imaginary": lambda t: t.to(torch.complex64).conj(),
    "expanded": lambda t: t[:1, :1, :1, :1].expand(2**20, 2**20, 1, 1),
    "empty": lambda t: torch.empty(0),
    "text": lambda t: "weights",
    "nested": lambda t: {"a": t},
    "list": lambda t: t.tolist(),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_pickles_of_odd_tensors(pare: Command, model: Path, kind: str) -> None:
    tensors: dict[str, Any] = dict(load_file(model / UNET))
    (model / UNET).unlink()
    tensors[WEIGHT] = ODD_TENSORS[kind](tensors[WEIGHT])
    torch.save(tensors, model / "unet" / "diffusion_pytorch_model.bin")
    pare.refuses(*GENERATE, "model", words="diffusion_pytorch_model.bin")


SHARDS: dict[str, object] = {
    "nothing": {},
    "no-map": {"weight_map": None},
    "empty-map": {"weight_map": {}},
    "outside": {"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "number": {"weight_map": {"a": 7}},
    "itself": {"weight_map": {"a": "diffusion_pytorch_model.safetensors.index.json"}},
    "not-there": {"weight_map": {"a": "a.safetensors"}},
    "newline": {"weight_map": {"a": "a.safetensors\n"}},
    "many": {"weight_map": {str(k): f"{k}.safetensors" for k in range(10_000)}},
}


@pytest.mark.parametrize("kind", SHARDS)
def test_indexes_of_shards(pare: Command, model: Path, kind: str) -> None:
    (model / UNET).unlink()
    index = model / f"{UNET}.index.json"
    index.write_text("{}")
    change_json(index, **SHARDS[kind])  # type: ignore[arg-type]
    pare.refuses(*GENERATE, "model", words="index.json")
