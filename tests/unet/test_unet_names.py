"""Names, shapes and sizes of the tensors are the Hub's: checked on `meta`, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pare.config import UNetConfig
from pare.unet import UNet
from tests.hub_configs import SD14_UNET, SD21_UNET

CASES = [
    pytest.param(SD14_UNET, 859_520_964, id="SD 1.4"),
    pytest.param(SD21_UNET, 865_910_724, id="SD 2.1"),
]


@pytest.mark.parametrize(("raw", "parameters"), CASES)
def test_the_tensors_are_diffusers_by_name_and_shape(raw: dict[str, Any], parameters: int) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        ours = UNet(UNetConfig.read(raw, "config.json")).state_dict()
        theirs = UNet2DConditionModel.from_config(raw).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    assert len(ours) == 686
    assert sum(tensor.numel() for tensor in ours.values()) == parameters


@pytest.mark.parametrize(("raw", "parameters"), CASES)
def test_every_attention_layer_has_its_site(raw: dict[str, Any], parameters: int) -> None:
    config = UNetConfig.read(raw, "config.json")
    with torch.device("meta"):
        unet = UNet(config)
    sites = list(unet.sites())
    # Two transformers in each of three down blocks, one in the middle, three in each of three up.
    assert len(sites) == 2 * (2 * 3 + 1 + 3 * 3)
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        # The name is the module's own path, and the layer there knows this very site.
        layer: Any = unet.get_submodule(site.name)
        assert layer.site is site
        assert site.heads == config.heads[site.stage]
        assert layer.to_q.weight.shape[0] == config.block_out_channels[site.stage]
        width = config.cross_attention_dim if site.kind == "cross" else layer.to_q.in_features
        assert layer.to_k.in_features == width
    assert [(s.block, s.stage, s.index) for s in sites[::2]] == [
        *(("down", stage, index) for stage in (0, 1, 2) for index in (0, 1)),
        ("mid", 3, 0),
        *(("up", stage, index) for stage in (2, 1, 0) for index in (0, 1, 2)),
    ]


def test_the_widths_are_those_of_the_table_above_the_unet() -> None:
    with torch.device("meta"):
        unet: Any = UNet(UNetConfig.read(SD14_UNET, "config.json"))
    down = [[r.conv1.in_channels for r in block.resnets] for block in unet.down_blocks]
    up = [[r.conv1.in_channels for r in block.resnets] for block in unet.up_blocks]
    assert down == [[320, 320], [320, 640], [640, 1280], [1280, 1280]]
    assert up[3] == [640 + 320, 320 + 320, 320 + 320]
    assert up[2] == [1280 + 640, 640 + 640, 640 + 320]
    assert up[1] == [1280 + 1280, 1280 + 1280, 1280 + 640]
    assert up[0] == [1280 + 1280] * 3
