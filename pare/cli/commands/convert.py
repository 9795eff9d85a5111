"""`pare convert`: single files to the Hub's folder layout, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import command, option, options
from pare.cli.json_output import plain
from pare.cli.lora_options import lora_option, named_lora
from pare.cli.option_types import DTYPE_NAMES
from pare.cli.options import json_option

convert_options = options(
    "Conversion",
    option("--check", "check_only", is_flag=True,
           help="List every tensor of SOURCE, a single file or a folder; write nothing."),
    option("--ema/--no-ema", default=None,
           help="Take the UNet's moving average, or its last step. Default: the average, if there "
                "is one."),
    option("--prediction", type=click.Choice(("eps", "v")),
           help="What the UNet predicts. Default: found out from the weights, and said how."),
    option("--dtype", default="keep", show_default=True,
           type=click.Choice(("keep", *DTYPE_NAMES[1:])), help="Number type of the weights."),
    option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
           help="vocab.json and merges.txt of a model that does not use CLIP's own."),
    lora_option,
    option("--only", type=click.Choice(("unet", "vae")),
           help="Convert this part alone; the file need not hold the others."),
    option("--drop", multiple=True, metavar="BEGINNING",
           help="Leave out tensors whose names begin so. May be repeated."),
    option("--old-vae-names", "old_vae", is_flag=True,
           help="Write a folder whose VAE attention has its names from before 2023."),
    option("--force", is_flag=True, help="Replace TARGET."),
    json_option,
)  # fmt: skip

EXAMPLES = (
    "pare convert --check model.ckpt",
    "pare convert model.ckpt converted",
    "pare convert model single.safetensors --dtype float16",
    "pare convert model baked --lora style.safetensors=0.8",
)


@command(section="check", examples=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path), required=False)
@convert_options
def convert(
    source: Path, target: Path | None, check_only: bool, dtype: str, lora: tuple[str, ...],
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Convert weights: a single file SOURCE to a folder TARGET in the Hub's layout, or back.

    TARGET is a single file if its name ends in .safetensors or .ckpt, else a folder. No code in a
    .ckpt is run. --check exits with code 2 if the file would not load.
    """
    import torch

    from pare.loading import conversion
    from pare.loading.single_file import check_rows

    if check_only:
        looked_at = {name: given[name] for name in ("ema", "only", "drop")}
        rows = conversion.check(source, **looked_at)
        print_tensors([dataclasses.asdict(row) for row in rows], as_json)
        check_rows(source, rows)
        return
    if target is None:
        raise click.UsageError("Missing argument 'TARGET' (or the option --check).")
    done = conversion.convert(
        source,
        target,
        dtype=None if dtype == "keep" else getattr(torch, dtype),
        loras=[named_lora(value) for value in lora],
        **given,
    )
    for note in done.notes:
        terminal.note(note)
    terminal.result(json.dumps(plain(done), indent=2) if as_json else target)


def print_tensors(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A checkpoint's tensors, one a line: status, type, shape, name."""
    if as_json:
        terminal.result(json.dumps(plain(rows), indent=2))
        return
    for row in rows:
        shape = " ".join(map(str, row["shape"]))
        terminal.result(f"{row['name']}  {shape}  {row['dtype']}  {row['status']}")
