"""`pare models`: what it finds in a folder, and what it says of each."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pare.loading.model_source import sha256_of
from pare.study.inspect.model_list import models_in
from tests.lora_files import kohya, write_lora
from tests.tiny_model import write_tiny_model

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def test_models_loras_embeddings_and_what_is_neither(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    write_lora(tmp_path / "lora.safetensors", kohya({Q: (16, 1024)}))
    save_file({"<toy>": torch.ones(1, 768).half()}, tmp_path / "toy.safetensors")
    save_file({"conv_first.weight": torch.ones(2)}, tmp_path / "up.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "notes.txt").write_text("no model")
    found = {Path(one.name).name: one for one in models_in(tmp_path, hashes=True)}
    assert {name: one.kind for name, one in found.items() if name != "cut.safetensors"} == {
        "model": "Stable Diffusion 1",
        "lora.safetensors": "LoRA for Stable Diffusion 2",
        "toy.safetensors": "embedding for Stable Diffusion 1",
        "up.safetensors": "an image upscaler",
    }
    assert "broken" in found["cut.safetensors"].kind
    assert found["toy.safetensors"].dtype == "F16"
    assert found["toy.safetensors"].sha256 == sha256_of(tmp_path / "toy.safetensors")
    assert found["toy.safetensors"].bytes == (tmp_path / "toy.safetensors").stat().st_size
