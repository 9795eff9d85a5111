"""Single files, conversions and recipes of every kind, through their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from tests.hostile.command import Command
from tests.hostile.damage import NO_FILES, PICKLES, SAFETENSORS

GENERATE = ("generate", "x", "--steps", "1", "--out", "out", "--model")

OTHER_MODELS = {
    "sdxl": ("conditioner.embedders.0.transformer.x", "Stable Diffusion XL"),
    "sd-3": ("model.diffusion_model.joint_blocks.0.context_block.x", "Stable Diffusion 3"),
    "flux": ("double_blocks.0.img_attn.proj.weight", "Flux"),
    "controlnet": ("control_model.input_blocks.0.0.weight", "ControlNet"),
    "lora": ("lora_unet_down_blocks_0_x.lora_down.weight", "LoRA"),
    "embedding": ("emb_params", "textual-inversion embedding"),
    "upscaler": ("conv_first.weight", "image upscaler"),
    "language-model": ("model.layers.0.self_attn.q_proj.weight", "language model"),
    "motion": ("down_blocks.0.motion_modules.0.x", "AnimateDiff"),
    "ip-adapter": ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
    "vae-alone": ("first_stage_model.encoder.down.0.block.0.conv1.weight", "no unet"),
    "nobody-knows": ("a\x1b[2Jb", "no model that pare knows"),
    "unet-begun": ("model.diffusion_model.input_blocks.0.0.weight", "unet"),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_files_of_other_models(pare: Command, kind: str, ending: str) -> None:
    name, words = OTHER_MODELS[kind]
    tensors = {name: torch.ones(4, 4, 3, 3)}
    write = save_file if ending == "safetensors" else torch.save
    write(tensors, f"a.{ending}")
    pare.refuses(*GENERATE, f"a.{ending}", words=words)


@pytest.mark.parametrize("kind", list(SAFETENSORS)[::3])
def test_damaged_single_files(pare: Command, kind: str) -> None:
    file = Path("a.safetensors")
    save_file({"a": torch.ones(4), "conv_in.bias": torch.ones(4)}, file)
    SAFETENSORS[kind](file)
    pare.refuses("convert", file, "out/model", words=file.name)


@pytest.mark.parametrize("kind", list(PICKLES)[::3])
def test_damaged_pickles(pare: Command, kind: str) -> None:
    file = Path("a.ckpt")
    torch.save({"conv_in.bias": torch.ones(4)}, file)
    PICKLES[kind](file)
    pare.refuses("convert", file, "out/model", words=file.name)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_sources_that_are_no_file(pare: Command, kind: str, command: str) -> None:
    if (command, kind) == ("inspect", "folder"):
        pytest.skip("it is inspected as a model's folder: what is there is told")
    NO_FILES[kind](Path("a.ckpt"))
    pare.refuses(command, "a.ckpt", *(["out/model"] if command == "convert" else []))


TARGETS = ("", "model", "no/such/model.safetensors", "model/unet", "/proc/model", "x" * 300,
           "a.txt/b", "there.safetensors", "/dev/full")  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_targets_that_cannot_be(pare: Command, model: Path, target: str) -> None:
    Path("there.safetensors").write_bytes(b"mine")
    Path("a.txt").write_bytes(b"mine")
    pare.refuses("convert", "model", target)


RECIPE: dict[str, Any] = {
    "command": "generate", "arguments": {"prompt": "x"}, "inputs": {}, "model": {"name": "roads"},
    "scheduler": {"name": "ddim"}, "seeds": [1], "index": 0, "device": "cpu", "dtype": "float32",
    "threads": 1, "versions": {"pare": "0"}, "format": 1,
}  # fmt: skip
RECIPES: dict[str, object] = {
    "empty": "",
    "text": "a road",
    "array": "[]",
    "half": json.dumps(RECIPE)[:40],
    "deep": "[" * 100_000,
    "long": "9" * 5000,
    "megabytes": '"' + "x" * 2_000_000 + '"',
    "nan": json.dumps(RECIPE | {"threads": float("nan")}),
    "newer": RECIPE | {"format": 99},
    "older": RECIPE | {"format": -1},
    "missing": {"command": "generate"},
    "more": RECIPE | {"run": "rm"},
    "command-shell": RECIPE | {"command": "rm -rf /"},
    "command-convert": RECIPE | {"command": "convert"},
    "command-number": RECIPE | {"command": 7},
    "arguments-list": RECIPE | {"arguments": []},
    "arguments-unknown": RECIPE | {"arguments": {"prompt": "x", "frobnicate": 1}},
    "arguments-out": RECIPE | {"arguments": {"prompt": "x", "out": "/etc/passwd"}},
    "arguments-deep": RECIPE | {"arguments": {"prompt": {"a": [{}]}}},
    "inputs-path": RECIPE | {"inputs": {"image": {"path": "/dev/zero", "sha256": "0" * 64}}},
    "inputs-number": RECIPE | {"inputs": {"image": 3}},
    "model-text": RECIPE | {"model": "roads"},
    "model-path": RECIPE | {"model": {"name": "/dev/zero"}},
    "scheduler-unknown": RECIPE | {"scheduler": {"name": "dream", "config": {}}},
    "seeds-none": RECIPE | {"seeds": []},
    "seeds-many": RECIPE | {"seeds": list(range(5000))},
    "seeds-large": RECIPE | {"seeds": [2**70]},
    "seeds-text": RECIPE | {"seeds": "1"},
    "index": RECIPE | {"index": 1},
    "threads": RECIPE | {"threads": 10**9},
    "device": RECIPE | {"device": "\x1b[2J"},
    "dtype": RECIPE | {"dtype": "int8"},
    "versions": RECIPE | {"versions": {"pare": 1}},
}


@pytest.mark.parametrize("kind", RECIPES)
def test_hostile_recipes(pare: Command, kind: str) -> None:
    recipe = RECIPES[kind]
    info = PngImagePlugin.PngInfo()
    info.add_text("pare", recipe if isinstance(recipe, str) else json.dumps(recipe), zip=True)
    Image.new("RGB", (8, 8)).save("a.png", pnginfo=info)
    pare.refuses("rerun", "a.png", "--out", "out")


def test_an_image_without_a_recipe(pare: Command) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    pare.refuses("rerun", "a.png", "--out", "out", words="carries no recipe")
    Image.new("RGB", (8, 8)).save("a.jpg")
    pare.refuses("rerun", "a.jpg", "--out", "out")


@pytest.mark.parametrize(
    "kind", ["tensor-stride-0-one-row", "colliding-keys", "pickle-in-two-cases"]
)
def test_hostile_embeddings(loaded: Command, kind: str) -> None:
    PICKLES[kind](Path("a.pt"))
    loaded.refuses(*GENERATE, "model", "--embedding", "a.pt", words="a.pt")
