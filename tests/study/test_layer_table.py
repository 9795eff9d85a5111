"""The layer table: right shapes, costs, memory and lines, without touching the model."""

from __future__ import annotations

import functools
import linecache
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pare
from pare.config import UNetConfig, VAEConfig
from pare.errors import SettingError
from pare.study.inspect import describe, layer_table, layers, trace, u_shape
from pare.study.inspect.flops import Flops
from pare.study.inspect.layer_table import LayerTable, nearest
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.unet.resnet import ResnetBlock
from pare.vae import AutoencoderKL
from pare.verify.layer_parity import watching
from tests.conftest import ROOT
from tests.hub_configs import SD14_UNET
from tests.random_models import TINY_UNET, TINY_VAE, normal, random_state

# Masaya Ishihara's slides "Understand Stable Diffusion from Code", appendix "UNet is really U
# form?": SD 1.4, one image under guidance.
SLIDES = {
    "x_t": (2, 4, 64, 64),
    "conv_in": (2, 320, 64, 64),
    "down_blocks.0": (2, 320, 32, 32),
    "down_blocks.1": (2, 640, 16, 16),
    "down_blocks.2": (2, 1280, 8, 8),
    "down_blocks.3": (2, 1280, 8, 8),
    "mid_block": (2, 1280, 8, 8),
    "up_blocks.0": (2, 1280, 16, 16),
    "up_blocks.1": (2, 1280, 32, 32),
    "up_blocks.2": (2, 640, 64, 64),
    "up_blocks.3": (2, 320, 64, 64),
    "conv_out": (2, 4, 64, 64),
}


def empty_unet(raw: object = TINY_UNET) -> UNet:
    with torch.device("meta"):
        return UNet(UNetConfig.read(raw, "the test's config"))  # type: ignore[arg-type]


@functools.cache
def tiny_table() -> LayerTable:
    return layer_table(empty_unet(), (1, 4, 8, 8), 500, (1, 77, 12), prefix="unet")


@pytest.fixture(scope="module")
def sd14() -> LayerTable:
    unet = empty_unet(SD14_UNET)
    return layer_table(unet, (2, 4, 64, 64), 500, (2, 77, 768), prefix="unet")


def test_the_slides_table_of_the_u(sd14: LayerTable) -> None:
    u = u_shape(sd14)
    assert {stage.name: stage.shape for stage in u.stages} == SLIDES


def test_the_skips_of_the_u_meet(sd14: LayerTable) -> None:
    u = u_shape(sd14)
    made = [shape for stage in u.stages[:7] for shape in stage.skips]
    taken = [shape for stage in u.stages[7:] for shape in stage.skips]
    assert len(made) == 12
    assert taken == made[::-1]
    for stage in u.named("up_blocks"):
        assert {shape[-2:] for shape in stage.skips} == {stage.grid}


def test_sd14_in_numbers(sd14: LayerTable) -> None:
    """859.52 million parameters, as on the model's card; 401 G multiply-adds an image."""
    whole = sd14["unet"]
    assert whole.parameters == 859_520_964
    assert whole.parameters == sum(
        sd14[f"unet.{part}"].parameters
        for part in ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks",
                     "conv_norm_out", "conv_out")
    )  # fmt: skip
    assert 0.80e12 < whole.flops.total / 2 < 0.81e12
    assert sd14["unet.down_blocks.0"].flops.total < sd14["unet.down_blocks"].flops.total


def test_the_architecture_sd1_is_sd14(sd14: LayerTable) -> None:
    assert layers(describe("sd1"), "unet", batch=2).layers == sd14.layers


# --- costs --------------------------------------------------------------------------------


def counted_by_torch(run: object) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def products(flops: Flops) -> int:
    """Without the norms, which PyTorch's counter leaves out."""
    return flops.total - flops.norm


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_the_unets_flops_are_torchs(size: tuple[int, int]) -> None:
    unet = empty_unet()
    x_t, text = torch.empty(2, 4, *size, device="meta"), torch.empty(2, 77, 12, device="meta")
    table = trace(unet, lambda: unet(x_t, 500, text), "unet")
    assert products(table["unet"].flops) == counted_by_torch(lambda: unet(x_t, 500, text))
    block = unet.mid_block.attentions[0]
    pixels = -(-size[0] // 2), -(-size[1] // 2)
    x = torch.empty(2, 16, *pixels, device="meta")
    one = table["unet.mid_block.attentions.0"]
    assert products(one.flops) == counted_by_torch(lambda: block(x, text, None))
    assert one.flops.attention > 0
    assert one.flops.convolution > 0


def test_the_vaes_flops_are_torchs() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig.read(TINY_VAE, "the test's config"))
    image = torch.empty(1, 3, 16, 16, device="meta")
    table = layer_table(vae, (1, 3, 16, 16), prefix="vae")
    assert products(table["vae"].flops) == counted_by_torch(lambda: vae(image))


