"""`pare models`: the models on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from pare.cli import terminal
from pare.cli.grouped_help import command, option
from pare.cli.options import json_option
from pare.cli.terminal import one_line

EXAMPLES = ("pare models", "pare models . --hash")


@command("models", section="study", examples=EXAMPLES)
@click.argument("folders", nargs=-1, metavar="[FOLDER]…",
                type=click.Path(path_type=Path, exists=True, file_okay=False))  # fmt: skip
@option("--hash", "hashes", is_flag=True, usual=True, help="Also the SHA-256 of files.")
@json_option
def models(folders: tuple[Path, ...], hashes: bool, as_json: bool) -> None:
    """List models: those in the Hub's cache, or all that lie in FOLDER.

    For each its architecture, number type and size; LoRA files and embeddings with the base model
    that they were trained for. Headers are read, weights are not, but for LoRA files and --hash.
    """
    from pare.study.inspect.model_list import hub_models, models_in
    from pare.study.inspect.text_tables import TYPES, columns, size

    found = [one for folder in folders for one in models_in(folder, hashes=hashes)]
    if not folders:
        found = list(hub_models())
    if as_json:
        terminal.result(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    rows = [
        (one_line(one.name), one.kind, TYPES.get(one.dtype, one.dtype), size(one.bytes),
         one.revision[:7] or one.sha256)
        for one in found
    ]  # fmt: skip
    for line in columns([("model", "kind", "type", "size", ""), *rows], "lllrl", 0):
        terminal.result(line)
    if not rows:
        terminal.note("no models here")
