"""`pare convert`: single files to the Hub's folder layout, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pare.cli.examples import examples
from pare.cli.options import DTYPE_NAMES, json_option, options
from pare.cli.printing import plain

convert_options = options(
    click.option("--check", "check_only", is_flag=True,
                 help="List every tensor of SOURCE, a single file or a folder; write nothing."),
    click.option("--ema/--no-ema", default=None,
                 help="The UNet's moving average, or its last step; the average if there is one."),
    click.option("--prediction", type=click.Choice(("eps", "v")),
                 help="What the UNet predicts; guessed, and said how, if not given."),
    click.option("--dtype", default="keep", show_default=True,
                 type=click.Choice(("keep", *DTYPE_NAMES[1:])), help="The weights' type."),
    click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="vocab.json and merges.txt of a model that has not CLIP's own."),
    click.option("--only", type=click.Choice(("unet", "vae")),
                 help="Of a file that need not have more than this."),
    click.option("--drop", multiple=True, metavar="BEGINNING",
                 help="Pass over tensors whose names begin so."),
    click.option("--old-vae-names", "old_vae", is_flag=True,
                 help="In a folder: the VAE's attention as programs before 2023 want it."),
    click.option("--force", is_flag=True, help="Replace TARGET."),
)  # fmt: skip


EXAMPLES = examples(
    "pare convert --check model.ckpt",
    "pare convert model.ckpt converted",
    "pare convert model single.safetensors --dtype float16",
)


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path), required=False)
@convert_options
@json_option
def convert(
    source: Path, target: Path | None, check_only: bool, dtype: str, as_json: bool, **given: Any
) -> None:
    """Convert SOURCE to TARGET: a single file to the Hub's folder layout, or back.

    TARGET is a single file if its name ends in .safetensors or .ckpt, else a folder. Nothing
    in a .ckpt is run. --check exits with code 2 if the file would not load.
    """
    import torch

    from pare.loading import conversion
    from pare.loading.single_file import check_rows

    if check_only:
        looked_at = {name: given[name] for name in ("ema", "only", "drop")}
        rows = conversion.check(source, **looked_at)
        print_rows([dataclasses.asdict(row) for row in rows], as_json)
        check_rows(source, rows)
        return
    if target is None:
        raise click.UsageError("Missing argument 'TARGET' (or the option --check).")
    done = conversion.convert(
        source, target, dtype=None if dtype == "keep" else getattr(torch, dtype), **given
    )
    for note in done.notes:
        click.echo(f"pare: {note}", err=True)
    click.echo(json.dumps(plain(done), indent=2) if as_json else target)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A checkpoint's tensors, one a line: status, type, shape, name."""
    if as_json:
        click.echo(json.dumps(plain(rows), indent=2))
        return
    for row in rows:
        shape = " ".join(map(str, row["shape"]))
        click.echo(f"{row['name']}  {shape}  {row['dtype']}  {row['status']}")
