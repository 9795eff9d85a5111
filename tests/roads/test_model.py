"""The built-in model as it ships: its size, its names, its round trip, its first answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pare
from pare.config import VAEConfig
from pare.text.text_encoder import WORDS_FILE
from pare.vae import AutoencoderKL
from roads.train import train_unet, train_vae
from roads.train.scene_data import Data
from roads.train.train_tokenizer import caption_words
from roads.world.render import render
from roads.world.scene import OBJECTS, unseen_scenes

ROADS = Path(pare.__file__).parent / "models" / "roads"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_the_weights_are_small_and_half_precision() -> None:
    files = list(ROADS.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 32e6
    for file in files:
        assert {tensor.dtype for tensor in tensors(file).values()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors(file).values())


def test_the_unet_has_the_686_names_of_sd_1() -> None:
    assert len(tensors(ROADS / "unet" / "diffusion_pytorch_model.safetensors")) == 686


def test_it_lists_the_words_that_it_was_taught() -> None:
    listed = (ROADS / WORDS_FILE).read_text(encoding="utf-8").split()
    assert listed == sorted(word for word in caption_words(5000) if word.isalnum())


def test_the_folder_is_what_the_recipe_describes() -> None:
    unet = json.loads((ROADS / "unet" / "config.json").read_text())
    vae = json.loads((ROADS / "vae" / "config.json").read_text())
    text_encoder = json.loads((ROADS / "text_encoder" / "config.json").read_text())
    scheduler = json.loads((ROADS / "scheduler" / "scheduler_config.json").read_text())
    assert unet == train_unet.CONFIG
    assert {**vae, "scaling_factor": 1.0} == train_vae.CONFIG
    assert scheduler == train_unet.SCHEDULER
    assert text_encoder == train_unet.TEXT_CONFIG


def test_diffusers_loads_the_folder_as_it_is() -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ROADS)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a snowy road", num_inference_steps=2, height=128, width=128).images
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 5


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    raw = json.loads((ROADS / "vae" / "config.json").read_text())
    vae = AutoencoderKL(VAEConfig.read(raw, "roads"))
    weights = tensors(ROADS / "vae" / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return vae.eval()


@pytest.fixture(scope="module")
def unseen() -> Data:
    scenes = unseen_scenes(24)
    images = [render(scene) for scene in scenes]
    bits = [
        np.sum([p.masks[name] << k for k, name in enumerate(OBJECTS)], axis=0).astype(np.uint8)
        for p in images
    ]
    return Data(scenes, np.stack([p.pixels for p in images]), np.stack(bits))


def test_held_out_scenes_survive_the_round_trip(vae: AutoencoderKL, unseen: Data) -> None:
    psnr, inside, _images = train_vae.round_trip_psnr(vae, unseen, torch.device("cpu"))
    assert psnr > 27.5
    # Small coloured things are what an autoencoder forgets first.
    assert inside["car"] > 25
    assert min(inside.values()) > 20


def test_latents_have_unit_variance(vae: AutoencoderKL, unseen: Data) -> None:
    latents = train_vae.encode_all(vae, unseen, torch.device("cpu"), "float32")
    assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1, abs=0.1)


def test_prompts_set_weather_and_light() -> None:
    pipe = pare.Pipeline.from_pretrained("roads", device="cpu", scheduler="ddim")
    prompts = [f"a {weather} road in the desert" for weather in ("sunny", "snowy")]
    prompts.append("a road in the desert at night")
    images = pipe.generate(prompts, seeds=[1, 1, 1], steps=15, guidance=4.0)
    sunny, snowy, night = ((image + 1) / 2 for image in images.tensor)
    assert night.mean() < 0.5 * min(sunny.mean(), snowy.mean())
    sky = sunny[:, :32].mean(dim=(1, 2))
    assert sky[2] > sky[0] + 0.15  # a blue sky
    assert snowy[:, 80:].mean() > sunny[:, 80:].mean() + 0.05  # snow on the asphalt