def test_the_text_encoders_flops_are_torchs() -> None:
    model = describe("roads")
    table = layers(model, "text_encoder")
    with torch.device("meta"):
        encoder = TextEncoder(model.config("text_encoder"))
    tokens = torch.zeros(1, 77, dtype=torch.long, device="meta")
    assert products(table.layers[0].flops) == counted_by_torch(lambda: encoder(tokens))
    layer = table["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
    assert layer.outputs == ((1, 77, 128),)
    assert layer.code.startswith("pare/text/clip.py:")


def test_every_rule_by_hand() -> None:
    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, (3, 1), groups=2)
            self.linear = nn.Linear(5, 7)
            self.group = nn.GroupNorm(2, 4)
            self.layer = nn.LayerNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(self.group(x))
            tokens = self.layer(x[:, 0])
            F.scaled_dot_product_attention(tokens, tokens[:, :3], tokens[:, :3])
            return self.linear(tokens)

    flops = layer_table(Each(), (2, 4, 8, 5))[""].flops
    assert flops == Flops(
        convolution=2 * (2 * 6 * 6 * 5) * (4 // 2 * 3 * 1),
        linear=2 * (2 * 8 * 7) * 5,
        attention=2 * (2 * 8 * 3 * 5) * 2,
        norm=7 * (2 * 4 * 8 * 5 + 2 * 8 * 5),
    )


def test_memory_by_hand() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.silu(F.silu(F.silu(x)))  # the first is gone when the third is made

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = F.silu(x)
            second = F.silu(first)
            return first.view(-1) + F.silu(second).view(-1)

    size = 4 * 10 * 10
    chain = layer_table(Chain(), (10, 10))[""]
    assert (chain.peak_bytes, chain.output_bytes) == (3 * size, size)
    # x, first, second, third and the sum; views take nothing.
    assert layer_table(Kept(), (10, 10))[""].peak_bytes == 5 * size


def test_memory_of_a_resnet_block_in_half_precision() -> None:
    block = ResnetBlock(8, 16, groups=4, eps=1e-5).half()
    layer = layer_table(block, (1, 8, 4, 4), prefix="block")["block"]
    unit = 2 * 8 * 4 * 4
    # At conv2: x (1 unit), conv1's output in `hidden` (2), silu's (2), the result (2).
    # At the end: x is replaced by its shortcut (2), hidden (2), their sum (2), and x (1), which
    # whoever called still holds.
    assert layer.peak_bytes == 7 * unit
    assert layer.output_bytes == 2 * unit


# --- what it says of the code, and that it leaves the model alone --------------------------


def test_the_shapes_are_those_of_a_run() -> None:
    unet = empty_unet()
    unet.load_state_dict(random_state(unet, torch.Generator().manual_seed(0)), assign=True)
    table = layer_table(unet, (1, 4, 8, 8), 500, (1, 77, 12), prefix="unet")
    seen: dict[str, list[tuple[int, ...]]] = {}

    def see(name: str, outputs: list[Tensor]) -> None:
        seen[f"unet.{name}"] = [tuple(output.shape) for output in outputs]

    with watching(unet, see), torch.no_grad():
        unet(normal(1, 4, 8, 8), 500, normal(1, 77, 12))
    ran = {layer.name: list(layer.outputs) for layer in table if layer.outputs}
    ran.pop("unet")
    assert ran == seen


def test_the_lines_compute_what_they_are_said_to() -> None:
    for layer in tiny_table():
        if not layer.outputs:
            continue
        path, _, line = layer.code.rpartition(":")
        assert path.startswith("pare/"), layer
        text = linecache.getline(str(ROOT / path), int(line))
        if layer.kind in ("Conv2d", "Linear", "GroupNorm", "LayerNorm"):
            last = [piece for piece in layer.name.split(".") if not piece.isdigit()][-1]
            assert f"self.{last}" in text, layer
        elif layer.kind not in ("Sequential", "Identity"):
            assert re.match(r"\s+def forward\(", text), layer


def test_the_tensors_are_the_hubs() -> None:
    unet = empty_unet()
    table = tiny_table()
    everything = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert dict(table["unet"].tensors) == everything
    leaf = table["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert leaf.tensors == {"weight": (16, 12)}
    names = {
        f"{layer.name.removeprefix('unet.')}.{key}"
        for layer in table
        for key in layer.tensors
        if "." not in key
    }
    assert names == everything.keys()


def test_a_model_with_weights_is_left_as_it_was() -> None:
    unet = empty_unet()
    unet.load_state_dict(random_state(unet, torch.Generator().manual_seed(0)), assign=True)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in unet.named_parameters()}
    table = layer_table(unet, (1, 4, 8, 8), 500, (1, 77, 12), prefix="unet")
    assert table.layers == tiny_table().layers
    for name, tensor in unet.named_parameters():
        address, value = before[name]
        assert tensor.data_ptr() == address
        assert torch.equal(tensor, value)
    for module in unet.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_hooks_are_gone_also_when_the_run_fails() -> None:
    unet = empty_unet()
    with pytest.raises(RuntimeError):
        layer_table(unet, (1, 5, 8, 8), 500, (1, 77, 12))
    assert not any(module._forward_hooks for module in unet.modules())


# --- names --------------------------------------------------------------------------------


def test_globs() -> None:
    table = tiny_table()
    found = table.find("unet.*.attn2")
    assert len(found) == len([s for s in empty_unet().sites() if s.kind == "cross"])
    assert [layer.name for layer in table.find("unet.conv_??")] == ["unet.conv_in"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("unet.mid_blok", "unet.mid_block"),
        ("unet.down_blocks.7.attentions.0", "unet.down_blocks.0.attentions.0"),
        ("mid_block.resnets.1", "unet.mid_block.resnets.1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn3",
         "unet.mid_block.attentions.0.transformer_blocks.0.attn1"),
    ],
)  # fmt: skip
def test_a_wrong_name_suggests_the_nearest(wrong: str, right: str) -> None:
    table = tiny_table()
    assert right in nearest(wrong, list(table.names))
    with pytest.raises(SettingError, match="did you mean") as caught:
        table.find(wrong)
    assert right in str(caught.value)


def test_the_package_is_where_the_lines_are() -> None:
    assert Path(pare.__file__).parent.parent == ROOT
