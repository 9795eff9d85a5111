"""Training the autoencoder: images to 16 x 16 latents of 4 channels, and back.

The network is convolutional but for one small attention, so most of the training sees
64 x 64 crops (more variety for the same arithmetic) and the last part whole images.

    python -m roads.train vae --steps 4000
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pare.config import VAEConfig
from pare.vae import AutoencoderKL
from roads.train.scene_data import Data
from roads.train.training_loop import (
    Average,
    Log,
    average_gradients,
    batch_random,
    continued,
    gather,
    learning_rate,
    load_checkpoint,
    optimizer_for,
    precision,
    save_checkpoint,
    seeded,
    set_learning_rate,
    share,
    worker,
)
from roads.world.render import SIZE
from roads.world.scene import OBJECTS

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 96, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "out_channels": 3,
    "sample_size": SIZE,
    "scaling_factor": 1.0,  # measured after the training: 1 / standard deviation of latents
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@dataclass(frozen=True)
class VAESettings:
    """What a run depends on, besides the data."""

    steps: int = 4000
    batch: int = 16  # crops; a whole image counts as four
    crop: int = 64
    whole_from: float = 0.75  # the part of the training after which images are whole
    peak: float = 1.5e-3
    warm_up: int = 200
    decay: float = 0.998
    seed: int = 0
    dtype: str = "bfloat16"
    save_every: int = 500


def new_vae(seed: int) -> AutoencoderKL:
    """An untrained autoencoder; the same seed gives the same weights."""
    with seeded(seed):
        return AutoencoderKL(VAEConfig.read(CONFIG, "roads' VAE config"))


def train_vae(
    data: Data, folder: Path, settings: VAESettings, device: torch.device
) -> AutoencoderKL:
    """Train, or go on training, the autoencoder; returns it with its averaged weights."""
    vae = new_vae(settings.seed).to(device).train()
    modules = {"vae": vae}
    optimizer = optimizer_for([vae], weight_decay=1e-3)
    average = Average(modules, settings.decay)
    checkpoint = folder / "vae.pt"
    first, runs = load_checkpoint(checkpoint, modules, average, optimizer)
    runs = continued(runs, first, settings, len(data.scenes))
    log = Log(folder / "vae.jsonl", every=50)

    for step in range(first, settings.steps):
        rate = learning_rate(step, settings.steps, settings.peak, settings.warm_up)
        set_learning_rate(optimizer, rate)
        whole = step >= settings.whole_from * settings.steps
        count, size = (settings.batch // 4, SIZE) if whole else (settings.batch, settings.crop)
        image, weight, noise = vae_batch(data, settings.seed, step, count, size)
        image = image.to(device)
        with precision(device, settings.dtype):
            posterior = vae.encode(image)
            latents = posterior.mean + posterior.std * noise.to(device)
            output = vae.decode(latents)
        terms = vae_loss(output.float(), image, weight.to(device))
        kl = kl_to_unit(posterior.mean.float(), posterior.logvar.float())
        loss = terms["l1"] + 0.5 * terms["mse"] + 0.5 * terms["edges"] + 1e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        average_gradients([vae])
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(modules, step)
        plain = F.mse_loss((output.detach().float() + 1) / 2, (image + 1) / 2)
        psnr = -10 * torch.log10(plain)
        log.add(step, settings.batch, loss=loss.detach(), kl=kl.detach(), psnr=psnr, rate=rate)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save_checkpoint(checkpoint, step + 1, modules, average, optimizer, runs)

    vae.load_state_dict(average.weights["vae"])
    return vae.eval()


def vae_batch(
    data: Data, seed: int, step: int, count: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (B, 3, size, size) in [-1, 1], their weights (B, 1, size, size), latent noise.

    Half of the crops are laid around a pixel of some object, and objects weigh four times
    as much as the rest: a far-away lamp is a few pixels that a plain mean forgets.
    """
    chooser, generator = batch_random(seed, step)
    crops, weights = [], []
    for index in chooser.integers(len(data.pixels), size=count):
        objects = data.objects[index]
        top, left = crop_corner(objects, size, chooser)
        window = (slice(top, top + size), slice(left, left + size))
        crops.append(data.pixels[index][window])
        weights.append(objects[window] > 0)
    image = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    weight = 1 + 3 * torch.from_numpy(np.stack(weights)).float().unsqueeze(1)
    noise = torch.randn((count, 4, size // 8, size // 8), generator=generator)
    image, weight, noise = share(image, weight, noise)
    return image, weight, noise


def crop_corner(objects: np.ndarray, size: int, chooser: np.random.Generator) -> tuple[int, int]:
    """Top left corner of a crop: anywhere, or around a pixel of a random object."""
    room = SIZE - size
    if room == 0:
        return 0, 0
    if chooser.random() < 0.5:
        kinds = [bit for bit in (1, 2, 4, 8, 16) if (objects & bit).any()]
        if kinds:
            rows, columns = np.nonzero(objects & chooser.choice(kinds))
            k = int(chooser.integers(len(rows)))
            jitter = chooser.integers(-size // 4, size // 4 + 1, size=2)
            corner = np.array([rows[k], columns[k]]) - size // 2 + jitter
            top, left = np.clip(corner, 0, room)
            return int(top), int(left)
    top, left = chooser.integers(room + 1, size=2)
    return int(top), int(left)


def vae_loss(output: Tensor, image: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted L1 and squared error, and L1 of the edges (differences of neighbours).

    Each is a mean with weights (B, 1, H, W); the edges keep the round trip sharp.
    """
    error = output - image
    total = 3 * weight.sum()
    down = (error.diff(dim=2).abs() * weight[:, :, 1:]).sum() / total
    across = (error.diff(dim=3).abs() * weight[:, :, :, 1:]).sum() / total
    return {
        "l1": (weight * error.abs()).sum() / total,
        "mse": (weight * error.square()).sum() / total,
        "edges": down + across,
    }


def kl_to_unit(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), mean over latents (arXiv:1312.6114, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: Data, device: torch.device, dtype: str) -> Tensor:
    """The posterior modes (N, 4, 16, 16) of all images, unscaled, float32 on the CPU."""
    rank, count = worker()
    mine = data.pixels[rank::count]
    modes = []
    for i in range(0, len(mine), 16):
        image = pixels_to_tensor(mine[i : i + 16]).to(device)
        with precision(device, dtype):
            modes.append(vae.encode(image).mode().float().cpu())
    latents = torch.empty((len(data.pixels), *modes[0].shape[1:]))
    for k, part in enumerate(gather(torch.cat(modes))):
        latents[k::count] = part
    return latents


@torch.no_grad()
def round_trip_psnr(
    vae: AutoencoderKL, data: Data, device: torch.device
) -> tuple[float, dict[str, float], np.ndarray]:
    """Mean PSNR in dB of encode (mode) and decode; also within each object; the images."""
    outputs = []
    for i in range(0, len(data.pixels), 16):
        image = pixels_to_tensor(data.pixels[i : i + 16]).to(device)
        outputs.append(tensor_to_pixels(vae.decode(vae.encode(image).mode())))
    out = np.concatenate(outputs)
    square = ((out.astype(np.float32) - data.pixels) / 255) ** 2
    overall = float(np.mean(-10 * np.log10(square.mean(axis=(1, 2, 3)))))
    inside = {}
    for k, name in enumerate(OBJECTS):
        where = (np.asarray(data.objects) >> k) & 1 > 0
        inside[name] = float(-10 * np.log10(square[where].mean())) if where.any() else 0.0
    return overall, inside, out


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def tensor_to_pixels(image: Tensor) -> np.ndarray:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    levels = ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()
