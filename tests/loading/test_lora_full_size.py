"""LoRA at the full size of SD 1.4 and SD 2.1: parity with peft, and the memory that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pare.loading.lora import LoraWeights, with_lora
from pare.loading.lora_file import load_lora
from tests.conftest import ROOT
from tests.hub_configs import SD14_UNET, SD21_UNET
from tests.lora_files import ATTENTION
from tests.random_models import normal, unet_pair

NO_TEXT: Any = nn.Module()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("raw", [SD14_UNET, SD21_UNET], ids=["SD 1.4", "SD 2.1"])
def test_a_lora_of_every_attention_layer_is_pefts(raw: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ours, reference_unet = unet_pair(raw)
    theirs: Any = reference_unet
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in ours.named_modules():
        if name.endswith(ATTENTION):
            outs, ins = layer.get_parameter("weight").shape
            tensors[f"unet.{name}.lora_A.weight"] = 0.05 * normal(8, ins, seed=len(tensors))
            tensors[f"unet.{name}.lora_B.weight"] = 0.05 * normal(outs, 8, seed=len(tensors))
    save_file(tensors, tmp_path / "a.safetensors")
    file = load_lora(tmp_path / "a.safetensors")
    twin, _ = with_lora(ours, NO_TEXT, file, LoraWeights(), "the model")
    theirs.load_lora_adapter(tensors, prefix="unet")
    x_t, text = normal(1, 4, 16, 16), normal(1, 77, raw["cross_attention_dim"], seed=2)
    with torch.no_grad():
        plain, found = ours(x_t, 501, text), twin(x_t, 501, text)
        reference = theirs(x_t, 501, text).sample
    assert (plain - reference).abs().max() > 1e-2
    assert (found - reference).abs().max() / reference.abs().max() < 1e-5


RUN = """
import sys, torch
from pathlib import Path
from torch import nn
from pare.config import UNetConfig
from pare.loading.lora import LoraWeights, with_lora
from pare.loading.lora_file import load_lora
from pare.loading.modules import load_weights
from pare.runtime.peak_memory import peak_memory
from pare.unet import UNet
from tests.hub_configs import SD14_UNET
with torch.device("meta"):
    unet = UNet(UNetConfig.read(SD14_UNET, "SD 1.4"))
load_weights(unet, Path(sys.argv[1]), torch.float32)
if len(sys.argv) > 2:
    unet, _ = with_lora(unet, nn.Module(), load_lora(Path(sys.argv[2])), LoraWeights(), "SD 1.4")
with torch.no_grad():
    unet(torch.zeros(2, 4, 64, 64), 501, torch.zeros(2, 77, 768))
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.full
@pytest.mark.slow
def test_a_lora_of_100_mb_takes_a_tenth_of_the_memory_at_most(tmp_path: Path) -> None:
    """No copy of the UNet: its 3.4 GB stay mapped, and shared by the layers that change."""
    ours, _ = unet_pair(SD14_UNET)
    save_file(ours.state_dict(), tmp_path / "unet.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in ours.named_modules():
        if isinstance(layer, nn.Linear) and "attentions" in name:
            outs, ins = layer.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = normal(136, ins, dtype=torch.float16)
            tensors[f"unet.{name}.lora_B.weight"] = normal(outs, 136, dtype=torch.float16)
    save_file(tensors, tmp_path / "lora.safetensors")
    assert 95e6 < (tmp_path / "lora.safetensors").stat().st_size < 120e6
    del ours, tensors

    def peak(*files: str) -> int:
        command = [sys.executable, "-c", RUN, *(str(tmp_path / file) for file in files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return int(done.stdout)

    assert peak("unet.safetensors", "lora.safetensors") <= 1.1 * peak("unet.safetensors")
