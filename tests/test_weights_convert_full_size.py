"""A single file at SD 1's full size, 4.3 GB in float32: time and memory, loading and converting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.single_files import original_checkpoint
from tests.test_weights_convert import FULL
from weights_convert import stream_safetensors

pytestmark = [pytest.mark.slow, pytest.mark.full]

PRELUDE = """
import json, sys, time
from pathlib import Path
import torch
import transformers.models.clip.modeling_clip, transformers.models.clip.tokenization_clip
import weights_convert
from pare.hub import load_model
from pare.verify.memory import peak_memory

path = Path(sys.argv[1])
block = bytearray(2**24)
start = time.perf_counter()
with path.open("rb", buffering=0) as file:
    while file.readinto(block):
        pass
reading = time.perf_counter() - start
start = time.perf_counter()
"""

LOAD = """
model = load_model(path, device="cpu", dtype="float32")
for part in (model.unet, model.vae, model.text_encoder):
    for tensor in part.state_dict().values():  # every page of the weights, once
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()
"""

CONVERT = """
weights_convert.convert(path, Path(sys.argv[2]))
"""

REPORT = """
taken = time.perf_counter() - start
print(json.dumps({"reading": reading, "taken": taken, "peak": peak_memory(torch.device("cpu"))}))
"""


def full_size_file(path: Path) -> int:
    """Write the file; bytes of its weights.  Its tensors share one block of numbers."""
    tensors = original_checkpoint("SD 1", "meta", **FULL["SD 1"])
    largest = max(tensor.numel() for tensor in tensors.values())
    numbers = torch.randn(largest, generator=torch.Generator().manual_seed(0)) * 0.02

    def filled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.arange(77).expand(1, -1)
        return numbers[: tensor.numel()].view(tensor.shape)

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    real = {name: filled(tensor) for name, tensor in tensors.items()} | {"betas": betas}
    with path.open("xb") as file:
        stream_safetensors(file, real)
    return sum(tensor.nbytes for tensor in real.values())


def measure(code: str, *arguments: Path) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + REPORT, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(run.stdout)
    return result


def test_time_and_memory(tmp_path: Path) -> None:
    """Ready for pictures: at most 1.3 times the weights, 1.5 times reading the file once.

    The file is in the page cache for both.  The peak is that of the whole process, Python
    and PyTorch included, and counts mapped pages.  Converting has the same bound on memory.
    """
    path, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    size = full_size_file(path)
    assert 4.2e9 < size < 4.4e9
    # A machine does other things too: the least disturbed of three.
    loading = min((measure(LOAD, path) for _ in range(3)), key=lambda m: m["taken"] / m["reading"])
    converting = measure(CONVERT, path, folder)
    path.unlink()
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    ratios = {
        "time": loading["taken"] / loading["reading"],
        "memory": loading["peak"] / size,
        "memory, converting": converting["peak"] / size,
        "time, converting": converting["taken"] / converting["reading"],
    }
    print({name: round(ratio, 2) for name, ratio in ratios.items()}, loading, converting)
    assert loading["peak"] <= 1.3 * size, ratios
    assert converting["peak"] <= 1.3 * size, ratios
    assert ratios["time"] <= 1.5, ratios
