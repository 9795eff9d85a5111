"""The option --lora, and the pipeline under what it names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option
from pare.cli.option_types import InputFile, each
from pare.runtime import validation

if TYPE_CHECKING:
    from pare.loading.lora import LoraWeights
    from pare.pipeline import Pipeline

NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
PAIR = rf"[a-z.0-9]+={NUMBER}"
WEIGHTS = re.compile(rf"(.+?)=((?:{NUMBER}|{PAIR})(?:,{PAIR})*)", re.DOTALL)


class LoraOption(InputFile):
    """`FILE`, `FILE=0.8` or `FILE=0.8,mid=0,up.1=1.2`; FILE may be on the Hub."""

    name = "LoRA"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def file(self, value: Any) -> Path:
        return Path(self.split(value)[0])

    def with_file(self, value: Any, path: str) -> str:
        weights = self.split(value)[1]
        return f"{path}={weights}" if weights else path

    def bare_name(self, path: Path) -> Path:
        """A name on the Hub is kept whole."""
        return super().bare_name(path) if path.exists() else path

    def local(self, path: Path) -> Path:
        from pare.loading.lora_file import weights_file
        from pare.loading.lora_source import find_lora

        return weights_file(find_lora(path))

    @staticmethod
    def split(value: str) -> tuple[str, str]:
        """The file and its weights as they are written; by the text alone, wherever the file is."""
        match = WEIGHTS.fullmatch(value)
        return (match[1], match[2]) if match else (value, "")


def parse_weights(text: str) -> tuple[float, dict[str, float]]:
    """`0.8,mid=0` as (0.8, {"mid": 0.0}); without a first number it is 1."""
    first, *rest = text.split(",") if text else [""]
    if "=" in first:
        first, rest = "", [first, *rest]
    pairs = (one.partition("=") for one in rest)
    return float(first or 1.0), {block: float(number) for block, _, number in pairs}


def check_lora(value: str) -> str:
    """A value of --lora, if its weights and blocks are possible."""
    validation.check_lora_weights(*parse_weights(LoraOption.split(value)[1]))
    return value


lora_option = option(
    "--lora", multiple=True, type=LoraOption(), callback=each(check_lora), usual=True,
    metavar="FILE[=WEIGHT]",
    help="A LoRA: a file, or OWNER/NAME on the Hub. WEIGHT, 1 as trained, may differ by block "
         "(docs/lora.md). May be repeated.",
)  # fmt: skip


def with_loras(pipe: Pipeline, values: Sequence[str]) -> Pipeline:
    """The pipeline under every LoRA that --lora names.

    Raises:
        PareError: what `Pipeline.with_lora` finds wrong.
    """
    for value in values:
        file, weights = named_lora(value)
        pipe = pipe.with_lora(file, weights.weight, blocks=weights.blocks)
    return pipe


def named_lora(value: str) -> tuple[str, LoraWeights]:
    """A value of --lora as the name of its file and its weights."""
    from pare.loading.lora import LoraWeights

    file, weights = LoraOption.split(value)
    return file, LoraWeights(*parse_weights(weights))


def given_loras(given: Mapping[str, Any]) -> Sequence[str]:
    return given.get("lora") or ()
