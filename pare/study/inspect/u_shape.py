"""The U: what each stage of the UNet hands on, and which skips go from left to right.

    for stage in u_shape(table).stages:
        print(stage.name, stage.shape)        # down_blocks.0 (1, 320, 32, 32)

Read off the layer table, so that it is what the code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pare.study.inspect.flops import Flops
from pare.study.inspect.layer_table import Layer, LayerTable, Shape


@dataclass(frozen=True)
class Stage:
    """A step along the U."""

    name: str
    """`x_t` (the input), `conv_in`, `down_blocks.0` … `mid_block` … `conv_out`."""
    shape: Shape
    """What it hands on: (B, channels, h, w)."""
    works_at: tuple[int, int]
    """Height and width of its ResNet blocks: before it halves or doubles them."""
    made_of: tuple[str, ...]
    """"ResNet", "attention", "halve", "double", in the order of execution."""
    skips: tuple[Shape, ...]
    """On the way down those that it makes, on the way up those that it takes, in that order."""
    parameters: int
    flops: Flops
    peak_bytes: int
    code: str


@dataclass(frozen=True)
class UShape:
    """The stages in the order of execution."""

    stages: tuple[Stage, ...]

    def named(self, beginning: str) -> list[Stage]:
        """The stages whose names begin so: "down_blocks"."""
        return [stage for stage in self.stages if stage.name.startswith(beginning)]


WORDS = {
    "ResnetBlock": "ResNet",
    "SpatialTransformer": "attention",
    "Downsample": "halve",
    "Upsample": "double",
    "Conv2d": "convolution",
}


def u_shape(table: LayerTable, prefix: str = "unet") -> UShape:
    """The U of a UNet's layer table."""
    x_t = table[prefix].inputs["x_t"]
    stages = [Stage("x_t", x_t, grid(x_t), (), (), 0, Flops(), 0, "")]
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
    made_of = tuple(WORDS[part.kind] for part in inner) or ("convolution",)
    x = next(iter(layer.inputs.values()))
    if name.startswith("up_blocks"):
        stored = [shape for key, shape in layer.inputs.items() if key.startswith("skips")]
        taken = made_of.count("ResNet")
        skips: Sequence[Shape] = stored[: -taken - 1 : -1]  # the last one first
    elif name == "conv_in":
        skips = layer.outputs
    else:
        skips = layer.outputs[1:]
    return Stage(
        name,
        layer.outputs[0],
        grid(x),
        made_of,
        tuple(skips),
        layer.parameters,
        layer.flops,
        layer.peak_bytes,
        layer.code,
    )


def grid(shape: Shape) -> tuple[int, int]:
    return shape[-2], shape[-1]
