"""Models at full size, on the disk: time, memory, and the same bytes after a round trip."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.loading.test_weights_convert import FULL
from tests.single_files import original_checkpoint
from weights_convert import stream_safetensors

pytestmark = [pytest.mark.slow, pytest.mark.full]

PRELUDE = """
import json, sys, time
from pathlib import Path
import torch
import transformers.models.clip.modeling_clip, transformers.models.clip.tokenization_clip
import weights_convert
from pare.loading.modules import load_model
from pare.runtime.peak_memory import peak_memory

path = Path(sys.argv[1])
files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
block = bytearray(2**24)
start = time.perf_counter()
for name in files:
    with name.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass
reading = time.perf_counter() - start
start = time.perf_counter()
"""

LOAD = """
model = load_model(path, device="cpu", dtype=sys.argv[2])
for part in (model.unet, model.vae, model.text_encoder):
    for tensor in part.state_dict().values():  # every page of the weights, once
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()
"""

CONVERT = """
weights_convert.convert(path, Path(sys.argv[2]), prediction=(sys.argv[3:] or [None])[0])
"""

REPORT = """
taken = time.perf_counter() - start
print(json.dumps({"reading": reading, "taken": taken, "peak": peak_memory(torch.device("cpu"))}))
"""


def full_size_file(kind: str, path: Path, dtype: torch.dtype = torch.float32) -> int:
    """Write the file; bytes of its tensors, no two of which begin at the same number."""
    tensors = original_checkpoint(kind, "meta", **FULL[kind])
    count = max(tensor.numel() for tensor in tensors.values()) + len(tensors)
    numbers = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    real: dict[str, Tensor] = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        real[name] = (
            numbers[index : index + tensor.numel()].view(tensor.shape)
            if tensor.is_floating_point()
            else torch.arange(77).expand(1, -1)
        )
    real["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    if kind == "SD 2":
        real["v_pred"] = torch.zeros(1)  # a guess would run the UNet once
    with path.open("xb") as file:
        stream_safetensors(file, real)
    return sum(tensor.nbytes for tensor in real.values())


def measure(code: str, *arguments: object) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + REPORT, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(run.stdout)
    return result


# Seconds, of which the tokenizer's 50,000 tokens take most, whatever the weights' size.  From the
# page cache SD 2's 2.6 GB are read in less.
CONSTANT = 0.25


def check_loading(path: Path, dtype: str, size: int, constant: float = 0.0) -> None:
    """Ready for images: at most 1.3 times the weights, 1.5 times reading the file once.

    The file is in the page cache for both.  The peak is that of the whole process, Python
    and PyTorch included, and counts mapped pages.  `constant` seconds are not counted.
    """
    # A machine does other things too: the least disturbed of three.
    runs = []
    for _ in range(3):
        runs.append(measure(LOAD, path, dtype))
        runs[-1]["taken"] -= constant
        if runs[-1]["taken"] <= 1.5 * runs[-1]["reading"]:
            break
    best = min(runs, key=lambda run: run["taken"] / run["reading"])
    time, memory = best["taken"] / best["reading"], best["peak"] / size
    print(f"loading {path.name}: {time:.2f} of reading it, {memory:.2f} of the weights", best)
    assert memory <= 1.3
    assert time <= 1.5


def check_converting(source: Path, target: Path, size: int, *prediction: str) -> None:
    """No more than the largest tensor is ever held: the peak is mapped pages."""
    run = measure(CONVERT, source, target, *prediction)
    time, memory = run["taken"] / run["reading"], run["peak"] / size
    print(
        f"{source.name} to {target.name}: {time:.2f} of reading, {memory:.2f} of the weights", run
    )
    assert memory <= 1.3


def check_same_weights(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert len(names) == 3
    for name in names:
        assert filecmp.cmp(one / name, other / name, shallow=False), name


def test_sd_1(tmp_path: Path) -> None:
    """4.3 GB in float32: a single file, a folder, a .ckpt, and a folder again."""
    single, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    ckpt, again = tmp_path / "model.ckpt", tmp_path / "again"
    size = full_size_file("SD 1", single)
    assert 4.2e9 < size < 4.4e9
    check_loading(single, "float32", size)
    check_converting(single, folder, size)
    single.unlink()
    check_loading(folder, "float32", size)
    check_converting(folder, ckpt, size)
    check_loading(ckpt, "float32", size)
    check_converting(ckpt, again, size)
    ckpt.unlink()
    check_same_weights(folder, again)
    shutil.rmtree(folder)
    shutil.rmtree(again)


def test_sd_2(tmp_path: Path) -> None:
    """2.6 GB in float16: OpenCLIP's fused projections are split, its last layer is left out."""
    single, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    back, again = tmp_path / "back.safetensors", tmp_path / "again"
    size = full_size_file("SD 2", single, torch.float16)
    assert 2.5e9 < size < 2.7e9
    check_loading(single, "float16", size, CONSTANT)
    check_converting(single, folder, size)
    single.unlink()
    check_loading(folder, "float16", size, CONSTANT)
    check_converting(folder, back, size)
    check_converting(back, again, size, "v")
    back.unlink()
    check_same_weights(folder, again)
    shutil.rmtree(folder)
    shutil.rmtree(again)
