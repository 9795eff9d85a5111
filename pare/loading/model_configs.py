"""A model folder's configs: read, and checked against each other before the weights are read.

`check_index` checks in `model_index.json` that the model is Stable Diffusion 1.x or 2.x;
`read_configs` reads the configs of its parts and the tokenizer's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pare.config import TextConfig, UNetConfig, VAEConfig, read_json, short_json
from pare.errors import ConfigError, ModelError
from pare.loading.hub_folder import INDEX, part_file
from pare.text.tokenizer import TokenizerFiles, read_tokenizer

# What each part of a model may be, by the class that `model_index.json` names.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Parts that pare does not load: the filter of finished images, what feeds it, and the encoder
# that IP-Adapters read images with.  The scheduler has a config file of its own.
SKIPPED = frozenset({"scheduler", "safety_checker", "feature_extractor", "image_encoder"})

# Pipelines of other models, by how their class names begin.
OTHER_MODELS = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableCascade": "Stable Cascade",
    "Flux": "Flux",
    "Kandinsky": "Kandinsky",
    "PixArt": "PixArt",
}


@dataclass(frozen=True)
class ModelConfigs:
    """The configs of a folder's parts, checked against each other, and its tokenizer's files."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextConfig
    tokenizer: TokenizerFiles


def read_configs(folder: Path, *, strict: bool = False) -> ModelConfigs:
    """The parts' configs, checked against each other and against the tokenizer.

    Args:
        strict: see `HubConfig.read`.

    Raises:
        ModelError: a file is missing, or the UNet is for another task.
        ConfigError: a file that pare cannot use, or parts that are not of one model.
    """
    vae_raw, vae_file = config_of(folder, "vae")
    vae = VAEConfig.read(vae_raw, vae_file, strict=strict)
    unet_raw, unet_file = config_of(folder, "unet")
    if unet_raw.get("sample_size", 0) is None and vae_raw.get("sample_size") and not strict:
        # The images that the VAE was trained on are the UNet's.
        unet_raw["sample_size"] = [side // vae.factor for side in vae.sample_size]
    unet = UNetConfig.read(unet_raw, unet_file, strict=strict)
    text = TextConfig.read(*config_of(folder, "text_encoder", strict=strict), strict=strict)
    check_fit(folder, unet, vae, text)
    return ModelConfigs(unet, vae, text, read_tokenizer(folder / "tokenizer", text.vocab_size))


def check_index(folder: Path) -> None:
    """Check that `model_index.json` describes a Stable Diffusion 1.x / 2.x model."""
    path = folder / INDEX
    if not path.is_file():
        raise ModelError(
            f"{folder} has no model_index.json",
            expected="a model's whole folder, as the Hub lays it out",
            fix="name the folder that holds unet/ and vae/",
        )
    index = read_json(path)
    pipeline = str(index.get("_class_name", "unnamed")).removeprefix("Flax")
    for beginning, name in OTHER_MODELS.items():
        if pipeline.startswith(beginning):
            raise ModelError(
                f"{folder} is a model of {name} ({pipeline})",
                expected="Stable Diffusion 1.x or 2.x",
            )
    # A part is ["library", "Class"]; [null, null] says that there is none.
    classes = {
        part: class_name(entry[1])
        for part, entry in index.items()
        if isinstance(entry, list) and entry[1:]
    }
    for part, wanted in PARTS.items():
        if classes.get(part) not in wanted:
            named = short_json(classes.get(part)) if classes.get(part) else "no class"
            raise ModelError(
                f"{path} names {named} as the {part} of a {pipeline}",
                expected=f"{wanted[0]}, as Stable Diffusion 1.x and 2.x have",
            )
    for part, name in classes.items():
        if name is not None and part not in PARTS and part not in SKIPPED:
            raise ModelError(
                f"{path} has a part that pare does not run: {part}, {short_json(name)}",
                expected="Stable Diffusion 1.x or 2.x",
            )


def class_name(name: Any) -> Any:
    """A class that a file names, as PyTorch's half of the library calls it."""
    return name.removeprefix("Flax") if isinstance(name, str) else name


def check_fit(folder: Path, unet: UNetConfig, vae: VAEConfig, text: TextConfig) -> None:
    """Check that the parts fit: the width of one's output is that of the next one's input.

    Raises:
        ModelError: a UNet for another task.
        ConfigError: parts that are not of one model.
    """
    unet.check_inputs(str(folder))
    for one, width, other, wanted in (
        ("text encoder", text.hidden_size, "UNet's cross-attention", unet.cross_attention_dim),
        ("VAE", vae.latent_channels, "UNet's output", unet.out_channels),
    ):
        if width != wanted:
            raise ConfigError(
                f"{folder} has parts of different models: the {one} has {width} channels "
                f"and the {other} {wanted}",
                fix="download the whole model again",
            )


def config_of(folder: Path, part: str, *, strict: bool = False) -> tuple[dict[str, Any], str]:
    """The JSON object of a part's config file, and the file's name for messages."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = part_file(folder, part, name)
    raw = read_json(path)
    if part == "text_encoder" and not strict and raw.get("model_type") == "clip":
        # The config of a whole CLIP, or a text encoder's that was saved under its name.
        whole = raw.get("text_config")
        raw = {**(whole if isinstance(whole, dict) else raw), "model_type": "clip_text_model"}
    return raw, str(path)


CLIPPING = ("DDIMScheduler", "DDPMScheduler")
"""Solvers whose class clips the predicted x0 where a file does not say otherwise."""


def scheduler_config_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The scheduler's config as diffusers' Stable Diffusion pipelines run it, and its file's name.

    These differ from `scheduler_config.json`:

    - The class is the one in `model_index.json`, where authors who change the solver often
      change it alone.
    - `steps_offset` is 1.  Files from before October 2022 lack it or have 0, while CompVis' own
      code starts at 1.
    - `clip_sample` is false: clipping is meant for pixels, and is the default of DDIM's and DDPM's.
    - `skip_prk_steps` is true for an inpainting model.
    """
    config, where = config_of(folder, "scheduler")
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    entry = index.get("scheduler")
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if named is not None and named != config.get("_class_name"):
        config |= {"_class_name": named}
        where = f"{where}, under {INDEX}'s class,"
    config["_class_name"] = class_name(config.get("_class_name"))
    if type(config.get("steps_offset", 0)) is int:  # anything else is refused later
        config |= {"steps_offset": 1}
    if config.get("clip_sample", config.get("_class_name") in CLIPPING) is True:
        config |= {"clip_sample": False}
    inpaints = index.get("_class_name") == "StableDiffusionInpaintPipeline"
    silent = config.get("_class_name") != "PNDMScheduler"
    if inpaints and config.get("skip_prk_steps", silent) is False:
        config |= {"skip_prk_steps": True}
    return config, where
