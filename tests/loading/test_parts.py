"""The parts of a model, loaded one by one: the same as those of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pare
from pare.errors import DeviceError, ModelError, SettingError
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_each_part_is_that_of_the_pipeline(folder: Path) -> None:
    pipe = pare.Pipeline.from_pretrained(folder, device="cpu", dtype="float32")
    for part, loaded in (
        (pipe.unet, pare.UNet.from_pretrained(folder, subfolder="unet", device="cpu")),
        (pipe.vae, pare.AutoencoderKL.from_pretrained(folder, subfolder="vae", device="cpu")),
        (pipe.text_encoder, pare.TextEncoder.from_pretrained(folder, subfolder="text_encoder")),
    ):
        assert type(part) is type(loaded)
        assert not loaded.training
        ours, theirs = loaded.cpu().state_dict(), part.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert isinstance(pipe.unet, pare.UNet)
    tokenizer = pare.Tokenizer.from_pretrained(folder, subfolder="tokenizer")
    assert tokenizer("the snowy road").input_ids == pipe.tokenizer("the snowy road").input_ids
    scheduler = pare.Scheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.describe() == pipe.scheduler.describe()
    euler = pare.Scheduler.from_pretrained(folder, "euler", karras=True)
    assert euler.describe() == pipe.with_scheduler("euler", karras=True).scheduler.describe()


def test_a_part_in_another_dtype(folder: Path) -> None:
    unet = pare.UNet.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_mistakes_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"`subfolder` is 'vae'; expected 'unet'"):
        pare.UNet.from_pretrained(folder, subfolder="vae")
    with pytest.raises(SettingError, match="`subfolder` is"):
        pare.Tokenizer.from_pretrained(folder, subfolder="scheduler")
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        pare.AutoencoderKL.from_pretrained(tmp_path)
    with pytest.raises(DeviceError):
        pare.UNet.from_pretrained(folder, device="tpu")


def test_dir_names_the_parts() -> None:
    assert set(pare.__all__) <= set(dir(pare))
    for name in pare.__all__:
        assert getattr(pare, name) is not None
