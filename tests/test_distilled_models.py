"""Models for few steps, run as their authors mean, against diffusers' pipeline: tiny weights.

The same folder, the same seed, the same settings; the images agree to 1e-5 of their range.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from pare.pipeline import Pipeline
from tests.tiny_model import write_tiny_model

diffusers.utils.logging.set_verbosity_error()

UNET = "unet/diffusion_pytorch_model.safetensors"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TURBO = BETAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
LCM = BETAS | {"_class_name": "LCMScheduler", "original_inference_steps": 50}
TCD = BETAS | {"_class_name": "TCDScheduler", "original_inference_steps": 50}
ZERO_SNR = BETAS | {
    "_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "set_alpha_to_one": True,
}  # fmt: skip


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path)


def set_scheduler(folder: Path, config: dict[str, Any]) -> None:
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    change(folder / "model_index.json", scheduler=["diffusers", config["_class_name"]])


def embed_guidance(folder: Path, width: int = 6) -> None:
    """Make the UNet one that reads the guidance scale."""
    change(folder / "unet/config.json", time_cond_proj_dim=width)
    tensors = load_file(folder / UNET)
    channels = tensors["time_embedding.linear_1.weight"].shape[1]
    weight = torch.randn(channels, width, generator=torch.Generator().manual_seed(9))
    save_file({**tensors, "time_embedding.cond_proj.weight": weight}, folder / UNET)


def same_image(folder: Path, steps: int, guidance: float, rescale: float = 0.0) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    ours = pipe.generate(
        "a snowy road", 5, steps=steps, guidance=guidance, rescale=rescale, negative="the car"
    )
    reference = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    reference.set_progress_bar_config(disable=True)
    theirs = reference(
        "a snowy road", negative_prompt="the car", num_inference_steps=steps,
        guidance_scale=guidance, guidance_rescale=rescale,
        generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    assert ours.latents is not None
    assert float((ours.latents - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sd_turbo(folder: Path, steps: int) -> None:
    set_scheduler(folder, TURBO)
    same_image(folder, steps, guidance=1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_latent_consistency_model(folder: Path, steps: int) -> None:
    set_scheduler(folder, LCM)
    embed_guidance(folder)
    same_image(folder, steps, guidance=8.1)


def test_the_guidance_embedding_matters(folder: Path) -> None:
    set_scheduler(folder, LCM)
    embed_guidance(folder)
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    weak, strong = (pipe.generate("a road", 5, steps=2, guidance=g).latents for g in (1.5, 9.0))
    assert weak is not None
    assert strong is not None
    assert float((weak - strong).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 4])
def test_a_tcd_model(folder: Path, steps: int) -> None:
    set_scheduler(folder, TCD)
    # diffusers' pipeline passes its own eta, 0, where pare takes the solver's, 0.3.
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert pipe.scheduler.name == "tcd"
    assert pipe.generate("a road", 5, steps=steps, guidance=1).latents is not None


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_zero_terminal_snr_with_guidance_rescale(folder: Path, steps: int) -> None:
    set_scheduler(folder, ZERO_SNR)
    same_image(folder, steps, guidance=7.5, rescale=0.7)
