"""CLIP's text encoder against transformers': the same bits, layer by layer."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch

import pare
from pare.config import TextConfig
from pare.loading.architectures import TEXTS
from pare.loading.hub_folder import find_weights
from pare.loading.hub_names import own_names, text_name
from pare.loading.modules import open_weights
from pare.text.clip import OLD_END, TextEncoder
from tests.conftest import ROADS
from tests.tiny_model import TEXT

CONFIGS: dict[str, dict[str, Any]] = {
    "quick_gelu": TEXT,
    "gelu": TEXT | {"hidden_act": "gelu", "eos_token_id": 523},
    "one-layer": TEXT | {"num_hidden_layers": 1, "num_attention_heads": 1, "layer_norm_eps": 1e-3},
}


def both(config: TextConfig, dtype: torch.dtype = torch.float32) -> tuple[Any, TextEncoder]:
    """transformers' encoder with random weights, and pare's with the same ones."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    theirs = CLIPTextModel(CLIPTextConfig(**dataclasses.asdict(config))).eval().to(dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in theirs.parameters():
        weight.data.normal_(0, 0.05 if weight.ndim > 1 else 0.3, generator=generator)
    with torch.device("meta"):
        ours = TextEncoder(config)
    state = {f"text_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return theirs, ours.eval()


@torch.no_grad()
def check_equal(theirs: Any, ours: TextEncoder, batch: int, length: int) -> None:
    vocabulary = ours.config.vocab_size
    ids = torch.randint(
        0, vocabulary - 1, (batch, length), generator=torch.Generator().manual_seed(1)
    )
    ids[:, length // 2] = vocabulary - 1  # the end token, and more behind it
    wanted, found = theirs(ids, output_hidden_states=True), ours(ids)
    assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
    assert torch.equal(found.pooler_output, wanted.pooler_output)
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(one, other)
    assert found[0].float().std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_is_transformers_own_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    theirs, ours = both(TextConfig.read(CONFIGS[name], name), dtype)
    for batch, length in ((1, 77), (3, 77), (2, 5), (1, 1)):
        check_equal(theirs, ours, batch, length)


def test_roads_is_transformers_own_bit_for_bit() -> None:
    from transformers.models.clip.modeling_clip import CLIPTextModel

    theirs = CLIPTextModel.from_pretrained(ROADS / "text_encoder", dtype=torch.float32).eval()
    ours = pare.TextEncoder.from_pretrained("roads", device="cpu", dtype="float32")
    check_equal(theirs, ours, 2, 77)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sd21"])
def test_full_size_is_transformers_own_bit_for_bit(name: str) -> None:
    theirs, ours = both(TextConfig.read(TEXTS[name], name))
    check_equal(theirs, ours, 1, 77)
    check_equal(theirs, ours, 2, 77)


def test_the_hub_names_the_tensors_so() -> None:
    ours = pare.TextEncoder.from_pretrained("roads", device="cpu").state_dict()
    stored = open_weights(find_weights(ROADS, "text_encoder", half=False))
    assert own_names(stored, ours, text_name).keys() == ours.keys()
    assert "text_model.encoder.layers.2.self_attn.q_proj.weight" in ours


def test_loading_a_model_does_not_import_the_compiler() -> None:
    code = """
import sys, pare
pare.Pipeline.from_pretrained("roads", device="cpu").encode_prompts("a road")
heavy = {"torch._dynamo", "sympy", "scipy", "transformers.models.clip.modeling_clip"}
print(*heavy & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_a_token_attends_to_itself_and_those_before_it() -> None:
    encoder = pare.TextEncoder.from_pretrained("roads", device="cpu", dtype="float32")
    ids = torch.randint(0, 600, (1, 77), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 40] = 601
    before, after = encoder(ids)[0][0], encoder(other)[0][0]
    assert torch.equal(before[:40], after[:40])
    assert (before[40:] - after[40:]).abs().amax(dim=-1).min() > 1e-4


def test_the_pooled_output_is_the_first_end_tokens() -> None:
    ids = torch.tensor([[522, 7, 523, 523], [522, 523, 3, 523]])
    for config in (TEXT | {"eos_token_id": 523}, TEXT | {"eos_token_id": OLD_END}):
        _, encoder = both(TextConfig.read(config, "it"))
        found = encoder(ids)
        rows = found.last_hidden_state[torch.arange(2), torch.tensor([2, 1])]
        assert torch.equal(found.pooler_output, rows)
