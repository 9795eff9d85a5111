"""A sample of all this as a user meets it: real processes, with little memory and no disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import RunPare
from tests.hostile.damage import JSON, PICKLES, SAFETENSORS
from tests.hostile.test_images import REFUSED
from tests.tiny_model import write_tiny_model

MEMORY = 6 * 2**30
"""Of addresses: torch and transformers alone map half of it."""


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def refused(run_pare: RunPare, folder: Path, *arguments: str) -> None:
    before = sorted(folder.rglob("*"))
    done = run_pare(*arguments, preexec_fn=little_memory, timeout=300)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("pare: ")
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", ["--seed -1", "--strength 0", "--frobnicate"])
def test_settings(run_pare: RunPare, tmp_path: Path, words: str) -> None:
    refused(run_pare, tmp_path, "img2img", "a.png", "x", *words.split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png-60000", "png-bomb", "png-text-bomb", "jpeg-half", "empty"])
def test_images(run_pare: RunPare, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(REFUSED[kind])
    refused(run_pare, tmp_path, "img2img", "a.png", "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model_index.json", "five-gigabytes"),
        ("unet/config.json", "deep-arrays"),
        ("unet/diffusion_pytorch_model.safetensors", "length-2-to-60"),
        ("unet/diffusion_pytorch_model.safetensors", "shape-overflows"),
        ("unet/diffusion_pytorch_model.safetensors", "gigabytes-of-zeros"),
        ("vae/diffusion_pytorch_model.bin", "much-memory-bytearray"),
        ("vae/diffusion_pytorch_model.bin", "exponential-key"),
        ("vae/diffusion_pytorch_model.bin", "os-system"),
    ],
)
def test_models(run_pare: RunPare, tmp_path: Path, name: str, kind: str) -> None:
    model = write_tiny_model(tmp_path / "model")
    file = model / name
    if file.suffix == ".bin":
        file.with_suffix(".safetensors").rename(file)
    (JSON | PICKLES | SAFETENSORS)[kind](file)
    refused(run_pare, tmp_path, "generate", "x", "--model", "model")
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(run_pare: RunPare, tmp_path: Path) -> None:
    """No file may become longer than a kilobyte: Python ignores the signal, write() fails."""
    write_tiny_model(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    done = run_pare(
        "generate", "x", "--model", "model", "--steps", "1", "--size", "64x64",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "larger than the file system allows" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_nobody_reads(run_pare: RunPare, tmp_path: Path, where: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    reader, writer = os.pipe()
    os.close(reader)
    words = ("--help",) if where == "stdout" else ("img2img", "no.png", "x")
    done = run_pare(*words, **{where: writer})
    os.close(writer)
    assert done.returncode in (2, 141)
    assert "Traceback" not in (done.stderr or "")
