"""Weights as pickles and in shards: the same tensors, as strictly, and no code run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pare.config import UNetConfig
from pare.errors import ModelError, PareError, WeightsError
from pare.loading.hub_folder import find_weights, weight_files
from pare.loading.model_configs import config_of
from pare.loading.modules import load_weights
from pare.unet import UNet
from tests.tiny_model import write_tiny_model

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy without the UNet's weights."""
    copy = Path(shutil.copytree(original, tmp_path / "model"))
    (copy / "unet" / f"{STEM}.safetensors").unlink()
    return copy


@pytest.fixture
def tensors(original: Path) -> dict[str, Tensor]:
    return load_file(original / "unet" / f"{STEM}.safetensors")


def load_unet(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(*config_of(folder, "unet")))
    load_weights(unet, find_weights(folder, "unet", half=dtype == torch.float16), dtype)
    return dict(unet.state_dict())


def write_shards(folder: Path, tensors: dict[str, Tensor], kind: str = "safetensors") -> list[str]:
    """Three files, with tensors dealt out in turns, and their index; the files' names."""
    names = [f"{STEM}-0000{k}-of-00003.{kind}" for k in (1, 2, 3)]
    places: dict[str, str] = {}
    for k, name in enumerate(names):
        share = {key: tensors[key] for key in sorted(tensors)[k::3]}
        places |= dict.fromkeys(share, name)
        write = save_file if kind == "safetensors" else torch.save
        write(share, folder / "unet" / name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "unet" / f"{STEM}.{kind}.index.json").write_text(json.dumps(index))
    return names


def save_bin(folder: Path, content: object) -> None:
    torch.save(content, folder / "unet" / f"{STEM}.bin")


def same(loaded: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return loaded.keys() == tensors.keys() and all(
        torch.equal(tensor, tensors[name]) for name, tensor in loaded.items()
    )


Writer = Callable[[Path, dict[str, Tensor]], object]
WRITERS: dict[str, Writer] = {
    "a pickle": save_bin,
    "shards": write_shards,
    "shards of pickles": lambda folder, tensors: write_shards(folder, tensors, "bin"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_tensors_are_the_same(folder: Path, tensors: dict[str, Tensor], kind: str) -> None:
    WRITERS[kind](folder, tensors)
    assert same(load_unet(folder), tensors)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("problem", ["missing", "unexpected", "wrong shape"])
def test_they_are_read_as_strictly(
    folder: Path, tensors: dict[str, Tensor], kind: str, problem: str
) -> None:
    if problem == "missing":
        del tensors["conv_in.bias"]
    elif problem == "unexpected":
        tensors["conv_in.bass"] = torch.zeros(3)
    else:
        tensors["conv_in.bias"] = torch.zeros(3)
    WRITERS[kind](folder, tensors)
    with pytest.raises(WeightsError, match=rf"in 1 tensors:\n  {problem} +conv_in.bi?as"):
        load_unet(folder)


def test_safetensors_go_before_pickles(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_bin(folder, {"not": "weights"})
    write_shards(folder, tensors)
    assert same(load_unet(folder, torch.float32), tensors)


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    save_bin(folder, {"conv_in.weight": Code()})
    with pytest.raises(WeightsError, match=r"pickle with code in it: it would call .*mkdir"):
        load_unet(folder)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 and no more", b"\x80\x02}q\x00."])
def test_a_broken_pickle_is_one_sentence(folder: Path, content: bytes) -> None:
    (folder / "unet" / f"{STEM}.bin").write_bytes(content)
    with pytest.raises(PareError, match=rf"{STEM}\.bin is ") as caught:
        load_unet(folder)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_missing_or_cut_is_named(folder: Path, tensors: dict[str, Tensor]) -> None:
    second = folder / "unet" / write_shards(folder, tensors)[1]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"{second.name} is not a whole safetensors file"):
        load_unet(folder)
    second.unlink()
    with pytest.raises(ModelError, match=rf"index.json names {second.name}, which is not there"):
        load_unet(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path, tensors: dict[str, Tensor]) -> None:
    last = folder / "unet" / write_shards(folder, tensors)[2]
    save_file(load_file(last) | {"conv_in.bias": torch.zeros(8)}, last)
    with pytest.raises(WeightsError, match=r"holds conv_in\.bias, which another shard holds too"):
        load_unet(folder)


def test_a_shard_outside_the_folder_is_refused(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(folder, tensors)
    index = folder / "unet" / f"{STEM}.safetensors.index.json"
    for name in ("../vae/x.safetensors", "/etc/passwd", "x.safetensors\n", ".safetensors", 3, None):
        index.write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
        with pytest.raises(PareError, match="as a file of weights"):
            weight_files(index)
