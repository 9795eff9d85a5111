"""A single file's prediction type (eps or v) and noise schedule, which its weights do not show.

Metadata in the file decides.  Without any, SD 2's UNet runs once (`probe_unet`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pare.config import UNetConfig
from pare.errors import SettingError
from pare.loading.checkpoint import Checkpoint
from pare.unet import UNet

PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction",
               "v_prediction": "v_prediction"}  # fmt: skip


def choose_prediction(
    checkpoint: Checkpoint,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    prediction: str | None,
) -> tuple[str, str, bool]:
    """What the UNet predicts, "epsilon" or "v_prediction"; how that is known; how surely.

    Args:
        kind: "SD 1" or "SD 2".
        config: the UNet's, as on the Hub.
        tensors: the UNet's, by the Hub's names.
        prediction: "eps" or "v", if the user says so.
    """
    if prediction is not None:
        if prediction not in PREDICTIONS:
            raise SettingError(f"`prediction` is {prediction!r}", expected="eps or v")
        return PREDICTIONS[prediction], "as asked", True
    noted = noted_prediction(checkpoint, kind)
    return (*noted, True) if noted is not None else (*probe_unet(config, tensors), False)


def noted_prediction(checkpoint: Checkpoint, kind: str) -> tuple[str, str] | None:
    """What the UNet predicts, and how that is known, if the file's metadata or kind says so."""
    extras = checkpoint.extras
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        noted = str(extras.get(key, "")).lower()
        if noted in PREDICTIONS:
            return PREDICTIONS[noted], f"the file's metadata says so ({key})"
    if "v_pred" in checkpoint.tensors:
        return "v_prediction", "the file carries the mark v_pred"
    if kind == "SD 1":
        return "epsilon", "SD 1 models do"
    if extras.get("global_step") == 875_000:  # the SD 2.0 base model's number of steps
        return "epsilon", "its 875000 training steps are those of the SD 2 base model"
    return None


@torch.no_grad()
def probe_unet(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Run SD 2's UNet, which came as eps and as v, on almost pure noise, and compare.

    At t = 999, alpha_bar is 0.0047, so x_t is nearly eps.  A UNet that predicts eps returns
    nearly its input; one that predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
    (arXiv:2202.00512, appendix D) returns an image, which does not resemble the noise.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(config, "the checkpoint's UNet"))
    unet.load_state_dict(dict(tensors), strict=True, assign=True)
    dtype = unet.conv_in.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "v_prediction", f"most SD 2 models do, and {dtype} cannot be tried"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, unet.config.out_channels, 16, 16), generator=generator)
    inputs = noise
    if unet.config.inpaints:  # mask 1 everywhere, masked image 0
        inputs = torch.cat([noise, torch.ones_like(noise[:, :1]), torch.zeros_like(noise)], dim=1)
    text = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=dtype)
    output = unet.eval()(inputs.to(dtype), 999, text).float()
    pair = torch.stack([output.flatten(), noise.flatten()])
    correlation = float(torch.corrcoef(pair)[0, 1])
    how = f"given pure noise, its output and the noise correlate by {correlation:.2f}"
    return ("epsilon" if correlation > 0.5 else "v_prediction"), how


def scheduler_config(checkpoint: Checkpoint, prediction: str) -> tuple[dict[str, Any], list[str]]:
    """The Hub's `scheduler_config.json`: SD's own schedule unless the file has another."""
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler" if prediction == "v_prediction" else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    if "ztsnr" in checkpoint.tensors:
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        config |= zero_snr | {"_class_name": "DDIMScheduler"}
        return config, ["its noise schedule ends at zero signal (the mark ztsnr)"]
    stored = checkpoint.tensors.get("betas")
    if stored is None or stored.ndim != 1 or not 0 < stored.numel() <= 100_000:
        return config, []
    betas = stored.double()
    standard = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    # Half-precision files hold the betas in half precision too.
    if betas.shape == standard.shape and torch.allclose(betas, standard, rtol=5e-3):
        return config, []
    config |= {"num_train_timesteps": betas.numel(), "trained_betas": betas.tolist()}
    return config, ["its noise schedule is its own: the betas in the file"]
