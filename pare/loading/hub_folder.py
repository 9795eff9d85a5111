"""The files that a model is made of, in the Hub's folder layout.

    model_index.json                            which class each part is
    scheduler/scheduler_config.json
    tokenizer/vocab.json, merges.txt, …
    text_encoder/config.json, model.safetensors
    unet/config.json, diffusion_pytorch_model.safetensors
    vae/config.json, diffusion_pytorch_model.safetensors

A repository has much more: the same weights for other programs, at other precisions and
as pickles.  What is chosen here is what is downloaded, and what is read from a folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from pare.config import read_json, short_json
from pare.errors import ConfigError, ModelError

INDEX = "model_index.json"

CONFIGS = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
)
"""Small files without which no model runs; but for those in `IN_TOKENIZER_JSON`."""

IN_TOKENIZER_JSON = frozenset({"tokenizer/merges.txt", "tokenizer/vocab.json"})
"""Files that a tokenizer.json replaces, as it has their content."""

TOKENIZER_EXTRAS = (
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
"""Optional files of a tokenizer."""

WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""Part -> the file name of its weights, without `.safetensors`."""

SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.(safetensors|bin)", re.ASCII)


def weight_names(part: str, half: bool) -> Iterator[str]:
    """The names that a part's weights may have, best first; an index stands for its shards.

    Safetensors come before pickles, and among each the precision that is wanted.

    Args:
        half: whether the float16 variant is wanted.
    """
    for kind in ("safetensors", "bin"):
        stem = WEIGHTS[part]
        if part == "text_encoder" and kind == "bin":
            stem = "pytorch_model"
        full = (f"{stem}.{kind}", f"{stem}.{kind}.index.json")
        float16 = (f"{stem}.fp16.{kind}", f"{stem}.{kind}.index.fp16.json")
        for name in (*float16, *full) if half else (*full, *float16):
            yield f"{part}/{name}"


def choose_weights(names: Collection[str], part: str, half: bool) -> str | None:
    """The best file, or index of shards, of a part's weights among `names`; None: there is none.

    Args:
        names: paths inside the repository or folder, as `unet/config.json`.
        half: whether the float16 variant is wanted.
    """
    return next((name for name in weight_names(part, half) if name in names), None)


def is_index(name: str) -> bool:
    """Whether the name that `choose_weights` gave is an index of shards."""
    return name.endswith(".json")


def read_shards(index: Path) -> list[str]:
    """The names of the files, beside an index, that together hold a part's weights.

    Raises:
        ConfigError: not an index, or one that names something that is no file beside it.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConfigError(
            f"{index} has no weight_map", expected="tensor names and the files that hold them"
        )
    for name in places.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise ConfigError(
                f"{index} names {short_json(name)} as a file of weights",
                expected="the name of a file beside it",
            )
    return sorted(set(places.values()))


def part_file(folder: Path, part: str, name: str) -> Path:
    path = folder / part / name
    if not path.is_file():
        raise ModelError(f"{folder} has no {part}/{name}", fix="download the whole model")
    return path


def find_weights(folder: Path, part: str, half: bool) -> Path:
    """The file of a part's weights, or the index of its shards.

    Args:
        half: whether the float16 variant is wanted, where there is one.
    """
    there = {f"{part}/{path.name}" for path in (folder / part).glob("*") if path.is_file()}
    name = choose_weights(there, part, half)
    if name is not None:
        return folder / name
    others = sorted(path.name for path in (folder / part).glob("*.[bs][ia][nf]*"))
    raise ModelError(
        f"{folder} has no {next(weight_names(part, half=False))}"
        + (f", only {', '.join(others[:3])}" if others else ""),
        expected="each part's weights as safetensors or .bin, under the Hub's names",
        fix="download the whole model",
    )


def weight_files(path: Path) -> list[Path]:
    """The files that hold a part's weights: `path` itself, or the shards that it lists."""
    if not is_index(path.name):
        return [path]
    files = [path.with_name(name) for name in read_shards(path)]
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{path} names {file.name}, which is not there", fix="download the whole model"
            )
    return files
