"""What a model is, by its folder, its file or its name; and all that is wrong with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pare.errors import ModelError, SettingError
from pare.study.inspect import describe, layers
from pare.study.inspect.model_summary import ModelSummary
from tests.hub_server import COMMIT, Hub, Repository
from tests.loading.test_hub_client import User
from tests.single_files import original_checkpoint, with_average
from tests.tiny_model import change_json, write_tiny_model

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_a_whole_folder(folder: Path) -> None:
    model = describe(folder)
    assert model.all_problems == ()
    assert (model.form, model.kind, model.prediction) == ("folder", "Stable Diffusion 1", "epsilon")
    assert (model.size, model.tokens) == ((64, 64), 524)
    assert model.skipped == ("feature_extractor", "safety_checker")
    for name, part in model.parts.items():
        (file,) = part.files
        tensors = load_file(file.path)
        weights = [t for key, t in tensors.items() if not key.endswith("position_ids")]
        assert part.parameters == sum(tensor.numel() for tensor in weights), name
        assert part.bytes == file.path.stat().st_size
        assert set(part.stored.values()) <= tensors.keys()
        assert len(part.stored) == len(weights)


def test_roads_and_its_words() -> None:
    model = describe("roads")
    assert model.all_problems == ()
    assert set(model.parts["unet"].dtypes) == {"F16"}
    assert {"road", "snowy", "car"} <= set(model.words)
    assert list(model.words) == sorted(model.words)


def test_old_vae_names_are_found_in_the_file(folder: Path) -> None:
    tensors = load_file(folder / VAE_FILE)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for today, before in names.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
        return name

    save_file({old(name): tensor for name, tensor in tensors.items()}, folder / VAE_FILE)
    part = describe(folder).parts["vae"]
    assert part.whole
    name = "decoder.mid_block.attentions.0.to_q.weight"
    assert part.stored[name] == "decoder.mid_block.attentions.0.query.weight"


def test_all_that_is_wrong_with_a_folder_is_said(folder: Path) -> None:
    """Every part is broken in a way of its own, and one is whole."""
    tensors = load_file(folder / UNET_FILE)
    tensors["conv_in.bias"] = torch.zeros(9)
    del tensors["conv_out.bias"]
    save_file(tensors | {"extra": torch.zeros(2)}, folder / UNET_FILE)
    (folder / VAE_FILE).write_bytes((folder / VAE_FILE).read_bytes()[:-10])
    change_json(folder / "scheduler" / "scheduler_config.json", beta_schedule="cosine")
    (folder / "tokenizer" / "merges.txt").unlink()
    change_json(folder / "model_index.json", vae=...)
    model = describe(folder)
    assert [name for name, part in model.parts.items() if part.whole] == ["text_encoder"]
    assert model.parts["unet"].problems == (
        "unet: conv_out.bias: missing",
        "unet: extra: unexpected",
        "unet: conv_in.bias: wrong shape, 9 instead of 8",
    )
    assert "cut off after" in model.parts["vae"].problems[-1]
    others = "\n".join(model.problems)
    for word in ("the vae of", "'beta_schedule'", "merges.txt"):
        assert word in others
    assert layers(model, "unet")["unet"].parameters == model.parts["unet"].parameters


def test_parts_of_different_models(folder: Path) -> None:
    change_json(folder / "unet" / "config.json", cross_attention_dim=16)
    model = describe(folder)
    assert any("parts of different models" in problem for problem in model.problems)
    assert any("instead of" in problem for problem in model.parts["unet"].problems)


def test_without_a_config_the_other_parts_still_have_layers(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")
    (folder / UNET_FILE).unlink()
    model = describe(folder)
    assert len(model.all_problems) == 2
    assert model.parts["vae"].parameters > 0  # counted in its file
    assert layers(model, "unet")["unet"].outputs == ((1, 4, 8, 8),)
    with pytest.raises(ModelError, match="the layers of the vae are not known"):
        layers(model, "vae")


# --- single files -------------------------------------------------------------------------


def single(path: Path, kind: str, **changes: Tensor) -> ModelSummary:
    tensors = own(original_checkpoint(kind)) | changes
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return describe(path)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_single_file(tmp_path: Path, suffix: str) -> None:
    model = single(tmp_path / f"model.{suffix}", "SD 1")
    assert model.all_problems == ()
    assert (model.kind, model.prediction) == ("Stable Diffusion 1", "epsilon")
    assert model.parts.keys() == {"unet", "vae", "text_encoder"}
    unet = model.parts["unet"]
    assert unet.stored["conv_in.weight"] == "model.diffusion_model.input_blocks.0.0.weight"
    assert unet.parameters == layers(model, "unet")["unet"].parameters
    assert unet.bytes == 4 * unet.parameters
    assert model.config("unet").sample_size == (64, 64)


def test_eps_or_v_is_not_guessed_without_the_weights(tmp_path: Path) -> None:
    model = single(tmp_path / "model.safetensors", "SD 2")
    assert model.prediction == ""
    assert any("eps or v cannot be told" in note for note in model.notes)
    marked = single(tmp_path / "marked.safetensors", "SD 2", v_pred=torch.zeros(0))
    assert marked.prediction == "v_prediction"


def test_the_moving_average_is_what_is_described(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(own(with_average(original_checkpoint("SD 1"))), path)
    model = describe(path)
    assert model.all_problems == ()
    assert model.parts["unet"].stored["conv_in.weight"].startswith("model_ema.")
    assert any("moving average" in note for note in model.notes)


def test_a_single_file_with_wrong_tensors(tmp_path: Path) -> None:
    tensors = own(original_checkpoint("SD 1")) | {"strange": torch.zeros(2)}
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["first_stage_model.quant_conv.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "model.safetensors")
    model = describe(tmp_path / "model.safetensors")
    assert model.parts["unet"].problems == ("model.diffusion_model.out.2.bias: missing",)
    (wrong,) = model.parts["vae"].problems
    assert wrong == "first_stage_model.quant_conv.bias: wrong shape, expected 8"
    assert model.problems == ("strange: unexpected",)


def test_a_cut_single_file_keeps_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    single(path, "SD 1")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    model = describe(path)
    assert "tensors are whole" in model.problems[0]
    assert not all(part.whole for part in model.parts.values())
    assert any("the file ends before it" in problem for problem in model.all_problems)
    assert layers(model, "unet")["unet"].parameters == model.parts["unet"].parameters


@pytest.mark.parametrize(("part", "beginning"), [("vae", "first_stage_model."),
                                                 ("unet", "model.diffusion_model.")])  # fmt: skip
def test_a_part_alone(tmp_path: Path, part: str, beginning: str) -> None:
    tensors = own(original_checkpoint("SD 1"))
    some = {name: tensor for name, tensor in tensors.items() if name.startswith(beginning)}
    save_file(some, tmp_path / "part.safetensors")
    model = describe(tmp_path / "part.safetensors")
    assert model.all_problems == ()
    assert model.parts.keys() == {part}
    assert layers(model, part, size=(64, 64))[part].parameters == model.parts[part].parameters


def test_something_else_is_no_broken_model(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 2)}, path)
    model = describe(path)
    assert (model.parts, model.all_problems) == ({}, ())
    assert "a LoRA" in model.kind


# --- names --------------------------------------------------------------------------------


def test_architectures_at_true_size() -> None:
    """Parameters as published: SD 1.4 and SD 2.1."""
    found = {name: describe(name) for name in ("sd1", "sd21")}
    counts = {
        name: {part.name: part.parameters for part in model.parts.values()}
        for name, model in found.items()
    }
    vae = 83_653_863
    assert counts == {
        "sd1": {"unet": 859_520_964, "vae": vae, "text_encoder": 123_060_480},
        "sd21": {"unet": 865_910_724, "vae": vae, "text_encoder": 340_387_840},
    }
    assert [model.size for model in found.values()] == [(512, 512), (768, 768)]
    assert [model.prediction for model in found.values()] == ["epsilon", "v_prediction"]


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist; expected roads or sd1 or sd21"):
        describe("nothing")
    with pytest.raises(SettingError, match="not on the Hub"):
        describe("roads", revision="main")


def test_a_repository_is_looked_at_without_its_weights(tmp_path: Path, folder: Path) -> None:
    """The real client over HTTP: configs whole, of weights the first part of each file."""
    name = "somebody/tiny-diffusion"
    with Hub() as hub:
        hub.repositories[name] = Repository.of(folder)
        user = User(hub, tmp_path / "home")
        with user.client():
            model = describe(name)
        asked = [request for request in hub.cdn_log if request.method == "GET"]
        assert all(request.range and not request.range.endswith("-") for request in asked)
        assert len(asked) == 3
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        here = describe(folder)
        assert model.all_problems == ()
        assert (model.form, model.revision) == ("repository", COMMIT)
        assert model.kind == here.kind
        for part, other in zip(model.parts.values(), here.parts.values(), strict=True):
            assert part.parameters == other.parameters
            assert part.stored == other.stored
            assert part.dtypes == other.dtypes

        with user.client(), pytest.raises(ModelError, match="no model somebody/else"):
            describe("somebody/else")


def test_models_are_values(folder: Path) -> None:
    assert dataclasses.replace(describe(folder)) == describe(folder)
