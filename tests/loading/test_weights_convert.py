"""Single files to the Hub's layout and back: names, numbers, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pare.config import TextConfig, UNetConfig
from pare.errors import ModelError, OutputError, PareError, SettingError, WeightsError
from pare.loading import hub_names, ldm_names
from pare.loading.checkpoint import Checkpoint, open_checkpoint
from pare.loading.ldm_names import Place
from pare.loading.single_file import (
    CLIP_TOKENIZER,
    inventory,
    load_single_file,
    make_plan,
    shapes_of,
    tokenizer_files,
)
from pare.text.clip import TextEncoder
from tests.hub_configs import SD14_UNET, SD21_UNET, SD_VAE
from tests.single_files import TEXT, UNET1, hub_model, original_checkpoint, with_average
from weights_convert import check, convert, read_folder, stream_safetensors

SD1 = UNetConfig.read(SD14_UNET, "SD 1.4")

CLIP_L = TEXT | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                 "num_hidden_layers": 12}  # fmt: skip
VIT_H = TEXT | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                "num_hidden_layers": 23, "hidden_act": "gelu"}  # fmt: skip
FULL = {
    "SD 1": {"unet": SD14_UNET, "vae": SD_VAE, "text": CLIP_L},
    "SD 2": {"unet": SD21_UNET, "vae": SD_VAE, "text": VIT_H},
}
KINDS = ["SD 1", "SD 2"]


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, Tensor]]:
    return {kind: original_checkpoint(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def single(tmp_path: Path, kind: str, originals: dict[str, dict[str, Tensor]]) -> Path:
    path = tmp_path / "original.safetensors"
    save_file({n: t.contiguous() for n, t in originals[kind].items()}, path)
    return path


# --- names, by hand -----------------------------------------------------------------------

# SD 1's `v1-inference.yaml`: model_channels 320, channel_mult 1 2 4 4, num_res_blocks 2,
# attention_resolutions 4 2 1.
UNET_NAMES = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "time_embedding.linear_1.weight": "time_embed.0.weight",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "down_blocks.0.resnets.0.norm1.weight": "input_blocks.1.0.in_layers.0.weight",
    "down_blocks.0.resnets.0.conv1.bias": "input_blocks.1.0.in_layers.2.bias",
    "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
    "down_blocks.0.attentions.1.proj_in.weight": "input_blocks.2.1.proj_in.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight":
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.2.downsamplers.0.conv.bias": "input_blocks.9.0.op.bias",
    "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
    "mid_block.resnets.0.norm2.weight": "middle_block.0.out_layers.0.weight",
    "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
    "mid_block.resnets.1.conv2.weight": "middle_block.2.out_layers.3.weight",
    "up_blocks.0.resnets.0.norm1.weight": "output_blocks.0.0.in_layers.0.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.attentions.0.proj_out.bias": "output_blocks.3.1.proj_out.bias",
    "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
    "up_blocks.2.upsamplers.0.conv.bias": "output_blocks.8.2.conv.bias",
    "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight":
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
    "conv_norm_out.weight": "out.0.weight",
    "conv_out.bias": "out.2.bias",
}  # fmt: skip

VAE_NAMES = {
    "encoder.conv_in.weight": Place("encoder.conv_in.weight"),
    "encoder.down_blocks.0.resnets.1.norm1.bias": Place("encoder.down.0.block.1.norm1.bias"),
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight":
        Place("encoder.down.1.block.0.nin_shortcut.weight"),
    "encoder.down_blocks.2.downsamplers.0.conv.bias": Place("encoder.down.2.downsample.conv.bias"),
    "encoder.mid_block.resnets.0.conv1.weight": Place("encoder.mid.block_1.conv1.weight"),
    "encoder.mid_block.resnets.1.conv1.weight": Place("encoder.mid.block_2.conv1.weight"),
    "encoder.mid_block.attentions.0.to_q.weight":
        Place("encoder.mid.attn_1.q.weight", convolution=True),
    "encoder.mid_block.attentions.0.to_q.bias": Place("encoder.mid.attn_1.q.bias"),
    "encoder.mid_block.attentions.0.group_norm.weight": Place("encoder.mid.attn_1.norm.weight"),
    "decoder.mid_block.attentions.0.to_out.0.weight":
        Place("decoder.mid.attn_1.proj_out.weight", convolution=True),
    "encoder.conv_norm_out.weight": Place("encoder.norm_out.weight"),
    "decoder.up_blocks.0.resnets.2.conv1.weight": Place("decoder.up.3.block.2.conv1.weight"),
    "decoder.up_blocks.0.upsamplers.0.conv.weight": Place("decoder.up.3.upsample.conv.weight"),
    "decoder.up_blocks.3.resnets.0.conv_shortcut.bias":
        Place("decoder.up.0.block.0.nin_shortcut.bias"),
    "quant_conv.weight": Place("quant_conv.weight"),
    "post_quant_conv.bias": Place("post_quant_conv.bias"),
}  # fmt: skip

OPEN_CLIP_NAMES = {
    "text_model.embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "text_model.embeddings.position_embedding.weight": Place("positional_embedding"),
    "text_model.encoder.layers.22.self_attn.q_proj.weight":
        Place("transformer.resblocks.22.attn.in_proj_weight", third=0),
    "text_model.encoder.layers.0.self_attn.v_proj.bias":
        Place("transformer.resblocks.0.attn.in_proj_bias", third=2),
    "text_model.encoder.layers.0.self_attn.out_proj.bias":
        Place("transformer.resblocks.0.attn.out_proj.bias"),
    "text_model.encoder.layers.1.layer_norm2.weight": Place("transformer.resblocks.1.ln_2.weight"),
    "text_model.encoder.layers.1.mlp.fc1.weight": Place("transformer.resblocks.1.mlp.c_fc.weight"),
    "text_model.encoder.layers.1.mlp.fc2.bias": Place("transformer.resblocks.1.mlp.c_proj.bias"),
    "text_model.final_layer_norm.weight": Place("ln_final.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("hub", "original"), UNET_NAMES.items())
def test_unet_names(hub: str, original: str) -> None:
    assert ldm_names.unet_name(hub, SD1) == original


@pytest.mark.parametrize(("hub", "place"), VAE_NAMES.items())
def test_vae_names(hub: str, place: Place) -> None:
    assert ldm_names.vae_place(hub, stages=4) == place


@pytest.mark.parametrize(("hub", "place"), OPEN_CLIP_NAMES.items())
def test_open_clip_names(hub: str, place: Place) -> None:
    assert ldm_names.open_clip_place(hub) == place


def test_the_average_loses_its_dots() -> None:
    assert ldm_names.ema_name("input_blocks.0.0.weight") == (
        "model_ema.diffusion_modelinput_blocks00weight"
    )


# --- against diffusers' own conversion ----------------------------------------------------


@pytest.mark.parametrize(("kind", "counts"), [("SD 1", (686, 248, 197)), ("SD 2", (686, 248, 372))])
def test_full_size_names_and_shapes(kind: str, counts: tuple[int, ...]) -> None:
    tensors = original_checkpoint(kind, "meta", **FULL[kind])
    plan = make_plan(Checkpoint(Path("full"), tensors), ema=None, only=None)
    rows = inventory(plan)
    assert [row for row in rows if not row.fine] == []
    parts = plan.parts
    assert tuple(len(parts[p].places) for p in ("unet", "vae", "text_encoder")) == counts
    # Every name of the file is used once (fused ones three times), or known not to be needed.
    used = {place.name for part in parts.values() for place in part.places.values()}
    assert used == {row.name for row in rows if row.status == "ok"}
    for name, config in (("unet", FULL[kind]["unet"]), ("text_encoder", FULL[kind]["text"])):
        differing = {
            k: (v, parts[name].config.get(k)) for k, v in config.items()
            if not k.startswith("_") and v is not None and parts[name].config.get(k) != v
        }  # fmt: skip
        differing.pop("sample_size", None)  # set with the prediction
        for old_default in ("dual_cross_attention", "only_cross_attention"):
            differing.pop(old_default, None)
        assert differing == {}


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_diffusers_converts_to_the_same_tensors(
    kind: str, size: str, originals: dict[str, dict[str, Tensor]]
) -> None:
    from diffusers.loaders import single_file_utils as reference

    full = size == "full"
    tensors = original_checkpoint(kind, "meta", **FULL[kind]) if full else originals[kind]
    plan = make_plan(Checkpoint(Path("file"), tensors), ema=None, only=None)
    ours = {
        name: {hub: place.take(tensors[place.name]) for hub, place in part.places.items()}
        for name, part in plan.parts.items()
    }
    configs = {name: dict(part.config) for name, part in plan.parts.items()}
    theirs = {
        "unet": reference.convert_ldm_unet_checkpoint(dict(tensors), configs["unet"]),
        "vae": reference.convert_ldm_vae_checkpoint(dict(tensors), configs["vae"]),
    }
    if kind == "SD 1":
        theirs["text_encoder"] = reference.convert_ldm_clip_checkpoint(dict(tensors))
    else:
        config = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
        theirs["text_encoder"] = reference.convert_open_clip_checkpoint(config, dict(tensors))
        # It drops layer 23, the last of ViT-H, by its number, and keeps the tiny model's last.
        last = f"text_model.encoder.layers.{configs['text_encoder']['num_hidden_layers']}."
        theirs["text_encoder"] = {
            name: tensor
            for name, tensor in theirs["text_encoder"].items()
            if not name.startswith(last) and name != "text_projection.weight"
        }
    for part, reference_tensors in theirs.items():
        assert ours[part].keys() == reference_tensors.keys()
        for name, tensor in reference_tensors.items():
            assert ours[part][name].shape == tensor.shape, name
            assert full or torch.equal(ours[part][name], tensor), name


def test_text_shapes_are_those_of_transformers() -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**TEXT))
    theirs = {
        name if name.startswith("text_model.") else f"text_model.{name}": tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    with torch.device("meta"):
        assert shapes_of(TextEncoder(TextConfig.read(TEXT, "it"))) == theirs


# --- round trips --------------------------------------------------------------------------


def same_parts(one: Any, other: Any) -> None:
    assert one.parts.keys() == other.parts.keys()
    for name, part in one.parts.items():
        assert part.tensors.keys() == other.parts[name].tensors.keys()
        for key, tensor in part.tensors.items():
            theirs = other.parts[name].tensors[key]
            assert tensor.dtype == theirs.dtype, key
            assert torch.equal(tensor, theirs), key


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_file_to_folder_to_file_to_folder(
    tmp_path: Path, single: Path, kind: str, ending: str
) -> None:
    loaded = load_single_file(single)
    assert loaded.kind == kind
    same_parts(loaded, hub_model(kind) if kind == "SD 2" else loaded)
    convert(single, tmp_path / "folder")
    folder = read_folder(tmp_path / "folder")
    same_parts(folder, loaded)
    convert(tmp_path / "folder", tmp_path / f"again.{ending}")
    convert(tmp_path / f"again.{ending}", tmp_path / "folder2", prediction="eps")
    for path in sorted((tmp_path / "folder").rglob("*.safetensors")):
        again = tmp_path / "folder2" / path.relative_to(tmp_path / "folder")
        assert again.read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob(".pare-*"))


def test_the_numbers_are_those_of_the_model(tmp_path: Path, single: Path, kind: str) -> None:
    loaded, model = load_single_file(single), hub_model(kind)
    for name, part in model.parts.items():
        for key, tensor in part.tensors.items():
            assert torch.equal(loaded.parts[name].tensors[key], tensor), key


def test_no_tensor_is_copied(single: Path, kind: str) -> None:
    checkpoint = open_checkpoint(single)
    stored = {t.untyped_storage().data_ptr() for t in checkpoint.tensors.values()}
    plan = make_plan(checkpoint, ema=None, only=None)
    for part in plan.parts.values():
        for place in part.places.values():
            view = place.take(checkpoint.tensors[place.name])
            assert view.untyped_storage().data_ptr() in stored


def test_ckpt_holds_the_same(
    tmp_path: Path, single: Path, kind: str, originals: dict[str, dict[str, Tensor]]
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": originals[kind], "global_step": 3, "epoch": 1}, path)
    same_parts(load_single_file(path), load_single_file(single))
    flat = tmp_path / "flat.ckpt"
    torch.save(OrderedDict(originals[kind]), flat)
    same_parts(load_single_file(flat), load_single_file(single))


def test_old_vae_names_in_and_out(tmp_path: Path, single: Path, kind: str) -> None:
    convert(single, tmp_path / "old", old_vae=True)
    stored = load_file(tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors")
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in stored
    assert not [name for name in stored if ".to_" in name]
    same_parts(read_folder(tmp_path / "old"), load_single_file(single))
    convert(tmp_path / "old", tmp_path / "new")
    same_parts(read_folder(tmp_path / "new"), load_single_file(single))


def test_our_writer_writes_what_safetensors_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b.ü": torch.randn(3, 5, generator=generator),
        "a": torch.randn(7, generator=generator).half(),
        "c": torch.arange(3),
        "empty": torch.zeros(0, 4),
        "d": torch.randn(4, 6, generator=generator).t(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    with open(tmp_path / "ours", "xb") as file:
        stream_safetensors(file, tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs",
              metadata={"format": "pt"})  # fmt: skip
    ours, theirs = (tmp_path / "ours").read_bytes(), (tmp_path / "theirs").read_bytes()
    split = [8 + int.from_bytes(b[:8], "little") for b in (ours, theirs)]
    assert json.loads(ours[8 : split[0]]) == json.loads(theirs[8 : split[1]])
    assert ours[split[0] :] == theirs[split[1] :]


def test_dtype(tmp_path: Path, single: Path, kind: str) -> None:
    done = convert(single, tmp_path / "half", dtype=torch.float16)
    assert done.bytes < 0.51 * single.stat().st_size
    loaded, half = load_single_file(single), read_folder(tmp_path / "half")
    for name, part in loaded.parts.items():
        for key, tensor in part.tensors.items():
            expected = tensor.half() if tensor.is_floating_point() else tensor
            assert torch.equal(half.parts[name].tensors[key], expected)


def test_a_number_too_large_for_half_precision(
    tmp_path: Path, originals: dict[str, dict[str, Tensor]]
) -> None:
    tensors = dict(originals["SD 1"])
    tensors["model.diffusion_model.out.2.bias"] = torch.full((4,), 1e6)
    torch.save(tensors, tmp_path / "model.ckpt")
    with pytest.raises(SettingError, match=r"conv_out\.bias.*bfloat16"):
        convert(tmp_path / "model.ckpt", tmp_path / "half", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


# --- choices and guesses ------------------------------------------------------------------


def test_average_or_not(tmp_path: Path, originals: dict[str, dict[str, Tensor]]) -> None:
    torch.save(with_average(originals["SD 1"]), tmp_path / "both.ckpt")
    torch.save(originals["SD 1"], tmp_path / "one.ckpt")
    last = load_single_file(tmp_path / "one.ckpt")
    assert not any("average" in note for note in last.notes)
    same_parts(load_single_file(tmp_path / "both.ckpt", ema=False), last)
    for ema in (True, None):
        average = load_single_file(tmp_path / "both.ckpt", ema=ema)
        assert any("average" in note for note in average.notes)
        for name, tensor in last.parts["unet"].tensors.items():
            assert torch.equal(average.parts["unet"].tensors[name], tensor + 1)
    with pytest.raises(WeightsError, match="no moving average"):
        load_single_file(tmp_path / "one.ckpt", ema=True)


def test_prediction(tmp_path: Path, originals: dict[str, dict[str, Tensor]]) -> None:
    def notes(name: str, content: dict[str, Any], **options: Any) -> tuple[str, str]:
        torch.save(content, tmp_path / name)
        loaded = load_single_file(tmp_path / name, **options)
        return loaded.scheduler_config["prediction_type"], " ".join(loaded.notes)

    sd1, sd2 = originals["SD 1"], originals["SD 2"]
    assert notes("a.ckpt", sd1)[0] == "epsilon"
    assert notes("b.ckpt", sd1, prediction="v") == (
        "v_prediction",
        "the model predicts v_prediction: as asked",
    )
    told = notes("c.ckpt", {"state_dict": sd2, "global_step": 875_000})
    assert told[0] == "epsilon"
    assert "875000" in told[1]
    assert notes("d.ckpt", sd2 | {"v_pred": torch.zeros(1)})[0] == "v_prediction"
    guessed = notes("e.ckpt", sd2)  # random weights: nothing like the noise that they see
    assert guessed[0] == "v_prediction"
    assert "--prediction eps" in guessed[1]
    with pytest.raises(SettingError, match="eps or v"):
        notes("f.ckpt", sd2, prediction="velocity")


def test_a_unet_that_answers_the_noise_predicts_eps(
    tmp_path: Path, originals: dict[str, dict[str, Tensor]]
) -> None:
    # The last ResNet adds nothing to its shortcut, which hands conv_in's output, the last
    # skip, through to conv_out.
    tensors = {
        n: torch.zeros_like(t) if n.startswith("model.diffusion_model.out") else t
        for n, t in originals["SD 2"].items()
    }
    unet = "model.diffusion_model."
    last = f"{unet}output_blocks.3.0."
    conv_in = torch.zeros_like(tensors[f"{unet}input_blocks.0.0.weight"])
    shortcut = torch.zeros_like(tensors[f"{last}skip_connection.weight"])
    conv_out = torch.zeros_like(tensors[f"{unet}out.2.weight"])
    for channel in range(4):
        conv_in[channel, channel, 1, 1] = 1
        shortcut[channel, 64 + channel, 0, 0] = 1
        conv_out[channel, channel, 1, 1] = 1
    tensors |= {
        f"{unet}input_blocks.0.0.weight": conv_in,
        f"{unet}input_blocks.0.0.bias": torch.zeros(64),
        f"{last}skip_connection.weight": shortcut,
        f"{unet}out.0.weight": torch.ones(64),
        f"{unet}out.2.weight": conv_out,
    }
    torch.save(tensors, tmp_path / "eps.ckpt")
    loaded = load_single_file(tmp_path / "eps.ckpt")
    assert loaded.scheduler_config["prediction_type"] == "epsilon", loaded.notes
    assert loaded.parts["unet"].config["sample_size"] == 64


def test_a_schedule_of_its_own(tmp_path: Path, originals: dict[str, dict[str, Tensor]]) -> None:
    betas = torch.linspace(0.001, 0.01, 100)
    torch.save(originals["SD 1"] | {"betas": betas}, tmp_path / "model.ckpt")
    loaded = load_single_file(tmp_path / "model.ckpt")
    assert loaded.scheduler_config["trained_betas"] == betas.double().tolist()
    halved = originals["SD 1"] | {"betas": originals["SD 1"]["betas"].half()}
    torch.save(halved, tmp_path / "half.ckpt")
    assert load_single_file(tmp_path / "half.ckpt").scheduler_config["trained_betas"] is None


def test_inpainting_models_convert(tmp_path: Path) -> None:
    tensors = original_checkpoint("SD 1", unet=UNET1 | {"in_channels": 9})
    torch.save(tensors, tmp_path / "inpaint.ckpt")
    convert(tmp_path / "inpaint.ckpt", tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert read_folder(tmp_path / "folder").parts["unet"].config["in_channels"] == 9


def test_names_of_other_converters(tmp_path: Path, originals: dict[str, dict[str, Tensor]]) -> None:
    # Text encoder without `text_model.`; the VAE's attention as matrices; broken positions.
    tensors = {}
    for name, tensor in originals["SD 1"].items():
        name = name.replace("transformer.text_model.", "transformer.")
        if ".attn_1." in name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        tensors[name] = tensor
    ids = "cond_stage_model.transformer.embeddings.position_ids"
    tensors[ids] = tensors[ids].half()
    torch.save(tensors, tmp_path / "model.ckpt")
    loaded, model = load_single_file(tmp_path / "model.ckpt"), hub_model("SD 1")
    same_parts(loaded, model)


def test_check_lists_every_tensor(single: Path, kind: str) -> None:
    rows = check(single)
    stored = load_file(single)
    assert {row.name for row in rows} == set(stored)
    assert all(row.fine and row.shape == stored[row.name].shape for row in rows)
    assert {row.dtype for row in rows} <= {"float32", "int64"}
    dropped = {row.name: row.status for row in rows if row.status != "ok"}
    assert dropped["betas"].startswith("not needed: the noise schedule")
    if kind == "SD 2":
        assert "cond_stage_model.model.text_projection" in dropped
        last = "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight"
        assert dropped[last].startswith("not needed: OpenCLIP's last layer")


def test_check_lists_every_tensor_of_a_folder(tmp_path: Path, single: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    convert(single, folder, old_vae=True)
    rows = check(folder)
    stored = {
        f"{path.parent.name}/{name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert [row.name for row in rows] == sorted(stored)
    assert all(row.fine and row.shape == tuple(stored[row.name].shape) for row in rows)
    assert {row.status for row in rows} <= {"ok", "not needed: the numbers 0 to 76"}

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["more"] = tensors.pop("conv_in.bias")
    tensors["conv_out.bias"] = torch.zeros(5)
    tensors["conv_out.weight"] = tensors["conv_out.weight"].to(torch.int64)
    save_file(tensors, path)
    wrong = {row.name: row.status for row in check(folder) if not row.fine}
    assert wrong == {
        "unet/conv_in.bias": "missing",
        "unet/conv_out.bias": "wrong shape: expected 4",
        "unet/conv_out.weight": "wrong type: expected floating-point numbers",
        "unet/more": "unexpected",
    }
    with pytest.raises(SettingError, match="is a folder, for which `only` means nothing"):
        check(folder, only="vae")


def test_no_option_is_silently_ignored(tmp_path: Path, single: Path, kind: str) -> None:
    convert(single, tmp_path / "folder")
    options: dict[str, Any]
    for options in ({"ema": False}, {"prediction": "v"}, {"only": "vae"}, {"drop": ["x"]}):
        with pytest.raises(SettingError, match=f"for which `{next(iter(options))}` means"):
            convert(tmp_path / "folder", tmp_path / "back.ckpt", **options)
    for options in ({"old_vae": True}, {"tokenizer": tmp_path}):
        with pytest.raises(SettingError, match="single file"):
            convert(single, tmp_path / "back.ckpt", **options)
    assert not (tmp_path / "back.ckpt").exists()


def test_folders_with_shards_pickles_and_variants(tmp_path: Path, single: Path, kind: str) -> None:
    """As the Hub has them: whatever `generate` reads, `convert` reads."""
    folder = tmp_path / "folder"
    convert(single, folder)
    expected = read_folder(folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    halves = [dict(list(tensors.items())[k::2]) for k in range(2)]
    names = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, unet.with_name(name))
    places = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = unet.with_name(f"{unet.name}.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    unet.unlink()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(vae), vae.with_suffix(".bin"))
    vae.unlink()
    text = folder / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    same_parts(read_folder(folder), expected)
    assert all(row.fine for row in check(folder))
    convert(folder, tmp_path / "back.safetensors")
    same_parts(load_single_file(tmp_path / "back.safetensors", prediction="eps"), expected)


def test_a_vae_alone(tmp_path: Path, originals: dict[str, dict[str, Tensor]]) -> None:
    prefix = "first_stage_model."
    vae = {n[len(prefix) :]: t for n, t in originals["SD 1"].items() if n.startswith(prefix)}
    vae["loss.logvar"] = torch.zeros(())
    torch.save({"state_dict": vae}, tmp_path / "vae.ckpt")
    with pytest.raises(ModelError, match=r"has a vae and no unet and no text encoder.*--only vae"):
        convert(tmp_path / "vae.ckpt", tmp_path / "out")
    convert(tmp_path / "vae.ckpt", tmp_path / "out", only="vae")
    stored = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    expected = hub_model("SD 1").parts["vae"].tensors
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


# --- as a model, and as a command ---------------------------------------------------------


def test_a_file_is_the_model_that_its_folder_is(tmp_path: Path, single: Path, kind: str) -> None:
    from pare.loading.modules import load_model
    from pare.loading.resolve import resolve_model, scheduler_config

    convert(single, tmp_path / "folder")
    if kind == "SD 2":
        with pytest.warns(UserWarning, match="predicts v_prediction.*--prediction eps"):
            file = load_model(single, device="cpu")
    else:
        file = load_model(single, device="cpu")
    folder = load_model(tmp_path / "folder", device="cpu")
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(file, part).state_dict(), getattr(folder, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert {str(b.device) for b in getattr(file, part).buffers()} <= {"cpu"}
    assert file.unet.config == folder.unet.config
    assert file.vae.config == folder.vae.config
    assert file.scheduler_config == scheduler_config(resolve_model(tmp_path / "folder"))[0]
    prompts = ["a photo of a cat", "!"]
    ids = [
        model.tokenizer(prompts, padding="max_length", max_length=77).input_ids
        for model in (file, folder)
    ]
    assert ids[0] == ids[1]
    assert list(file.source.files) == ["original.safetensors"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pare.cli.main import main

    source = tmp_path / "model.ckpt"
    torch.save(original_checkpoint("SD 1"), source)
    assert main(["convert", "--check", str(source)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "model.diffusion_model.out.2.bias  4  float32  ok" in listed
    target = tmp_path / "folder"
    assert main(["convert", str(source), str(target), "--dtype", "float16"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{target}\n"
    assert "predicts epsilon" in said.err
    assert main(["convert", str(source), str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["convert", str(source)]) == 2
    assert "TARGET" in capsys.readouterr().err
    torch.save({"model.diffusion_model.double_blocks.0.x": torch.zeros(1)}, source)
    assert main(["convert", str(source), str(tmp_path / "x")]) == 2
    assert "is Flux" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "no such file" in capsys.readouterr().err


# --- the tokenizer ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "padding"), [("SD 1", 49407), ("SD 2", 0)])
def test_clip_tokenizer(tmp_path: Path, kind: str, padding: int) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    for name, content in tokenizer_files(kind, 49408).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407] + [padding] * 70


def test_the_vocabulary_has_its_licence() -> None:
    assert "MIT License" in (CLIP_TOKENIZER / "LICENSE").read_text()
    assert len(json.loads((CLIP_TOKENIZER / "vocab.json").read_text())) == 49408


def test_another_vocabulary_needs_its_own_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"knows 100 tokens.*as `tokenizer`"):
        tokenizer_files("SD 1", 100)
    with pytest.raises(ModelError, match=r"no vocab\.json"):
        tokenizer_files("SD 1", 100, tmp_path)


# --- refusals -----------------------------------------------------------------------------

OTHERS = {
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight":
        "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias":
        "Stable Diffusion 3",
    "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "control_model.time_embed.0.weight": "ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "ControlNet",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "LoRA",
    "unet.down_blocks.0.attentions.0.processor.to_q_lora.up.weight": "pare knows",
    "base_model.model.to_q.lora_A.weight": "LoRA",
    "emb_params": "textual-inversion",
    "<my-cat>": "textual-inversion",
    "down_blocks.0.resnets.0.norm1.weight": "the UNet of a model's folder",
    "encoder.mid_block.resnets.0.norm1.weight": "the VAE of a model's folder",
    "text_model.encoder.layers.0.layer_norm1.weight": "the text encoder of a model's folder",
    "model.layers.0.self_attn.q_proj.weight": "language model",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": "AnimateDiff",
    "anything.else": "pare knows",
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), OTHERS.items())
def test_other_models_are_named(tmp_path: Path, name: str, words: str) -> None:
    tensors = {name: torch.zeros(2, 2, 1)} if words == "pare knows" else {name: torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=words):
        load_single_file(tmp_path / "file.safetensors")


@pytest.mark.parametrize(("channels", "words"), [(8, "InstructPix2Pix"), (5, "depth")])
def test_kin_with_other_channels_are_named(tmp_path: Path, channels: int, words: str) -> None:
    tensors = original_checkpoint("SD 1", "meta", unet=UNET1 | {"in_channels": channels})
    with pytest.raises(ModelError, match=words):
        make_plan(Checkpoint(tmp_path, tensors), ema=None, only=None)


def test_missing_unexpected_and_misshapen_tensors_are_one_table(
    tmp_path: Path, originals: dict[str, dict[str, Tensor]]
) -> None:
    tensors = dict(originals["SD 1"])
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["first_stage_model.quant_conv.bias"] = torch.zeros(3)
    tensors["first_stage_model.more"] = torch.zeros(3)
    tensors["model.diffusion_model.out.0.bias"] = torch.zeros(32, dtype=torch.int64)
    torch.save(tensors, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError) as error:
        load_single_file(tmp_path / "model.ckpt")
    text = str(error.value)
    assert "in 4 tensors" in text
    for words in ("missing", "unexpected", "wrong shape", "wrong type"):
        assert words in text


def test_what_is_unexpected_can_be_dropped(
    tmp_path: Path, originals: dict[str, dict[str, Tensor]]
) -> None:
    torch.save(originals["SD 1"] | {"extra.weight": torch.zeros(1)}, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="pass `drop=extra`"):
        load_single_file(tmp_path / "model.ckpt")
    load_single_file(tmp_path / "model.ckpt", drop=["extra"])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_a_pickle_with_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, originals: dict[str, dict[str, Tensor]]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": originals["SD 1"], "bomb": Bomb()}, "model.ckpt")
    with pytest.raises(WeightsError, match=r"code in it.*system"):
        load_single_file(Path("model.ckpt"))
    Path("bare.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="bare pickle"):
        load_single_file(Path("bare.ckpt"))
    assert not Path("exploded").exists()


def test_what_training_leaves_in_a_checkpoint_does_no_harm(
    tmp_path: Path, originals: dict[str, dict[str, Tensor]]
) -> None:
    # As SD 1.4's own file: callbacks by their class, which nobody here has.
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": originals["SD 1"], "callbacks": {OrderedDict: {"best": 1}}}, path)
    swap_in_archive(path, b"ccollections\nOrderedDict\n", b"cpytorch_lightning.callbacks\nModel\n")
    same_parts(load_single_file(path), hub_model_with_ids())


def hub_model_with_ids() -> Any:
    model = hub_model("SD 1")
    ids = torch.arange(77).expand(1, -1)
    model.parts["text_encoder"].tensors[hub_names.POSITION_IDS] = ids  # type: ignore[index]
    return model


def swap_in_archive(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle of a .ckpt."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in entries:
            if entry.filename.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(entry.filename, data)


NOT_WEIGHTS = {
    b"": "empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:12": "Git LFS pointer",
    b"<!DOCTYPE html><html>": "web page",
    b"GGUF\3\0\0\0": "GGUF",
    b"PK\3\4 cut off": "not a whole .ckpt",
    b"\xff\xff\xff\xff\xff\xff\xff\x0f{}": "not a whole safetensors",
    b"\x02\0\0\0\0\0\0\0{}": "no model that pare knows",
    b"just a text file, and a longer one than eight bytes": "not a whole safetensors",
    b"\x80\x02}q\x00.": "bare pickle",
}


@pytest.mark.parametrize(("content", "words"), NOT_WEIGHTS.items())
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(PareError, match=words):
        load_single_file(path)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_truncated_files(
    tmp_path: Path, ending: str, originals: dict[str, dict[str, Tensor]]
) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save(originals["SD 1"], path)
    else:
        save_file({n: t.contiguous() for n, t in originals["SD 1"].items()}, path)
    whole = path.read_bytes()
    for size in (9, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="whole"):
            load_single_file(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data(), ending=st.sampled_from(["safetensors", "ckpt"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_damaged_bytes_end_in_words(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}
    path = tmp_path / f"small.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": tensors, "epoch": 1}, path)
    else:
        save_file(tensors, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.sampled_from([0, 1, 8]))
        content[place : place + length] = data.draw(st.binary(max_size=8))
        content = content or bytearray(b"x")
    path.write_bytes(content)
    with pytest.raises(PareError):
        load_single_file(path)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match=r"without PyTorch's data\.pkl"):
        load_single_file(tmp_path / "some.zip")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)
    with pytest.raises(WeightsError, match="compressed"):
        load_single_file(tmp_path / "bomb.ckpt")


# --- whole or not at all ------------------------------------------------------------------


def test_an_existing_target_is_refused_or_replaced(tmp_path: Path, single: Path, kind: str) -> None:
    for target in (tmp_path / "folder", tmp_path / "file.safetensors"):
        convert(single, target)
        with pytest.raises(OutputError, match="pass `force=True`"):
            convert(single, target)
        convert(single, target, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match="other things in it"):
        convert(single, tmp_path / "mine", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        convert(single, tmp_path / "no" / "where")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"original.safetensors", "folder", "file.safetensors", "mine"}


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, single: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pare.loading import conversion

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
        with pytest.raises(OutputError, match="its disk has"):
            convert(single, tmp_path / "out")

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "sync_folder", fail)
    with pytest.raises(OSError, match="No space"):
        convert(single, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["original.safetensors"]
