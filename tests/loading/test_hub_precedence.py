"""A model's folder whose files contradict each other: pare runs what diffusers runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

from pare.loading.resolve import resolve_model, scheduler_config
from pare.loading.single_file import tokenizer_files
from pare.pipeline import Pipeline
from pare.text.tokenizer import build_tokenizer, read_tokenizer
from tests.conftest import ROADS
from tests.tiny_model import (
    SCHEDULER,
    change_json,
    write_inpainting_model,
    write_json,
    write_tiny_model,
)

NOBODY = {"safety_checker": [None, None], "feature_extractor": [None, None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    change_json(folder / "model_index.json", **NOBODY)
    return folder


def theirs(folder: Path) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it corrects the config
        return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("in_index", ["PNDMScheduler", "DDIMScheduler", "LMSDiscreteScheduler"])
@pytest.mark.parametrize("in_file", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    "says",
    [
        {"steps_offset": ...},
        {"steps_offset": 0, "clip_sample": True},
        {"clip_sample": False, "prediction_type": "v_prediction"},
    ],
    ids=["silent", "zero", "v"],
)
def test_the_scheduler_is_the_one_that_diffusers_runs(
    folder: Path, in_index: str, in_file: str, says: dict[str, Any]
) -> None:
    change_json(folder / "model_index.json", scheduler=["diffusers", in_index])
    path = folder / "scheduler" / "scheduler_config.json"
    write_json(path, SCHEDULER | {"_class_name": in_file})
    change_json(path, **says)
    reference = theirs(folder).scheduler
    reference.set_timesteps(10)
    config, where = scheduler_config(resolve_model(folder))
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert type(reference).__name__ == in_index == pipe.scheduler.config_type.HUB_CLASS
    assert config == pipe.scheduler_config
    assert (in_index == in_file) == (where == str(path))
    levels = [level.t for level in pipe.scheduler.timesteps(10).levels]
    assert dict.fromkeys(levels[:-1]) == dict.fromkeys(reference.timesteps.tolist())
    assert config["steps_offset"] == reference.config.steps_offset == 1
    assert pipe.scheduler.prediction_type == reference.config.prediction_type
    if in_index == "DDIMScheduler":
        assert config["clip_sample"] is reference.config.clip_sample is False


@pytest.mark.parametrize("says", [..., False, True])
def test_an_inpainting_model_skips_pndms_runge_kutta_steps(tmp_path: Path, says: object) -> None:
    folder = write_inpainting_model(tmp_path)
    change_json(folder / "model_index.json", **NOBODY)
    change_json(folder / "scheduler" / "scheduler_config.json", skip_prk_steps=says)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = StableDiffusionInpaintPipeline.from_pretrained(folder).scheduler
    assert scheduler_config(resolve_model(folder))[0]["skip_prk_steps"] is True
    assert reference.config.skip_prk_steps is True


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("text_encoder", {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}),
        ("text_encoder", {"architectures": ["CLIPModel"], "tokenizer_class": "BertTokenizer"}),
        ("tokenizer", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
        ("tokenizer", {"pad_token": "!", "eos_token": "!"}),
        ("unet", {"_class_name": "UNet3DConditionModel"}),
    ],
    ids=repr,
)
def test_the_embeddings_are_diffusers_own(tmp_path: Path, part: str, says: dict[str, Any]) -> None:
    """Token ids are the tokenizer's: the text encoder's config has no say in the embeddings."""
    folder = write_tiny_model(tmp_path)
    change_json(folder / "model_index.json", **NOBODY)
    file = "tokenizer_config.json" if part == "tokenizer" else "config.json"
    change_json(folder / part / file, **says)
    prompts = ["the snowy road!", "car " * 90]
    wanted, _ = theirs(folder).encode_prompt(prompts, "cpu", 1, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Pipeline.from_pretrained(folder, device="cpu").encode_prompts(prompts)
    assert torch.equal(ours.cond, wanted)


@pytest.mark.parametrize(("unet", "vae"), [(8, 512), (16, 64), ([8, 12], 64)])
def test_the_size_is_the_unets(folder: Path, unet: Any, vae: int) -> None:
    """The UNet's `sample_size` decides; the VAE's does not."""
    change_json(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    change_json(folder / "unet" / "config.json", sample_size=unet)
    change_json(folder / "vae" / "config.json", sample_size=vae)
    image = Pipeline.from_pretrained(folder, device="cpu")("car", steps=1, seeds=0).tensor
    reference = theirs(folder)
    reference.set_progress_bar_config(disable=True)
    wanted = reference("car", num_inference_steps=1, output_type="np").images
    assert tuple(image.shape[-2:]) == wanted.shape[1:3]


def test_a_single_files_tokenizer_folder_is_read_as_anywhere_else(tmp_path: Path) -> None:
    """tokenizer.json goes before vocab.json, and what the folder says before what the kind is."""
    from transformers import CLIPTokenizer

    source, target = tmp_path / "source", tmp_path / "target"
    CLIPTokenizer.from_pretrained(ROADS / "tokenizer", pad_token="!").save_pretrained(source)
    assert not (source / "vocab.json").exists()
    target.mkdir()
    for name, content in tokenizer_files("SD 1", 664, source).items():
        (target / name).write_bytes(content)
    tokenizer = build_tokenizer(read_tokenizer(target, 664), 664, 77)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("!", 0)
    assert tokenizer.get_vocab() == CLIPTokenizer.from_pretrained(source).get_vocab()
