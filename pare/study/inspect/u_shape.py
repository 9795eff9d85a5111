"""The UNet block by block: shapes, layers, cost, and the skip connections.

    for stage in u_shape(table).stages:
        print(stage.name, stage.shape)        # down_blocks.0 (1, 320, 32, 32)

It is derived from the layer table, that is, from a run of the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pare.study.inspect.flops import Flops
from pare.study.inspect.layer_table import Layer, LayerTable, Shape


@dataclass(frozen=True)
class Stage:
    """A block of the UNet, or its first or last convolution."""

    name: str
    """`x_t` (the input), `conv_in`, `down_blocks.0` … `mid_block` … `conv_out`."""
    shape: Shape
    """Of its output: (B, channels, h, w)."""
    grid: tuple[int, int]
    """Height and width of its ResNet blocks, before it downsamples or upsamples."""
    layers: tuple[str, ...]
    """"ResNet", "transformer", "downsample", "upsample", in the order of execution."""
    skips: tuple[Shape, ...]
    """The skip connections that a down block makes or an up block takes, in that order."""
    parameters: int
    flops: Flops
    peak_bytes: int
    code: str


@dataclass(frozen=True)
class UShape:
    """The blocks in the order of execution."""

    stages: tuple[Stage, ...]

    def named(self, beginning: str) -> list[Stage]:
        """The blocks whose names begin so: "down_blocks"."""
        return [stage for stage in self.stages if stage.name.startswith(beginning)]


WORDS = {
    "ResnetBlock": "ResNet",
    "SpatialTransformer": "transformer",
    "Downsample": "downsample",
    "Upsample": "upsample",
    "Conv2d": "convolution",
}


def u_shape(table: LayerTable, prefix: str = "unet") -> UShape:
    """The blocks of a UNet's layer table."""
    x_t = table[prefix].inputs["x_t"]
    stages = [Stage("x_t", x_t, grid_of(x_t), (), (), 0, Flops(), 0, "")]
    for layer in table:
        name = layer.name.removeprefix(f"{prefix}.")
        block = name.startswith(("down_blocks.", "up_blocks.")) and name.count(".") == 1
        if block or name in ("conv_in", "mid_block", "conv_out"):
            stages.append(stage(name, layer, table))
    return UShape(tuple(stages))


def stage(name: str, layer: Layer, table: LayerTable) -> Stage:
    inner = [
        part
        for part in table.inside(layer.name)
        if part.outputs and part.name.count(".") == layer.name.count(".") + 2
        and not part.name.endswith(".conv")
    ]  # fmt: skip
    layers = tuple(WORDS[part.kind] for part in inner) or ("convolution",)
    x = next(iter(layer.inputs.values()))
    if name.startswith("up_blocks"):
        stored = [shape for key, shape in layer.inputs.items() if key.startswith("skips")]
        taken = layers.count("ResNet")
        skips: Sequence[Shape] = stored[: -taken - 1 : -1]  # the last one first
    elif name == "conv_in":
        skips = layer.outputs
    else:
        skips = layer.outputs[1:]
    return Stage(
        name,
        layer.outputs[0],
        grid_of(x),
        layers,
        tuple(skips),
        layer.parameters,
        layer.flops,
        layer.peak_bytes,
        layer.code,
    )


def grid_of(shape: Shape) -> tuple[int, int]:
    return shape[-2], shape[-1]
