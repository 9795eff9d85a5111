"""A training's checkpoints as a model folder in the Hub's own layout.

    roads/  model_index.json   README.md
            scheduler/scheduler_config.json
            tokenizer/vocab.json, merges.txt, …, words.txt (the words that it was taught)
            text_encoder/config.json, model.safetensors
            unet/config.json, diffusion_pytorch_model.safetensors
            vae/config.json, diffusion_pytorch_model.safetensors

All weights are float16: diffusers and pare load the folder as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pare.pipeline import Pipeline
from pare.text.clip import TextEncoder
from pare.text.text_encoder import WORDS_FILE
from pare.unet import UNet
from pare.vae import AutoencoderKL
from roads.train import train_unet, train_vae, training_loop
from roads.train.train_tokenizer import caption_words

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", train_unet.SCHEDULER["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(run: Path, out: Path) -> None:
    """Write the averaged weights of the run in the folder `run` as a model folder `out`."""
    model = train_unet.new_model(seed=0)
    saved = torch.load(run / "unet.pt", map_location="cpu", weights_only=True)["average"]
    for name, module in model.modules().items():
        module.load_state_dict(saved[name])
    vae = train_vae.new_vae(0)
    saved = torch.load(run / "vae.pt", map_location="cpu", weights_only=True)["average"]
    vae.load_state_dict(saved["vae"])
    factor = json.loads((run / "vae.json").read_text())["scaling_factor"]
    write_model(out, model.unet, vae, factor, model.text_encoder, run / "tokenizer")


def adopt(model: Path, run: Path) -> None:
    """The reverse of `export`: a model folder as checkpoints of step 0, to go on training.

    Its averaged weights become both the first weights and the first average; what the
    optimizer knew is gone.
    """
    pipe = Pipeline.from_pretrained(model, device="cpu", dtype=torch.float32)
    shutil.copytree(model / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    write_json(run / "vae.json", {"scaling_factor": pipe.vae.config.scaling_factor})
    parts: dict[str, dict[str, nn.Module]] = {
        "vae.pt": {"vae": pipe.vae},
        "unet.pt": {"unet": pipe.unet, "text_encoder": pipe.text_encoder},
    }
    for name, modules in parts.items():
        weights = {key: module.state_dict() for key, module in modules.items()}
        training_loop.save_whole(
            run / name,
            {"step": 0, "modules": weights, "average": weights, "runs": [], "adopted": str(model)},
        )


def write_model(
    out: Path,
    unet: UNet,
    vae: AutoencoderKL,
    scaling_factor: float,
    text_encoder: TextEncoder,
    tokenizer: Path,
) -> None:
    """Write the whole folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "model_index.json", MODEL_INDEX)
    write_json(out / "scheduler" / "scheduler_config.json", train_unet.SCHEDULER)
    shutil.copytree(tokenizer, out / "tokenizer", dirs_exist_ok=True)
    words = sorted(word for word in caption_words() if word.isalnum())
    (out / WORDS_FILE).write_text("\n".join(words) + "\n", encoding="utf-8")
    write_module(out / "unet", unet, train_unet.CONFIG)
    write_module(out / "vae", vae, {**train_vae.CONFIG, "scaling_factor": scaling_factor})
    # transformers 5 names the tensors without `text_model.`.
    text_model = text_encoder.text_model
    write_module(out / "text_encoder", text_model, train_unet.TEXT_CONFIG, "model.safetensors")


def write_module(
    folder: Path,
    module: nn.Module,
    config: dict[str, Any],
    file: str = "diffusion_pytorch_model.safetensors",
) -> None:
    """config.json and the float16 weights of one network of pare's."""
    write_json(folder / "config.json", config)
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(tensors, folder / file, metadata={"format": "pt"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
