"""SD 1.4 and SD 2.1 at their full size, with random weights: same bits, and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pare.config import UNetConfig
from pare.unet import UNet
from tests.hub_configs import SD14_UNET, SD21_UNET, SD_VAE
from tests.random_models import normal, random_state, unet_pair, vae_pair

pytestmark = pytest.mark.full


@pytest.mark.parametrize("raw", [SD14_UNET, SD21_UNET], ids=["SD 1.4", "SD 2.1"])
def test_the_unet_is_diffusers_bit_for_bit(raw: dict[str, Any]) -> None:
    ours, theirs = unet_pair(raw)
    t = torch.tensor([981, 40])
    text = normal(2, 77, raw["cross_attention_dim"], seed=2)
    with torch.no_grad():
        for size in ((8, 8), (16, 16), (9, 11)):
            x_t = normal(2, 4, *size)
            output = ours(x_t, t, text)
            assert output.std() > 0.1  # random weights, yet nothing drowned
            assert torch.equal(output, theirs(x_t, t, text).sample)


def test_the_vae_is_diffusers_bit_for_bit() -> None:
    ours, theirs = vae_pair(SD_VAE)
    with torch.no_grad():
        for size in (8, 16):
            image, latents = normal(1, 3, 8 * size, 8 * size), normal(1, 4, size, size, seed=2)
            posterior, reference = ours.encode(image), theirs.encode(image).latent_dist
            assert torch.equal(posterior.mean, reference.mean)
            assert torch.equal(posterior.std, reference.std)
            assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)


LOAD_AND_RUN = """
import json, sys
import torch
from pare.config import UNetConfig
from pare.hub import load_weights
from pare.unet import UNet
from pare.verify.memory import peak_memory

raw, path = json.loads(sys.argv[1]), sys.argv[2]
with torch.device("meta"):
    unet = UNet(UNetConfig.read(raw, "the test's config"))
load_weights(unet, path, torch.float32)
with torch.no_grad():
    unet(torch.ones(1, 4, 8, 8), 500, torch.ones(1, 77, raw["cross_attention_dim"]))
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.slow
def test_loading_and_a_step_take_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """At most 1.25 times the weights, for the whole process: Python, PyTorch, one forward.

    The measure is the kernel's high-water mark of resident memory (VmHWM).  It counts the
    pages of the mapped file that the forward touched, all of them, as well as what is
    allocated: a copy of the weights anywhere on the way would show as twice their size.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(SD14_UNET, "the test's config"))
    state = random_state(unet, torch.Generator().manual_seed(0))
    size = sum(tensor.numel() * 4 for tensor in state.values())
    assert size == 4 * 859_520_964
    path = tmp_path / "unet.safetensors"
    save_file(state, path)
    del state
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN, json.dumps(SD14_UNET), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    path.unlink()  # 3.4 GB: not for pytest's last three runs
    peak = int(run.stdout)
    assert size < peak <= 1.25 * size, f"{peak / size:.3f} times the weights"
